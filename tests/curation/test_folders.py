"Kinds, pairs and sources: what names and tables tell of pictures, and what is wrong with them."
import logging
import os
import shutil
import unicodedata

import numpy as np
import pytest
from made_pictures import cfg, window, write, write_pair, write_photos

from agri_cae.config import ConfigError, DataError
from agri_cae.curation.checks import CheckLimits, check_images
from agri_cae.curation.splits import split_by_source
from agri_cae.data import Crops, load_arrays, open_dataset


@pytest.fixture
def photos(tmp_path): return write_photos(tmp_path/"set")


def test_pairs_by_suffix_folder_and_unicode(tmp_path):
    write_pair(tmp_path/"a", "", 0)                                       # nothing before _noisy
    write_pair(tmp_path/"a", "x", 1, "x_NOISY.png", "x_Clean.PNG")
    decomposed, composed = (unicodedata.normalize(form, "é") for form in ("NFD", "NFC"))
    write_pair(tmp_path/"a", "é", 2, f"{decomposed}_noisy.png", f"{composed}_clean.png")
    write_pair(tmp_path/"a", "sub/x", 3)
    a = open_dataset(cfg(tmp_path/"a"))
    for k in range(3): write_pair(tmp_path/"b", "", k, f"noisy/d/IMG {k}.png", f"clean/d/IMG {k}.png")
    b = open_dataset(cfg(tmp_path/"b"))
    assert (a.kind, len(a), b.kind, len(b)) == ("paired", 4, "paired", 3)
    for ds in (a, b):
        for noisy, clean in load_arrays(ds): assert 5 < np.abs(noisy.astype(int) - clean).mean() < 25
        x, y = Crops(load_arrays(ds), 64, 32, 1)[0]
        assert np.abs(x.astype(int) - y).mean((1, 2, 3)).max() < 25       # not aligned it would be far more


@pytest.mark.parametrize("spoil, word", [
    (lambda d: (d/"a_clean.png").unlink(), r"a_noisy\.png"),
    (lambda d: write(d/"c_clean.png", window(9)), r"c_clean\.png"),
    (lambda d: write(d/"preview.png", window(9)), r"preview\.png"),
    (lambda d: write(d/"a_clean.png", window(0, 100)), "100 x 100 x 3"),
    (lambda d: write(d/"a_clean.png", window(0)[..., :1]), "left out|bands|x 1"),
    (lambda d: shutil.copy(d/"a_noisy.png", d/"a_noisy.jpg"), "same picture"),
])
def test_incomplete_pairs_are_named(tmp_path, spoil, word):
    write_pair(tmp_path, "a", 0)
    write_pair(tmp_path, "b", 1)
    spoil(tmp_path)
    with pytest.raises(DataError, match=word):
        open_dataset(cfg(tmp_path, kind="paired"), limits=CheckLimits(channels=None), check=False)


def test_noisy_files_are_never_taken_for_clean_ones(tmp_path):
    for k in range(3): write_pair(tmp_path, f"p{k}", k)
    for f in tmp_path.glob("*_clean.png"): f.unlink()
    ds = open_dataset(cfg(tmp_path))
    assert ds.kind == "noisy" and len(load_arrays(ds)) == 3
    with pytest.raises(DataError, match=r"without a clean reference.*Train on"): split_by_source(ds, .2)


def test_many_noisy_shots_of_one_scene_stay_and_stay_together(tmp_path):
    for k in range(3):
        for shot in range(2):
            noisy, _ = write_pair(tmp_path, f"scene{k}_{shot}", k)
            noise = np.random.default_rng(shot + 10 * k).normal(0, 20, window(k).shape)
            write(noisy, np.clip(window(k) + noise, 0, 255).astype(np.uint8))
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
    rows = [f"set/field_{k//2}/IMG_{k}.png,repo,photo{k//3}.jpg" for k in range(5)]
    (photos.parent/"MANIFEST.csv").write_text("\n".join(["file,source_repo,path_in_repo", *rows]))
    # what the table leaves out is its own source
    assert sources() == ["repo/photo0.jpg"] * 3 + ["repo/photo1.jpg"] * 2 + own[5:]
    (photos/"MANIFEST.csv").write_bytes(b'\xef\xbb\xbffile,source\nfield_0/IMG_0.png,"a, b"\nnot there.png,c\n')
    assert sources() == ["a, b", *own[1:]]                                # the nearer table wins
    assert sources(source_pattern=r"IMG_(\d)") == list("012345")          # and a pattern above all
    (photos/"MANIFEST.csv").write_text("name,colour\na,b\n")
    with caplog.at_level(logging.WARNING, "agri_cae"): assert sources()[0] == "repo/photo0.jpg"
    assert "names no sources" in caplog.text
    (photos/"MANIFEST.csv").write_bytes(b"\xff\xfe\x00file")
    with pytest.raises(DataError, match=r"MANIFEST\.csv"): sources()


@pytest.mark.parametrize("pattern, error", [
    ("(", ConfigError), ("IMG", ConfigError), ("IMG_([0-3])", DataError), ("IMG_4(x)?", DataError)])
def test_bad_source_patterns(photos, pattern, error):
    with pytest.raises(error, match="source_pattern"): open_dataset(cfg(photos, source_pattern=pattern))


def test_bad_folders(tmp_path, monkeypatch):
    (tmp_path/"file.txt").write_text("x")
    (tmp_path/"empty").mkdir()
    for bad in ("none", "file.txt", "empty"):
        for f in (lambda p: open_dataset(cfg(p)), check_images):
            with pytest.raises(DataError, match=bad): f(tmp_path/bad)
    write(tmp_path/"locked"/"a.png", window(0))
    def scandir(path="."): raise PermissionError(13, "Permission denied", str(path))
    with monkeypatch.context() as m:
        m.setattr(os, "scandir", scandir)
        with pytest.raises(DataError, match=r"locked.*Permission denied"): open_dataset(cfg(tmp_path/"locked"))
