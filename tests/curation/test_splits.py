"What a split promises: no leakage, the same parts from the same content, whole collections held back."
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_pictures import SHARED, cfg, fake, join, write_fields

from agri_cae.config import ConfigError, DataConfig, DataError
from agri_cae.curation.datasets import DataSet
from agri_cae.curation.families import odds
from agri_cae.curation.groups import group_items
from agri_cae.curation.splits import split, split_by_source
from agri_cae.data import open_dataset


@pytest.mark.parametrize("seed", range(30))
def test_no_source_and_no_likeness_on_both_sides(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, rng.integers(2, 60))
    alike = rng.permutation(len(sizes))[:len(sizes) // 5 * 2].reshape(-1, 2)
    ds, fraction = fake(sizes, alike=alike), rng.uniform(.02, .9)
    groups = group_items(ds.items)
    if len(groups) < 2: pytest.skip("everything hangs together")
    train, val = split_by_source(ds, fraction, seed)
    assert len(train) and len(val)
    assert {*train.items} | {*val.items} == {*ds.items} and not {*train.items} & {*val.items}
    assert not set(train.sources) & set(val.sources)
    for a, b in alike: assert (f"s{a}" in train.sources) == (f"s{b}" in train.sources)
    assert abs(len(val) - fraction * len(ds)) <= max(map(len, groups))


def test_split_depends_on_content_and_seed_only():
    ds = fake([3, 1, 4, 1, 5, 9, 2, 6] * 3)
    val = split_by_source(ds, .2, 7)[1]
    moved = [replace(i, path=Path("elsewhere")/i.path.name, source=f"renamed {i.source}") for i in reversed(ds.items)]
    assert split_by_source(replace(ds, items=tuple(moved)), .2, 7)[1].digest == val.digest
    assert len({split_by_source(ds, .2, s)[1].digest for s in range(10)}) > 5


def test_every_picture_is_held_back_for_some_seed():
    ds = fake([1, 2, 3] * 5)
    held = {i.sha256 for s in range(60) for i in split_by_source(ds, .2, s)[1].items}
    assert held == {i.sha256 for i in ds.items}


@pytest.mark.parametrize("fraction", [0., 1., -1., 2.])
def test_impossible_share(fraction):
    with pytest.raises(ConfigError, match="val_fraction"): split_by_source(fake([1, 1]), fraction)


def test_two_pictures_are_enough_and_one_source_is_not():
    assert [len(s) for s in split_by_source(open_dataset(DataConfig()), .1)] == [1, 1]
    with pytest.raises(DataError, match=r"one source.*source_pattern"): split_by_source(fake([5]), .1)
    with pytest.raises(DataError, match="one source"): split_by_source(fake([2, 2], alike=[(0, 1)]), .1)


# several folders

def test_each_folder_is_split_by_itself():
    a, b = fake([1, 2, 3] * 8), fake([4, 1, 1] * 9, "b")
    alone = {i.sha256 for i in split_by_source(a, .1, 3)[1].items}
    train, val = split_by_source(join(a, b), .1, 3)
    assert {i.sha256 for i in val.items if i.folder == "0"} == alone
    assert 3 <= sum(i.folder == "1" for i in val.items) <= 8
    train, val = split_by_source(join(fake([3]), fake([4], "b")), .3)                       # of one source each
    assert {len(train), len(val)} == {3, 4}


@pytest.mark.parametrize("seed", range(10))
def test_likeness_across_folders(seed):
    a, b = fake([1] * 40), fake([2] * 40, "b")
    ds = join(a, b, alike=[(k, 40 + 2 * k) for k in range(20)])
    train, val = split_by_source(ds, .2, seed)
    alone = {i.sha256 for i in split_by_source(a, .2, seed)[1].items}
    assert {i.sha256 for i in val.items if i.folder == "0"} == alone                        # the first folder decides
    side = {i.sha256: part is val for part in (train, val) for i in part.items}
    assert len(side) == 120
    assert all(side[ds.items[k].sha256] == side[ds.items[40 + 2 * k].sha256] for k in range(20))


# collections that are held back whole

@pytest.fixture
def fields(tmp_path): return write_fields(tmp_path/"data")


def test_collections_are_held_back_whole(fields):
    c = cfg(fields/"old", fields/"new", val_fraction=.3, val_collections=["south"], split_seed=1)
    def named(*names): return c.model_copy(update=dict(val_collections=names))
    ds = open_dataset(c)
    parts = split(ds, c)
    assert {i.collection for i in parts.out.items} == {"owner/south"} and len(parts.out) == 4
    assert {i.collection for p in parts[:2] for i in p.items} == {"owner/north"}
    assert len(parts.train) + len(parts.val) == 8
    assert split(ds, named("owner/south")).out == parts.out
    assert split(ds, named()) == (*split_by_source(ds, .3, 1), None)
    with pytest.raises(ConfigError, match=r"sout: no such.*owner/north, owner/south"): split(ds, named("sout"))
    with pytest.raises(ConfigError, match=r"MANIFEST\.csv"): split(fake([1, 1]), c)
    with pytest.raises(DataError, match="none can be held back"): split(ds, named("north", "south"))


def test_what_looks_like_a_collection_held_back_is_not_learned_from():
    ds = join(fake([1] * 30), fake([1] * 10, "b"), alike=[(30, 4), (31, 9)])
    ds = replace(ds, items=tuple(replace(i, collection="b" if i.folder == "1" else "a") for i in ds.items))
    parts = split(ds, DataConfig(val_fraction=.2, val_collections=["b"]))
    left = {i.sha256 for p in parts[:2] for i in p.items}
    assert len(parts.out) == 10 and left == {i.sha256 for k, i in enumerate(ds.items[:30]) if k not in (4, 9)}


def test_odds():
    ds = fake([1] * 100)
    assert np.allclose(odds(ds), .01)
    tags = ["leaf"] * 81 + ["apple-orchard"] * 16 + ["moon"] * 2 + ["sun"]
    p = odds(replace(ds, items=tuple(replace(i, tag=tag) for i, tag in zip(ds.items, tags, strict=True))))
    assert p.sum() == pytest.approx(1)
    assert p.max() <= .04 + 1e-9 and np.allclose(p[97:], .04)            # the small families are at the limit
    assert p[:81].sum() / p[81:97].sum() == pytest.approx(9 / 4)         # the roots of 81 and 16


@pytest.mark.skipif(not (SHARED/"train_more").is_dir(), reason="needs ../shared/data")
def test_what_base_never_saw():
    "The 20 crops that the shipped base held back stay held back, and of five collections nothing is learned"
    out = ["citrus_leaves", "thai-banana-dataset", "pyDGS", "budgie-backgrounds", "pop-os/wallpapers"]
    c = cfg(SHARED/"train", SHARED/"train_more", patch=128, val_fraction=.05, val_collections=out)
    ds = open_dataset(c, progress=False)
    parts = split(ds, c)
    assert [len(p) for p in parts] == [1131, 59, 132]
    held = DataSet(SHARED, tuple(i for i in parts.val.items if i.folder == "train"), "clean")
    assert len(held) == 20 and held.digest.startswith("a808e50bde98a193")    # of the split that base was trained on
    assert {i.collection.rpartition("/")[2] for i in parts.out.items} == {n.rpartition("/")[2] for n in out}
    assert odds(parts.train).max() * 1131 < 4
