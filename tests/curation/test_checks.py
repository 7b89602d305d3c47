"What the check finds in files, and what it makes of a folder."
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_pictures import PHOTO, SHARED, cfg, window, write, write_photos

from agri_cae.config import ConfigError, DataError, OutputError
from agri_cae.curation.checks import CheckReport, FileCheck, check_file, check_images, mark_repeats
from agri_cae.curation.groups import group_items
from agri_cae.data import Crops, load_arrays, open_dataset


@pytest.fixture
def photos(tmp_path): return write_photos(tmp_path/"set")


def test_unreadable_files(photos, monkeypatch):
    real = Path.read_bytes
    def read_bytes(self):
        if self.name == "IMG_3.png": raise PermissionError(13, "Permission denied", str(self))
        return real(self)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    ds = open_dataset(cfg(photos))
    left_out = [(c.file, c.reason, c.detail) for c in ds.report.left_out]
    assert len(ds) == 5 and left_out == [("field_1/IMG_3.png", "unreadable", "Permission denied")]
    with pytest.raises(DataError, match=r"IMG_3\.png.*Permission denied"): open_dataset(cfg(photos), check=False)


@pytest.mark.parametrize("share", [0, .01, .1, .5, .9, .999])
@pytest.mark.parametrize("name, format", [("a.jpg", "jpeg"), ("a.png", "png"), ("a.tif", "tiff"), ("a.webp", "webp")])
def test_truncated_files_are_found(tmp_path, share, name, format):
    f = write(tmp_path/name, PHOTO, format)
    whole = f.read_bytes()
    f.write_bytes(whole[:int(len(whole) * share)])
    c = check_file(f)
    assert c.reason == "corrupt" and c.detail and "\n" not in c.detail


def spoiled_folder(folder):
    "Every fault once"
    rng = np.random.default_rng(0)
    for k in range(5): write(folder/f"good{k}.png", window(k))
    write(folder/"again.png", window(0).repeat(2, 0).repeat(2, 1))                  # larger, so kept instead of good0
    shutil.copy(folder/"good1.png", folder/"good1 - Kopie.png")
    write(folder/"tiny.png", window(6, 63))
    write(folder/"grey.png", window(7)[..., :1])
    write(folder/"black.png", np.where(rng.random((128, 128, 1)) < .8, 0, 200).astype(np.uint8).repeat(3, 2))
    write(folder/"blank.png", np.full((128, 128, 3), 90, np.uint8))
    holes = np.where(np.arange(128)[:, None, None] == 5, np.nan, window(8) / 255)
    write(folder/"nan.tif", holes.astype(np.float32), "tiff")
    (folder/"page.jpg").write_text("<html></html>")


def test_the_check_names_each_fault(tmp_path, caplog):
    spoiled_folder(tmp_path)
    r = check_images(tmp_path)
    assert {c.file: (c.reason, c.of) for c in r.left_out} == {
        "good0.png": ("near-duplicate", "again.png"), "good1 - Kopie.png": ("duplicate", "good1.png"),
        "tiny.png": ("tiny", ""), "grey.png": ("bands", ""), "black.png": ("exposure", ""), "blank.png": ("blank", ""),
        "nan.tif": ("corrupt", ""), "page.jpg": ("corrupt", "")}
    assert len(list(tmp_path.iterdir())) == 13                                      # nothing was deleted
    for c in r.left_out: assert c.file in r.table() and c.reason in r.summary()
    with caplog.at_level(logging.WARNING, "agri_cae"): ds = open_dataset(cfg(tmp_path, patch=64))
    assert {i.path.name for i in ds.items} == {c.file for c in r.kept} and r.summary() in caplog.text
    with pytest.raises(DataError, match="corrupt"): open_dataset(cfg(tmp_path), check=False)
    r.save(tmp_path/"report.json")
    assert CheckReport.model_validate_json((tmp_path/"report.json").read_text("utf-8")) == r


def test_check_false_keeps_everything_that_can_be_read(tmp_path):
    for name, a in dict(a=window(0, 20), b=window(0, 20), c=window(1, 200)).items(): write(tmp_path/f"{name}.png", a)
    ds = open_dataset(cfg(tmp_path), check=False)
    assert len(ds) == 3 and Crops(load_arrays(ds), 96, 4, 1)[0][0].shape == (4, 96, 96, 3)


def test_near_duplicates_against_brute_force():
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**63, 300, np.uint64)
    for k in range(0, 300, 3):
        hashes[k+1] = hashes[k] ^ np.uint64(2**rng.integers(0, 8) | 2**rng.integers(8, 16) | 2**40)
    files = [FileCheck(file=f"{k:03}", sha256=str(k), height=100, width=100, phash=f"{h:016x}")
             for k, h in enumerate(hashes)]
    bits = np.array([[int(b) for b in f"{h:064b}"] for h in hashes])
    kept = []
    for k in range(300):
        if all((bits[k] != bits[j]).sum() > 8 for j in kept): kept.append(k)
    assert [int(c.file) for c in mark_repeats(files, 8) if not c.reason] == kept and 150 < len(kept) < 250
    assert not any(c.reason for c in mark_repeats(files, -1))


def test_missing_packages_are_named(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ConfigError, match=r'imagehash.*pip install "agri-cae\[train\]"'): check_images(photos)


def test_the_check_needs_no_keras():
    code = "import sys; from agri_cae.curation.checks import check_images; from agri_cae.io.images import sample; " \
           "check_images(sample('airborne').parent, progress=False); " \
           "print({'keras', 'tensorflow', 'matplotlib'} & set(sys.modules))"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert r.stdout.strip() == "set()" and not r.stderr, r.stderr


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path/"r.json").write_text("old")
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"): CheckReport().save(tmp_path/"r.json")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"] and (tmp_path/"r.json").read_text() == "old"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_a_curated_set_stays_whole():
    ds = open_dataset(cfg(SHARED/"train"))
    assert len(ds) == 404 and not ds.report.left_out and not ds.report.warned
    assert len(ds.sources) == 291 and len(group_items(ds.items)) == 291
    both = check_images(SHARED/"real_pairs")
    assert both.kind == "paired" and len(both.kept) == 8
