"Slices and verdict of comparisons with given gains."
import pytest
from made_bench import SAME, made_comparison

from agri_cae.benchmark.slices import STANDARD, Limits, gain_of, slices, worst_rows
from agri_cae.benchmark.verdict import ship_verdict

GOOD = {("in", "leaf", "25"): [.2, .3], ("in", "soil", "25"): [.2, .1],
        ("out", "trees", "25"): [.1, .3], ("out", "roof", "50"): [.2, .2]}


def failing(gains, limits=STANDARD, **patterns):
    verdict = ship_verdict(made_comparison(gains, **patterns), limits)
    return [text for met, text in verdict.reasons if not met]


def test_families_count_alike():
    uneven = slices(made_comparison({("in", "leaf", "25"): [.1] * 9, ("in", "soil", "25"): [.5]}))
    assert uneven[0].gain == pytest.approx(.3)                                             # over families
    assert [s.gain for s in uneven if s.kind == "noise"] == pytest.approx([.14])           # over pictures


def test_clean_pictures_are_cut():
    clean = made_comparison({("in", "leaf", "clean"): [0, 10, 14, 15.5, -1]})
    clean.rows[3].psnr["old"] = 50
    assert [gain_of(r, clean.models) for r in clean.rows] == pytest.approx([0, 10, 14, 0, -1])


def test_both_sets_must_be_won():
    assert ship_verdict(made_comparison(GOOD)).ships
    assert len(failing({k: v for k, v in GOOD.items() if k[0] == "in"})) == 1       # no other collections
    assert len(failing(GOOD | {("out", "roof", "50"): [-.25, -.25]})) == 2          # a slice, and the set
    assert len(failing(GOOD, Limits(margin=.5))) == 2


def test_own_and_drawn_may_veto():
    assert "noise paired (own pairs) -0.20" in failing(GOOD | {("own", "mine", "paired"): [-.2]})[0]
    assert "drawn meshes" in failing(GOOD | {("drawn", "mesh", "25"): [-.2]})[0]
    assert not failing(GOOD | {("wild", "boat", "25"): [-9.]})                             # decides nothing


def test_worst_pictures():
    uneven = GOOD | {("in", "leaf", "25"): [-1.2, 1.7]}
    assert len(failing(uneven)) == 2
    assert [r.picture for r in worst_rows(made_comparison(uneven), 2)] == ["leaf0", "soil1"]


def test_patterns_no_worse_than_with_the_reference():
    tint = SAME.model_copy(update=dict(grey=80))
    assert failing(GOOD, new=tint) == ["pattern grey: 19.9 from its goal, with old 0.0"]
    assert not failing(GOOD, new=tint, old=tint)
