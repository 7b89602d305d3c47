"An unchanged file is decoded once; whatever happens to files or to the cache, the report is right."
import json
import os
import shutil
import subprocess
import sys

import pytest
from made_pictures import cfg, window, write, write_pair, write_photos

from agri_cae.curation import checks
from agri_cae.curation.cache import MeasureCache
from agri_cae.curation.checks import CACHE_FILE, check_images
from agri_cae.data import load_arrays, open_dataset


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A home of its own, where nothing is known"
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path/"home"))
    return tmp_path/"home"


@pytest.fixture
def photos(tmp_path, home): return write_photos(tmp_path/"set")


@pytest.fixture
def decoded(monkeypatch):
    "How many pictures were decoded, by the check and by loading"
    import agri_cae.data
    seen = []
    for module in (checks, agri_cae.data):
        real = module.read_image
        monkeypatch.setattr(module, "read_image", lambda *a, real=real, **kw: seen.append(1) or real(*a, **kw))
    return seen


def test_an_unchanged_folder_is_decoded_once(photos, decoded):
    first = check_images(photos)
    assert len(decoded) == 6
    assert check_images(photos) == first and open_dataset(cfg(photos)).report.files == first.files
    assert len(decoded) == 6


@pytest.mark.parametrize("seconds", [-1e6, 0, 1e6])
def test_a_changed_file_is_measured_again(tmp_path, home, decoded, seconds):
    "Also when its size is the same, and its time older or the same"
    write(tmp_path/"set"/"a.tif", window(0), "tiff")
    f = write(tmp_path/"set"/"b.tif", window(1), "tiff")
    before, old = check_images(tmp_path/"set"), f.stat()
    (tmp_path/"new").mkdir()
    f.write_bytes(write(tmp_path/"new"/"b.tif", window(2), "tiff").read_bytes())
    os.utime(f, ns=(old.st_atime_ns, old.st_mtime_ns + int(seconds * 1e9)))
    after = check_images(tmp_path/"set")
    assert f.stat().st_size == old.st_size and len(decoded) == 3
    assert after.files[0] == before.files[0] and after.files[1].sha256 != before.files[1].sha256


def test_a_moved_folder_keeps_its_names_right(photos, decoded):
    before = check_images(photos)
    moved = photos.rename(photos.parent/"moved")
    assert check_images(moved) == before and len(decoded) == 12
    photos.symlink_to(moved)
    assert check_images(photos) == before and len(decoded) == 12            # another way to the same files


def test_another_range_is_another_measure(photos, decoded):
    plain = check_images(photos)
    assert check_images(photos, value_range=(0, 200)).files[0].mean > plain.files[0].mean and len(decoded) == 12
    assert check_images(photos) == plain and len(decoded) == 12


def test_a_file_that_cannot_be_decoded_is_tried_again(photos, decoded):
    (photos/"torn.png").write_bytes((photos/"field_0"/"IMG_0.png").read_bytes()[:500])
    for count in (7, 8): assert check_images(photos).summary().endswith("1 corrupt") and len(decoded) == count


@pytest.mark.parametrize("spoil", [
    lambda f: f.write_bytes(b"\xff\x00 not JSON"), lambda f: f.write_bytes(f.read_bytes()[:-20]), lambda f: f.unlink(),
    lambda f: f.write_text("[1, 2]"), lambda f: f.write_text(f.read_text().replace('"phash": "', '"phash": "zz')),
    lambda f: f.write_text(f.read_text().replace('"mean": ', '"mean": "x", "was": ')),
    lambda f: f.write_text(f.read_text().replace('"version": "', '"version": "other ')), lambda f: f.chmod(0)])
def test_a_broken_cache_costs_time_only(photos, home, spoil):
    before = check_images(photos)
    spoil(home/CACHE_FILE)
    assert check_images(photos) == before
    assert len(json.loads((home/CACHE_FILE).read_text())["files"]) == 6


def test_a_home_that_cannot_be_made_costs_time_only(photos, monkeypatch):
    before = check_images(photos)
    (photos.parent/"file").touch()
    monkeypatch.setenv("AGRI_CAE_HOME", str(photos.parent/"file"/"home"))
    assert check_images(photos) == before


def test_two_processes_at_once(tmp_path, home):
    folders = [write_photos(tmp_path/name) for name in ("one", "two")]
    code = "import sys; from agri_cae.curation.checks import check_images; print(check_images(sys.argv[1]).summary())"
    both = [subprocess.Popen([sys.executable, "-c", code, str(f)], stdout=subprocess.PIPE) for f in folders]
    assert [p.communicate()[0].decode().strip() for p in both] == ["6 pictures, 6 kept"] * 2
    assert not list(home.glob("*.tmp")) and len(json.loads((home/CACHE_FILE).read_text())["files"]) in (6, 12)


def test_writers_keep_what_others_wrote(tmp_path):
    one, two = (MeasureCache(tmp_path/"c.json", "1") for _ in range(2))
    one.put("a", [1], {})
    one.save()
    two.put("b", [1], {})
    two.save()
    assert set(MeasureCache(tmp_path/"c.json", "1").known) == {"a", "b"}


def test_the_cache_stays_small(tmp_path):
    for k in range(7):
        cache = MeasureCache(tmp_path/"c.json", "1", most=3)
        cache.get("0", [1])                                                 # used again and again
        cache.put(str(k), [1], {})
        cache.save()
    assert list(MeasureCache(tmp_path/"c.json", "1").known) == ["5", "0", "6"]


# check and load share what is decoded

def test_loading_takes_what_the_check_has_decoded(photos, decoded):
    ds = open_dataset(cfg(photos), keep=True)
    assert len(decoded) == 6
    arrays = load_arrays(ds)
    assert len(decoded) == 6 and all((a == window(k)).all() for k, a in enumerate(arrays))
    assert not ds.decoded.arrays and len(load_arrays(ds)) == 6 and len(decoded) == 12     # each is handed out once
    again = open_dataset(cfg(photos), keep=True)                          # nothing to decode for the check
    assert all((a == b).all() for a, b in zip(load_arrays(again), arrays, strict=True)) and len(decoded) == 18


def test_pairs_and_files_left_out(tmp_path, home, decoded):
    for k in range(2): write_pair(tmp_path/"set", f"p{k}", k)
    for half in ("noisy", "clean"): shutil.copy(tmp_path/"set"/f"p0_{half}.png", tmp_path/"set"/f"q_{half}.png")
    write_pair(tmp_path/"set", "tiny", 3, clean="tiny_clean.png")
    for half in ("noisy", "clean"): write(tmp_path/"set"/f"tiny_{half}.png", window(4, 40))
    ds = open_dataset(cfg(tmp_path/"set"), keep=True)
    assert len(ds) == 2 and len(ds.decoded.arrays) == 4
    load_arrays(ds)
    assert len(decoded) == 8
