"What a data set promises: no leakage, a digest that names its content, batches that can be made again, and a clear word on every bad file."
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agri_cae import data
from agri_cae.config import ConfigError, DataConfig, DataError, OutputError
from agri_cae.curation import checks as check
from agri_cae.curation.checks import CheckLimits, CheckReport, check_file, check_images
from agri_cae.curation.families import odds
from agri_cae.data import Crops, DataSet, Item, load_arrays, open_dataset, split, split_by_source, validation_crops
from agri_cae.io.images import Picture, read_image, sample, write_image

SHARED = Path(__file__).parents[2]/"shared"/"data"
PHOTO = read_image(sample("field_camera")).data


def write(path, a, format="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(Picture(np.ascontiguousarray(a)), path, format, overwrite=True)
    return path


def window(k, side=128):
    "Different parts of the photo"
    y, x = k * 37 % (PHOTO.shape[0] - side), k * 83 % (PHOTO.shape[1] - side)
    return PHOTO[y:y+side, x:x+side]


def cfg(folder, **kw): return DataConfig(folder=str(folder), **kw)


@pytest.fixture
def photos(tmp_path):
    for k in range(6): write(tmp_path/"set"/f"field_{k//2}"/f"IMG_{k}.png", window(k))
    return tmp_path/"set"


def fake(sizes, prefix="", alike=()):
    "A DataSet of sources with so many pictures each; `alike` lists pairs of (source, source) that share a picture up to 3 bits"
    def digest(*a): return hashlib.sha256(repr((prefix, a)).encode()).hexdigest()
    items = [Item(Path(f"{s}_{k}.png"), f"s{s}", digest(s, k), 100, 100, 3, phash=digest("hash", s, k)[:16]) for s, n in enumerate(sizes) for k in range(n)]
    for a, b in alike:
        i, j = (next(n for n, it in enumerate(items) if it.source == f"s{s}") for s in (a, b))
        items[j] = replace(items[j], phash=f"{int(items[i].phash, 16) ^ 0b10101:016x}")
    return DataSet(Path("."), tuple(items), "clean")


# the split

@pytest.mark.parametrize("seed", range(30))
def test_no_source_and_no_likeness_on_both_sides(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, rng.integers(2, 60))
    alike = rng.permutation(len(sizes))[:len(sizes) // 5 * 2].reshape(-1, 2)
    ds, fraction = fake(sizes, alike=alike), rng.uniform(.02, .9)
    groups = data._groups(ds.items, CheckLimits().near)
    if len(groups) < 2: pytest.skip("everything hangs together")
    train, val = split_by_source(ds, fraction, seed)
    assert len(train) and len(val) and {*train.items} | {*val.items} == {*ds.items} and not {*train.items} & {*val.items}
    assert not set(train.sources) & set(val.sources)
    for a, b in alike: assert (f"s{a}" in train.sources) == (f"s{b}" in train.sources)
    assert abs(len(val) - fraction * len(ds)) <= max(map(len, groups))


def test_split_depends_on_content_and_seed_only():
    ds = fake([3, 1, 4, 1, 5, 9, 2, 6] * 3)
    val = split_by_source(ds, .2, 7)[1]
    moved = tuple(replace(i, path=Path("elsewhere")/i.path.name, source=f"renamed {i.source}") for i in reversed(ds.items))
    assert split_by_source(replace(ds, items=moved), .2, 7)[1].digest == val.digest
    assert len({split_by_source(ds, .2, s)[1].digest for s in range(10)}) > 5


def test_every_picture_is_held_back_for_some_seed():
    ds = fake([1, 2, 3] * 5)
    assert {i.sha256 for s in range(60) for i in split_by_source(ds, .2, s)[1].items} == {i.sha256 for i in ds.items}


@pytest.mark.parametrize("fraction", [0., 1., -1., 2.])
def test_impossible_share(fraction):
    with pytest.raises(ConfigError, match="val_fraction"): split_by_source(fake([1, 1]), fraction)


def test_two_pictures_are_enough_and_one_source_is_not():
    assert [len(s) for s in split_by_source(open_dataset(DataConfig()), .1)] == [1, 1]
    with pytest.raises(DataError, match="one source.*source_pattern"): split_by_source(fake([5]), .1)
    with pytest.raises(DataError, match="one source"): split_by_source(fake([2, 2], alike=[(0, 1)]), .1)


# several folders, and collections that are held back whole

def both(*folders, **kw): return DataConfig(folder=[str(f) for f in folders], **kw)


@pytest.fixture
def fields(tmp_path):
    "Two folders with the same names, and a table above them"
    rows = ["file,source,collection,tag"]
    for k in range(12):
        f = f"{'old' if k < 6 else 'new'}/IMG_{k % 6}.png"
        write(tmp_path/"data"/f, window(k)); rows.append(f"{f},photo {k // 2},{'owner/north' if k < 8 else 'owner/south'},{'leaf' if k < 10 else 'drone-soil'}")
    (tmp_path/"data"/"MANIFEST.csv").write_text("\n".join(rows))
    return tmp_path/"data"


def test_several_folders_are_one_data_set(fields, tmp_path):
    ds = open_dataset(both(fields/"old", fields/"new"))
    names = [f"{d}/IMG_{k}.png" for d in ("old", "new") for k in range(6)]
    assert [i["file"] for i in ds.manifest()["items"]] == names == [c.file for c in ds.report.files] and ds.name == "old + new"
    assert ds.items[8].collection == "owner/south" and ds.items[11].tag == "drone-soil" and ds.items[11].family == "drone"
    assert len(load_arrays(ds)) == 12 and str(tmp_path) not in json.dumps(ds.manifest())
    shutil.copytree(fields/"new", tmp_path/"far"/"away"/"new")
    assert open_dataset(both(tmp_path/"far"/"away"/"new", fields/"old")).digest == ds.digest
    one = open_dataset(both(fields/"old"))
    assert one == open_dataset(cfg(fields/"old")) and one.name == "old" and one.manifest()["items"][0]["file"] == "IMG_0.png"
    shutil.copy(fields/"old"/"IMG_0.png", fields/"new"/"once more.png")
    assert [(c.file, c.reason, c.of) for c in open_dataset(both(fields/"old", fields/"new")).report.left_out] == [("new/once more.png", "duplicate", "old/IMG_0.png")]


def test_sources_of_several_folders(fields):
    "A pattern sees the folder's name; without table or pattern, the same name in two folders is two sources"
    assert {i.source for i in open_dataset(both(fields/"old", fields/"new", source_pattern="(old|new)/")).items} == {"old", "new"}
    (fields/"MANIFEST.csv").unlink()
    assert len(open_dataset(both(fields/"old", fields/"new")).sources) == 12


def test_folders_that_do_not_go_together(fields):
    for bad in ((fields, fields/"old"), (fields/"old", fields/"new"/".."/"old")):
        with pytest.raises(ConfigError, match="holds the other"): open_dataset(both(*bad))
    pair(fields/"pairs", "a")
    with pytest.raises(DataError, match="clean pictures, others hold paired"): open_dataset(both(fields/"old", fields/"pairs"))
    with pytest.raises(DataError, match="none"): open_dataset(both(fields/"old", fields/"none"))
    pair(fields/"more", "b", 3)
    ds = open_dataset(both(fields/"pairs", fields/"more"))
    assert ds.kind == "paired" and ds.manifest()["items"][1]["noisy"] == "more/b_noisy.png"


def join(*parts, alike=()):
    "Data sets of `fake` as folders of one; `alike` lists pairs of indices that share a picture up to 3 bits"
    items = [replace(i, folder=str(k), source=f"{k} {i.source}") for k, p in enumerate(parts) for i in p.items]
    for a, b in alike: items[b] = replace(items[b], phash=f"{int(items[a].phash, 16) ^ 0b10101:016x}")
    return replace(parts[0], items=tuple(items))


def test_each_folder_is_split_by_itself():
    a, b = fake([1, 2, 3] * 8), fake([4, 1, 1] * 9, "b")
    alone = {i.sha256 for i in split_by_source(a, .1, 3)[1].items}
    train, val = split_by_source(join(a, b), .1, 3)
    assert {i.sha256 for i in val.items if i.folder == "0"} == alone and 3 <= sum(i.folder == "1" for i in val.items) <= 8
    train, val = split_by_source(join(fake([3]), fake([4], "b")), .3)                       # of one source each
    assert {len(train), len(val)} == {3, 4}


@pytest.mark.parametrize("seed", range(10))
def test_likeness_across_folders(seed):
    a, b = fake([1] * 40), fake([2] * 40, "b")
    ds = join(a, b, alike=[(k, 40 + 2 * k) for k in range(20)])
    train, val = split_by_source(ds, .2, seed)
    assert {i.sha256 for i in val.items if i.folder == "0"} == {i.sha256 for i in split_by_source(a, .2, seed)[1].items}   # the first folder decides
    side = {i.sha256: part is val for part in (train, val) for i in part.items}
    assert len(side) == 120 and all(side[ds.items[k].sha256] == side[ds.items[40 + 2 * k].sha256] for k in range(20))


def test_collections_are_held_back_whole(fields):
    c = both(fields/"old", fields/"new", val_fraction=.3, val_collections=["south"])
    ds = open_dataset(c); c = c.model_copy(update=dict(split_seed=1)); parts = split(ds, c)
    assert {i.collection for i in parts.out.items} == {"owner/south"} and len(parts.out) == 4
    assert {i.collection for p in parts[:2] for i in p.items} == {"owner/north"} and len(parts.train) + len(parts.val) == 8
    assert split(ds, c.model_copy(update=dict(val_collections=("owner/south",)))).out == parts.out
    plain = c.model_copy(update=dict(val_collections=()))
    assert split(ds, plain) == (*split_by_source(ds, .3, 1), None)
    with pytest.raises(ConfigError, match="sout: no such.*owner/north, owner/south"): split(ds, c.model_copy(update=dict(val_collections=("sout",))))
    with pytest.raises(ConfigError, match="MANIFEST.csv"): split(fake([1, 1]), c)
    with pytest.raises(DataError, match="none can be held back"): split(ds, c.model_copy(update=dict(val_collections=("north", "south"))))


def test_what_looks_like_a_collection_held_back_is_not_learned_from():
    ds = join(fake([1] * 30), fake([1] * 10, "b"), alike=[(30, 4), (31, 9)])
    ds = replace(ds, items=tuple(replace(i, collection="b" if i.folder == "1" else "a") for i in ds.items))
    parts = split(ds, DataConfig(val_fraction=.2, val_collections=["b"]))
    left = {i.sha256 for p in parts[:2] for i in p.items}
    assert len(parts.out) == 10 and left == {i.sha256 for k, i in enumerate(ds.items[:30]) if k not in (4, 9)}


def test_odds():
    ds = fake([1] * 100)
    assert np.allclose(odds(ds), .01)
    tagged = replace(ds, items=tuple(replace(i, tag="leaf" if k < 81 else "apple-orchard" if k < 97 else "moon" if k < 99 else "sun") for k, i in enumerate(ds.items)))
    p = odds(tagged)
    assert p.sum() == pytest.approx(1) and p.max() <= .04 + 1e-9 and np.allclose(p[97:], .04)      # the small families are at the limit
    assert p[:81].sum() / p[81:97].sum() == pytest.approx(9 / 4)                              # the roots of 81 and 16


@pytest.mark.skipif(not (SHARED/"train_more").is_dir(), reason="needs ../shared/data")
def test_what_base_never_saw():
    "The 20 crops that the shipped base held back stay held back, and of five collections nothing is learned"
    out = ["citrus_leaves", "thai-banana-dataset", "pyDGS", "budgie-backgrounds", "pop-os/wallpapers"]
    c = both(SHARED/"train", SHARED/"train_more", patch=128, val_fraction=.05, val_collections=out)
    ds = open_dataset(c, progress=False); parts = split(ds, c)
    assert [len(p) for p in parts] == [1131, 59, 132]
    held = DataSet(SHARED, tuple(i for i in parts.val.items if i.folder == "train"), "clean")
    assert len(held) == 20 and held.digest.startswith("a808e50bde98a193")                    # of the split that base was trained on
    assert {i.collection.rpartition("/")[2] for i in parts.out.items} == {n.rpartition("/")[2] for n in out}
    assert odds(parts.train).max() * 1131 < 4


# the digest and the manifest

def test_digest_names_the_content(photos, tmp_path):
    ds = open_dataset(cfg(photos))
    moved = shutil.copytree(photos, tmp_path/"Felder süd 🌾")
    assert open_dataset(cfg(moved)).digest == ds.digest
    os.rename(moved/"field_0"/"IMG_0.png", moved/"zz.png")
    assert open_dataset(cfg(moved)).digest == ds.digest == replace(ds, items=ds.items[::-1]).digest
    b = bytearray((moved/"zz.png").read_bytes()); b += b"\0"          # one byte more behind the image's end
    (moved/"zz.png").write_bytes(b)
    assert open_dataset(cfg(moved)).digest != ds.digest
    assert replace(ds, items=ds.items[1:]).digest != ds.digest
    assert open_dataset(cfg(photos, kind="noisy")).digest != ds.digest


def test_manifest(photos, tmp_path):
    ds = open_dataset(cfg(photos))
    ds.write_manifest(tmp_path/"manifest.json")
    text = (tmp_path/"manifest.json").read_text("utf-8")
    m = json.loads(text)
    assert str(tmp_path) not in text and m["digest"] == ds.digest and m["pictures"] == 6 == m["sources"]
    assert [i["file"] for i in m["items"]][:2] == ["field_0/IMG_0.png", "field_0/IMG_1.png"]
    for i in m["items"]: assert hashlib.sha256((photos/i["file"]).read_bytes()).hexdigest() == i["sha256"]
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path/"r.json").write_text("old")
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"): CheckReport().save(tmp_path/"r.json")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"] and (tmp_path/"r.json").read_text() == "old"


# kinds and sources

def pair(folder, name, k=0, noisy=None, clean=None):
    a = window(k)
    n = np.clip(a + np.random.default_rng(k).normal(0, 20, a.shape), 0, 255).astype(np.uint8)
    return write(folder/(noisy or f"{name}_noisy.png"), n), write(folder/(clean or f"{name}_clean.png"), a)


def test_pairs_by_suffix_folder_and_unicode(tmp_path):
    pair(tmp_path/"a", "", 0)                                                                # nothing before _noisy
    pair(tmp_path/"a", "x", 1, "x_NOISY.png", "x_Clean.PNG")
    pair(tmp_path/"a", "é", 2, unicodedata.normalize("NFD", "é_noisy.png"), unicodedata.normalize("NFC", "é_clean.png"))
    pair(tmp_path/"a", "sub/x", 3)
    a = open_dataset(cfg(tmp_path/"a"))
    for k in range(3): pair(tmp_path/"b", "", k, f"noisy/d/IMG {k}.png", f"clean/d/IMG {k}.png")
    b = open_dataset(cfg(tmp_path/"b"))
    assert (a.kind, len(a), b.kind, len(b)) == ("paired", 4, "paired", 3)
    for ds in (a, b):
        for noisy, clean in load_arrays(ds): assert 5 < np.abs(noisy.astype(int) - clean).mean() < 25
        x, y = Crops(load_arrays(ds), 64, 32, 1)[0]
        assert np.abs(x.astype(int) - y).mean((1, 2, 3)).max() < 25                           # not aligned it would be far more


@pytest.mark.parametrize("spoil, word", [
    (lambda d: (d/"a_clean.png").unlink(), "a_noisy.png"),
    (lambda d: write(d/"c_clean.png", window(9)), "c_clean.png"),
    (lambda d: write(d/"preview.png", window(9)), "preview.png"),
    (lambda d: write(d/"a_clean.png", window(0, 100)), "100 x 100 x 3"),
    (lambda d: write(d/"a_clean.png", window(0)[..., :1]), "left out|bands|x 1"),
    (lambda d: shutil.copy(d/"a_noisy.png", d/"a_noisy.jpg"), "same picture"),
])
def test_incomplete_pairs_are_named(tmp_path, spoil, word):
    pair(tmp_path, "a", 0); pair(tmp_path, "b", 1)
    spoil(tmp_path)
    with pytest.raises(DataError, match=word): open_dataset(cfg(tmp_path, kind="paired"), limits=CheckLimits(channels=None), check=False)


def test_noisy_files_are_never_taken_for_clean_ones(tmp_path):
    for k in range(3): pair(tmp_path, f"p{k}", k)
    for f in tmp_path.glob("*_clean.png"): f.unlink()
    ds = open_dataset(cfg(tmp_path))
    assert ds.kind == "noisy" and len(load_arrays(ds)) == 3
    with pytest.raises(DataError, match="without a clean reference.*Train on"): split_by_source(ds, .2)


def test_many_noisy_shots_of_one_scene_stay_and_stay_together(tmp_path):
    for k in range(3):
        for shot in range(2):
            n, c = pair(tmp_path, f"scene{k}_{shot}", k)
            write(n, np.clip(window(k) + np.random.default_rng(shot + 10 * k).normal(0, 20, window(k).shape), 0, 255).astype(np.uint8))
    ds = open_dataset(cfg(tmp_path))
    assert len(ds) == 6
    for seed in range(20):
        train, val = split_by_source(ds, .3, seed)
        assert not {i.path.name[:6] for i in train.items} & {i.path.name[:6] for i in val.items}


def test_sources_from_pattern_and_tables(photos, caplog):
    def sources(**kw): return [i.source for i in open_dataset(cfg(photos, **kw)).items]
    own = sources()
    assert own == [f"field_{k//2}/IMG_{k}.png" for k in range(6)]
    assert sources(source_pattern=r"(field_\d)") == ["field_0"] * 2 + ["field_1"] * 2 + ["field_2"] * 2
    above = photos.parent/"MANIFEST.csv"
    above.write_text("file,source_repo,path_in_repo\n" + "".join(f"set/field_{k//2}/IMG_{k}.png,repo,photo{k//3}.jpg\n" for k in range(5)))
    assert sources() == ["repo/photo0.jpg"] * 3 + ["repo/photo1.jpg"] * 2 + own[5:]          # what the table leaves out is its own source
    (photos/"MANIFEST.csv").write_bytes('\ufefffile,source\n'.encode() + b'field_0/IMG_0.png,"a, b"\nnot there.png,c\n')
    assert sources() == ["a, b"] + own[1:]                                                   # the nearer table wins
    assert sources(source_pattern=r"IMG_(\d)") == list("012345")                             # and a pattern above all
    (photos/"MANIFEST.csv").write_text("name,colour\na,b\n")
    with caplog.at_level(logging.WARNING, "agri_cae"): assert sources()[0] == "repo/photo0.jpg"
    assert "names no sources" in caplog.text
    (photos/"MANIFEST.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(DataError, match="MANIFEST.csv"): sources()


@pytest.mark.parametrize("pattern, error", [("(", ConfigError), ("IMG", ConfigError), ("IMG_([0-3])", DataError), ("IMG_4(x)?", DataError)])
def test_bad_source_patterns(photos, pattern, error):
    with pytest.raises(error, match="source_pattern"): open_dataset(cfg(photos, source_pattern=pattern))


# bad folders and files

def test_bad_folders(tmp_path, monkeypatch):
    (tmp_path/"file.txt").write_text("x"); (tmp_path/"empty").mkdir()
    for bad in ("none", "file.txt", "empty"):
        for f in (lambda p: open_dataset(cfg(p)), check_images):
            with pytest.raises(DataError, match=bad): f(tmp_path/bad)
    write(tmp_path/"locked"/"a.png", window(0))
    def scandir(path="."): raise PermissionError(13, "Permission denied", str(path))
    with monkeypatch.context() as m:
        m.setattr(os, "scandir", scandir)
        with pytest.raises(DataError, match="locked.*Permission denied"): open_dataset(cfg(tmp_path/"locked"))


def test_unreadable_files(photos, monkeypatch):
    real = Path.read_bytes
    def read_bytes(self):
        if self.name == "IMG_3.png": raise PermissionError(13, "Permission denied", str(self))
        return real(self)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    ds = open_dataset(cfg(photos))
    assert len(ds) == 5 and [(c.file, c.reason, c.detail) for c in ds.report.left_out] == [("field_1/IMG_3.png", "unreadable", "Permission denied")]
    with pytest.raises(DataError, match="IMG_3.png.*Permission denied"): open_dataset(cfg(photos), check=False)


@pytest.mark.parametrize("share", [0, .01, .1, .5, .9, .999])
@pytest.mark.parametrize("name, format", [("a.jpg", "jpeg"), ("a.png", "png"), ("a.tif", "tiff"), ("a.webp", "webp")])
def test_truncated_files_are_found(tmp_path, share, name, format):
    f = write(tmp_path/name, PHOTO, format)
    b = f.read_bytes(); f.write_bytes(b[:int(len(b) * share)])
    c = check_file(f)
    assert c.reason == "corrupt" and c.detail and "\n" not in c.detail


def test_the_check_names_each_fault(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for k in range(5): write(tmp_path/f"good{k}.png", window(k))
    write(tmp_path/"again.png", np.repeat(np.repeat(window(0), 2, 0), 2, 1))                # larger, so kept instead of good0
    shutil.copy(tmp_path/"good1.png", tmp_path/"good1 - Kopie.png")
    write(tmp_path/"tiny.png", window(6, 63)); write(tmp_path/"grey.png", window(7)[..., :1])
    write(tmp_path/"black.png", np.where(rng.random((128, 128, 1)) < .8, 0, 200).astype(np.uint8).repeat(3, 2))
    write(tmp_path/"blank.png", np.full((128, 128, 3), 90, np.uint8))
    write(tmp_path/"nan.tif", np.where(np.arange(128)[:, None, None] == 5, np.nan, window(8) / 255).astype(np.float32), "tiff")
    (tmp_path/"page.jpg").write_text("<html></html>")
    r = check_images(tmp_path)
    assert {c.file: (c.reason, c.of) for c in r.left_out} == {"good0.png": ("near-duplicate", "again.png"), "good1 - Kopie.png": ("duplicate", "good1.png"), "tiny.png": ("tiny", ""),
        "grey.png": ("bands", ""), "black.png": ("exposure", ""), "blank.png": ("blank", ""), "nan.tif": ("corrupt", ""), "page.jpg": ("corrupt", "")}
    assert len(list(tmp_path.iterdir())) == 13                                               # nothing was deleted
    for c in r.left_out: assert c.file in r.table() and c.reason in r.summary()
    with caplog.at_level(logging.WARNING, "agri_cae"): ds = open_dataset(cfg(tmp_path, patch=64))
    assert {i.path.name for i in ds.items} == {c.file for c in r.kept} and r.summary() in caplog.text
    with pytest.raises(DataError, match="corrupt"): open_dataset(cfg(tmp_path), check=False)
    r.save(tmp_path/"report.json"); assert CheckReport.model_validate_json((tmp_path/"report.json").read_text("utf-8")) == r


def test_check_false_keeps_everything_that_can_be_read(tmp_path):
    write(tmp_path/"a.png", window(0, 20)); write(tmp_path/"b.png", window(0, 20)); write(tmp_path/"c.png", window(1, 200))
    ds = open_dataset(cfg(tmp_path), check=False)
    assert len(ds) == 3 and Crops(load_arrays(ds), 96, 4, 1)[0][0].shape == (4, 96, 96, 3)


def test_near_duplicates_against_brute_force():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**63, 300, np.uint64)
    for k in range(0, 300, 3): hashes[k+1] = hashes[k] ^ np.uint64(2**rng.integers(0, 8) | 2**rng.integers(8, 16) | 2**40)
    files = [check.FileCheck(file=f"{k:03}", sha256=str(k), height=100, width=100, phash=f"{h:016x}") for k, h in enumerate(hashes)]
    bits = np.array([[int(b) for b in f"{h:064b}"] for h in hashes])
    kept = []
    for k in range(300):
        if all((bits[k] != bits[j]).sum() > 8 for j in kept): kept.append(k)
    assert [int(c.file) for c in check._repeats(files, CheckLimits(), True) if not c.reason] == kept and 150 < len(kept) < 250


def test_missing_packages_are_named(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ConfigError, match=r'imagehash.*pip install "agri-cae\[train\]"'): check_images(photos)


def test_the_check_needs_no_keras():
    import subprocess
    code = "import sys; from agri_cae.curation.checks import check_images; from agri_cae.io.images import sample; check_images(sample('airborne').parent, progress=False); print({'keras', 'tensorflow', 'matplotlib'} & set(sys.modules))"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert r.stdout.strip() == "set()" and not r.stderr, r.stderr


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_a_curated_set_stays_whole():
    ds = open_dataset(cfg(SHARED/"train"))
    assert len(ds) == 404 and not ds.report.left_out and not ds.report.warned
    assert len(ds.sources) == 291 and len(data._groups(ds.items, 8)) == 291
    both = check_images(SHARED/"real_pairs")
    assert both.kind == "paired" and len(both.kept) == 8


# arrays and crops

def test_depths_alpha_and_grey(tmp_path):
    write(tmp_path/"a.png", (window(0).astype(np.uint16) * 257)); write(tmp_path/"b.png", window(1))
    write_image(Picture(np.ascontiguousarray(window(2)), alpha=np.full((128, 128), 9, np.uint8)), tmp_path/"c.png", "png")
    for a, k in zip(load_arrays(open_dataset(cfg(tmp_path))), range(3)): assert a.dtype == np.uint8 and (a == window(k)).all()
    for k in (1, 2): write(tmp_path/"dn"/f"{k}.png", 5000 + window(k)[..., 1:2].astype(np.uint16) * 4)
    with pytest.raises(DataError, match="nothing is left.*2 blank"): open_dataset(cfg(tmp_path/"dn"))           # a fraction of a step on the 8-bit scale
    ds = open_dataset(cfg(tmp_path/"dn", value_range=(5000, 5000 + 4 * 255)))
    for a, k in zip(load_arrays(ds), (1, 2)): assert (a == window(k)[..., 1:2]).all()


def test_a_changed_or_missing_file_is_noticed(photos):
    ds = open_dataset(cfg(photos))
    write(photos/"field_0"/"IMG_0.png", window(9))
    with pytest.raises(DataError, match="IMG_0.png.*changed"): load_arrays(ds)
    (photos/"field_0"/"IMG_0.png").unlink()
    with pytest.raises(DataError, match="IMG_0.png"): load_arrays(ds)


ARRAYS = [np.random.default_rng(k).integers(0, 256, (60 + 11 * k, 80 - 7 * k, 3), np.uint8) for k in range(4)]

def test_the_stream_of_crops_is_fixed():
    "Resuming a run that an earlier version began needs the same batches"
    c = Crops(ARRAYS, 32, 8, 10, seed=3, epoch=2)
    assert hashlib.sha256(b"".join(c[k][0].tobytes() for k in range(10))).hexdigest()[:16] == "8d4b2b53051faf19"


def test_crops_come_from_where_they_should():
    "Every crop, turned back, is found in a picture"
    x, y = Crops(ARRAYS, 16, 40, 1, seed=5)[0]
    assert x is y
    for c in x:
        turns = [t for r in range(4) for t in (np.rot90(c, r), np.rot90(c, r)[:, ::-1])]
        assert any((np.lib.stride_tricks.sliding_window_view(a[..., 0], (16, 16)) == t[..., 0]).all((-1, -2)).any() for a in ARRAYS for t in turns)


def test_shrunk_crops_average():
    fine = np.indices((400, 400)).sum(0)[..., None].repeat(3, 2) % 2 * 200                   # a chequerboard of single pixels
    flat = Crops([fine.astype(np.uint8)], 32, 64, 1, seed=0, scale_jitter=.25)[0][0].std((1, 2, 3))
    assert (flat < 60).mean() > .8 and Crops([fine.astype(np.uint8)], 32, 64, 1, seed=0)[0][0].std((1, 2, 3)).min() > 99


class Seen:
    "What a training run was fed, epoch by epoch"
    def __init__(self, crops, epochs, initial=0):
        import keras
        seen = self.batches = []
        class Identity(keras.Model):
            def __init__(self): super().__init__(); self.w = self.add_weight(shape=())
            def train_step(self, batch):
                seen.append(hashlib.sha256(np.asarray(batch[0]).tobytes()).hexdigest())
                return {"loss": 0.}
        m = Identity(); m.compile(run_eagerly=True)
        m.fit(crops, initial_epoch=initial, epochs=epochs, shuffle=False, verbose=0)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_resumed_fit_sees_the_same_batches(workers):
    def crops(epoch=0): return Crops(ARRAYS, 16, 2, 5, seed=1, epoch=epoch, workers=workers)
    whole = Seen(crops(), 4).batches
    assert len(set(whole)) == 20
    assert Seen(crops(2), 4, initial=2).batches == whole[10:]
    assert [hashlib.sha256(c[k][0].tobytes()).hexdigest() for e in range(4) for c in [crops(e)] for k in range(5)] == whole


def test_crops_from_threads_are_the_same():
    c = Crops(ARRAYS, 16, 2, 50, seed=1)
    want, got = [c[k][0] for k in range(50)], [None] * 50
    def work(part):
        for k in range(part, 50, 4): got[k] = c[k][0]
    threads = [threading.Thread(target=work, args=(p,)) for p in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert all((a == b).all() for a, b in zip(want, got))


def test_odds_decide_which_picture_is_drawn():
    marks = [np.full((40, 40, 1), k, np.uint8) for k in range(3)]
    def drawn(epoch=0, **kw): return np.concatenate([Crops(marks, 16, 50, 20, epoch=epoch, **kw)[k][0][:, 0, 0, 0] for k in range(20)])
    assert (drawn(odds=[0, 5, 0]) == 1).all() and (drawn(odds=[0, 0, 1]) == 2).all() and abs((drawn(odds=[1, 2, 1]) == 1).mean() - .5) < .06
    assert (drawn(odds=[1, 2, 1]) == drawn(odds=[.25, .5, .25])).all() and (drawn(1, odds=[1, 2, 1]) != drawn(odds=[1, 2, 1])).any()
    for bad in ([1, 1], [1, -1, 1], [0, 0, 0], [1, np.nan, 1]):
        with pytest.raises(ConfigError, match="odds"): Crops(marks, 16, 1, 1, odds=bad)


@pytest.mark.parametrize("kw", [dict(patch=0), dict(batch=0), dict(steps=0), dict(scale_jitter=0.), dict(scale_jitter=1.1)])
def test_wrong_crops(kw):
    with pytest.raises(ConfigError, match=next(iter(kw))): Crops(ARRAYS, **dict(dict(patch=8, batch=1, steps=1), **kw))


def test_validation_crops_are_centres():
    v = validation_crops(ARRAYS, 16)
    assert all((a[(a.shape[0]-16)//2:, (a.shape[1]-16)//2:][:16, :16] == c).all() for a, c in zip(ARRAYS, v))
    assert len(validation_crops(ARRAYS * 20, 16, limit=7)) == 7 and validation_crops(ARRAYS, 200).shape == (4, 200, 200, 3)
    with pytest.raises(DataError): validation_crops([])
