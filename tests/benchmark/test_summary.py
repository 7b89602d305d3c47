"Summary, claims, tables and figures of a benchmark of drawn numbers."
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from made_bench import RESULTS, made_bench, with_holes
from matplotlib.text import Text

from agri_cae.benchmark import claims as claims_module
from agri_cae.benchmark.claims import claims, comparable, load_promises
from agri_cae.benchmark.figures import plot_pareto
from agri_cae.benchmark.records import Bench, load_bench
from agri_cae.benchmark.report import bench_report, write_report
from agri_cae.benchmark.summary import (
    best_baseline,
    mean_value,
    measured_sets,
    network_speedup,
    picture_values,
    psnr_gains,
    scaling_lines,
)
from agri_cae.benchmark.tables import (
    claim_table,
    engine_table,
    forecast_table,
    recipe_table,
    scaling_table,
    sigma_table,
    time_table,
)
from agri_cae.config import ConfigError

PROMISES = load_promises(RESULTS / "claims.yaml")


@pytest.fixture
def made(): return made_bench()


@pytest.fixture
def holes(): return with_holes()


# summary

def test_values_leave_out_pictures_without_noise(made, holes):
    assert sorted(set(range(24)) - set(picture_values(holes, "fast", "25"))) == [3]
    gains = psnr_gains(holes, "slow", "noisy", "25")
    assert len(gains) == 4 and gains[1] == pytest.approx(31 - holes.series("noisy", "25").psnr[6])
    assert measured_sets(made) == ["test", "wild"]
    assert mean_value(made, "base", "25") > mean_value(made, "base", "25", pictures="wild") + 1


def test_what_was_not_measured(made):
    assert picture_values(made, "best", "25") == {} and mean_value(made, "best", "25") is None
    assert len(psnr_gains(made, "best", "fast", "25")) == 0 and network_speedup(made, "best", 1024) is None


def test_rivals_and_ratios(made, holes):
    assert best_baseline(made, "25") == "skimage_wavelet" and best_baseline(holes, "clean") is None
    median, low, high = network_speedup(made, "base", 1024)
    assert median == pytest.approx(4, abs=.4) and low < median < high


def test_scaling_lines(made):
    assert [round(s.rest_mb) for s in made.scaling if s.megapixels == 1] == [70, 71]
    lines = {k: [s.megapixels for s in v] for k, v in scaling_lines(made).items()}
    sizes = [.25, 1, 4, 16, 100]
    assert lines == {("fast", "uint8"): sizes, ("fast", "float32"): sizes}


# claims

def test_published_figures_are_for_their_pictures(made):
    by = {c.what: c for c in claims(made, PROMISES)}
    assert by["base: PSNR at sigma 25"].met is None and not comparable(made, PROMISES.published)
    made.sets["test"]["digest"] = PROMISES.published.digest
    by = {c.what: c for c in claims(made, PROMISES)}
    assert by["base: PSNR at sigma 25"].met is (mean_value(made, "base", "25") >= 32.95)
    assert by["best: PSNR at sigma 25"].met is None


def test_claims(made):
    by = {c.what: c for c in claims(made, PROMISES)}
    faster = by["fast: times faster than the FFDNet-shaped network, 1024 x 1024"]
    assert faster.met is (network_speedup(made, "fast", 1024)[0] >= 15)
    assert by["base on jpeg: gain over the best classical method (skimage_wavelet)"].met is True
    assert by["base on clean pictures: worst PSNR"].met is False and by["base on real pairs: worst gain"].met is True
    assert by["base on jpeg, wild: gain over the noisy picture"].met and "base on clean pictures, wild: mean PSNR" in by
    kept = [c.met for what, c in by.items() if "MP, against" in what]
    assert kept == [True, True, True, False]           # the last keeps 24 against 22.4 MB for each MP: grows
    made.series("base", "jpeg").psnr[:] = [5.] * 24
    assert not next(c for c in claims(made, PROMISES) if c.what.startswith("base on jpeg")).met
    assert {c.met for c in claims(Bench(), PROMISES)} == {None}


def test_bm3d_is_compared_on_the_pictures_it_saw(made):
    nlm = made.series("opencv_nlm", "jpeg")
    made.quality.append(nlm.model_copy(update=dict(method="bm3d", every=6, psnr=nlm.psnr[::6])))
    assert [c.met for c in claims(made, PROMISES) if "BM3D, on 4 pictures" in c.what] == [True]


def test_promises_are_no_part_of_the_package(tmp_path):
    with pytest.raises(ConfigError, match="clone of the repository"): load_promises(tmp_path / "claims.yaml")
    (tmp_path / "claims.yaml").write_text("faster: {fast: 2}\n")
    with pytest.raises(ConfigError, match="published"): load_promises(tmp_path / "claims.yaml")
    assert not list(Path(claims_module.__file__).parent.glob("*.yaml"))


# tables and figures

def test_tables_are_square(made):
    tables = [f(made) for f in (sigma_table, recipe_table, time_table, engine_table)]
    for table in (*tables, claim_table(made, PROMISES), forecast_table(made, PROMISES)):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_tables_name_sets_and_pictures(made, holes):
    assert "| base | 15 | 1.22 | 0.23 | 3.3 | 127 |" in forecast_table(made, PROMISES)
    assert "| 25 | wild | " in recipe_table(made) and "PSNR dB, test / wild" in sigma_table(made)
    assert "*" in recipe_table(holes) and "*" not in recipe_table(made)
    assert "slow (4 / 0 of the pictures)" in sigma_table(holes)
    some = made.series("noisy", "jpeg", "wild")
    some.every, some.psnr = 3, some.psnr[:8]
    assert "| jpeg | wild (8 of its pictures) | " in recipe_table(made)


def test_names_in_the_figure_do_not_overlap(made):
    made.sets["test"]["digest"] = PROMISES.published.digest
    for ax in plot_pareto(made, PROMISES).axes:
        boxes = [Text.get_window_extent(t) for t in ax.texts]
        assert len(boxes) == (7 if ax.get_title().startswith("test") else 5)   # published figures are for test
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


# report

def test_report(tmp_path, made):
    made.times = [t for t in made.times if t.race != "engines"]
    write_report(made, PROMISES, tmp_path)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["_bench.md", "bench_pareto.png", "bench_scaling.png", "bench_training.png"]
    text = (tmp_path / "_bench.md").read_text("utf-8")
    for part in (claim_table(made, PROMISES), sigma_table(made), scaling_table(made)): assert part in text
    assert "## Engines" not in text        # nothing measured


def test_report_of_the_saved_results():
    bench = load_bench(RESULTS / "bench.json")
    assert bench_report(bench, PROMISES) == (RESULTS / "_bench.md").read_text("utf-8")
    assert np.isfinite([m for m in (mean_value(bench, m, "25") for m in bench.models) if m]).all()
