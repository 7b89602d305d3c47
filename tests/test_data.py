"What a data set promises: a digest that names its content, and batches that can be made again."
import hashlib
import json
import os
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from made_pictures import cfg, window, write, write_fields, write_pair, write_photos

from agri_cae.config import ConfigError, DataError
from agri_cae.data import Crops, load_arrays, open_dataset, validation_crops
from agri_cae.io.images import Picture, write_image


@pytest.fixture
def photos(tmp_path): return write_photos(tmp_path/"set")


@pytest.fixture
def fields(tmp_path): return write_fields(tmp_path/"data", "drone-soil")


# several folders

def test_several_folders_are_one_data_set(fields, tmp_path):
    ds = open_dataset(cfg(fields/"old", fields/"new"))
    names = [f"{d}/IMG_{k}.png" for d in ("old", "new") for k in range(6)]
    assert [i["file"] for i in ds.manifest()["items"]] == names == [c.file for c in ds.report.files]
    assert ds.name == "old + new" and ds.items[8].collection == "owner/south"
    assert ds.items[11].tag == "drone-soil" and ds.items[11].family == "drone"
    assert len(load_arrays(ds)) == 12 and str(tmp_path) not in json.dumps(ds.manifest())
    shutil.copytree(fields/"new", tmp_path/"far"/"away"/"new")
    assert open_dataset(cfg(tmp_path/"far"/"away"/"new", fields/"old")).digest == ds.digest


def test_one_folder_in_a_list_is_one_folder(fields):
    one = open_dataset(cfg(fields/"old"))
    assert one == open_dataset(cfg(fields/"old").model_copy(update=dict(folder=(str(fields/"old"),))))
    assert one.name == "old" and one.manifest()["items"][0]["file"] == "IMG_0.png"


def test_a_picture_that_repeats_one_of_another_folder_is_left_out(fields):
    shutil.copy(fields/"old"/"IMG_0.png", fields/"new"/"once more.png")
    left_out = open_dataset(cfg(fields/"old", fields/"new")).report.left_out
    assert [(c.file, c.reason, c.of) for c in left_out] == [("new/once more.png", "duplicate", "old/IMG_0.png")]


def test_sources_of_several_folders(fields):
    "A pattern sees the folder's name; without table or pattern, the same name in two folders is two sources"
    by_folder = open_dataset(cfg(fields/"old", fields/"new", source_pattern="(old|new)/"))
    assert {i.source for i in by_folder.items} == {"old", "new"}
    (fields/"MANIFEST.csv").unlink()
    assert len(open_dataset(cfg(fields/"old", fields/"new")).sources) == 12


def test_folders_that_do_not_go_together(fields):
    for bad in ((fields, fields/"old"), (fields/"old", fields/"new"/".."/"old")):
        with pytest.raises(ConfigError, match="holds the other"): open_dataset(cfg(*bad))
    write_pair(fields/"pairs", "a")
    with pytest.raises(DataError, match="clean pictures, others hold paired"):
        open_dataset(cfg(fields/"old", fields/"pairs"))
    with pytest.raises(DataError, match="none"): open_dataset(cfg(fields/"old", fields/"none"))
    write_pair(fields/"more", "b", 3)
    ds = open_dataset(cfg(fields/"pairs", fields/"more"))
    assert ds.kind == "paired" and ds.manifest()["items"][1]["noisy"] == "more/b_noisy.png"


# the digest and the manifest

def test_digest_names_the_content(photos, tmp_path):
    ds = open_dataset(cfg(photos))
    moved = shutil.copytree(photos, tmp_path/"Felder süd 🌾")
    assert open_dataset(cfg(moved)).digest == ds.digest
    os.rename(moved/"field_0"/"IMG_0.png", moved/"zz.png")
    assert open_dataset(cfg(moved)).digest == ds.digest == replace(ds, items=ds.items[::-1]).digest
    (moved/"zz.png").write_bytes((moved/"zz.png").read_bytes() + b"\0")    # one byte more behind the image's end
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


# arrays and crops

def test_depths_alpha_and_grey(tmp_path):
    write(tmp_path/"a.png", (window(0).astype(np.uint16) * 257))
    write(tmp_path/"b.png", window(1))
    alpha = np.full((128, 128), 9, np.uint8)
    write_image(Picture(np.ascontiguousarray(window(2)), alpha=alpha), tmp_path/"c.png", "png")
    for k, a in enumerate(load_arrays(open_dataset(cfg(tmp_path)))):
        assert a.dtype == np.uint8 and (a == window(k)).all()


def test_a_range_must_be_declared_where_the_type_says_little(tmp_path):
    for k in (1, 2): write(tmp_path/"dn"/f"{k}.png", 5000 + window(k)[..., 1:2].astype(np.uint16) * 4)
    with pytest.raises(DataError, match=r"nothing is left.*2 blank"):
        open_dataset(cfg(tmp_path/"dn"))                                  # a fraction of a step on the 8-bit scale
    ds = open_dataset(cfg(tmp_path/"dn", value_range=(5000, 5000 + 4 * 255)))
    for a, k in zip(load_arrays(ds), (1, 2), strict=True): assert (a == window(k)[..., 1:2]).all()


def test_a_changed_or_missing_file_is_noticed(photos):
    ds = open_dataset(cfg(photos))
    write(photos/"field_0"/"IMG_0.png", window(9))
    with pytest.raises(DataError, match=r"IMG_0\.png.*changed"): load_arrays(ds)
    (photos/"field_0"/"IMG_0.png").unlink()
    with pytest.raises(DataError, match=r"IMG_0\.png"): load_arrays(ds)


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
        turns = [t[..., 0] for r in range(4) for t in (np.rot90(c, r), np.rot90(c, r)[:, ::-1])]
        places = [np.lib.stride_tricks.sliding_window_view(a[..., 0], (16, 16)) for a in ARRAYS]
        assert any((p == t).all((-1, -2)).any() for p in places for t in turns)


def test_shrunk_crops_average():
    fine = (np.indices((400, 400)).sum(0)[..., None].repeat(3, 2) % 2 * 200).astype(np.uint8)  # single pixels
    def spread(**kw): return Crops([fine], 32, 64, 1, seed=0, **kw)[0][0].std((1, 2, 3))
    assert (spread(scale_jitter=.25) < 60).mean() > .8 and spread().min() > 99


class Seen:
    "What a training run was fed, epoch by epoch"
    def __init__(self, crops, epochs, initial=0):
        import keras
        seen = self.batches = []
        class Identity(keras.Model):
            def __init__(self):
                super().__init__()
                self.w = self.add_weight(shape=())

            def train_step(self, batch):
                seen.append(hashlib.sha256(np.asarray(batch[0]).tobytes()).hexdigest())
                return {"loss": 0.}
        m = Identity()
        m.compile(run_eagerly=True)
        m.fit(crops, initial_epoch=initial, epochs=epochs, shuffle=False, verbose=0)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_resumed_fit_sees_the_same_batches(workers):
    def crops(epoch=0): return Crops(ARRAYS, 16, 2, 5, seed=1, epoch=epoch, workers=workers)
    whole = Seen(crops(), 4).batches
    assert len(set(whole)) == 20
    assert Seen(crops(2), 4, initial=2).batches == whole[10:]
    each = [c[k][0] for c in map(crops, range(4)) for k in range(5)]
    assert [hashlib.sha256(x.tobytes()).hexdigest() for x in each] == whole


def test_crops_from_threads_are_the_same():
    c = Crops(ARRAYS, 16, 2, 50, seed=1)
    want, got = [c[k][0] for k in range(50)], [None] * 50
    def work(part):
        for k in range(part, 50, 4): got[k] = c[k][0]
    threads = [threading.Thread(target=work, args=(p,)) for p in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert all((a == b).all() for a, b in zip(want, got, strict=True))


def test_odds_decide_which_picture_is_drawn():
    marks = [np.full((40, 40, 1), k, np.uint8) for k in range(3)]
    def drawn(*odds, epoch=0):
        crops = Crops(marks, 16, 50, 20, epoch=epoch, odds=odds)
        return np.concatenate([crops[k][0][:, 0, 0, 0] for k in range(20)])
    assert (drawn(0, 5, 0) == 1).all() and (drawn(0, 0, 1) == 2).all()
    assert abs((drawn(1, 2, 1) == 1).mean() - .5) < .06
    assert (drawn(1, 2, 1) == drawn(.25, .5, .25)).all() and (drawn(1, 2, 1, epoch=1) != drawn(1, 2, 1)).any()
    for bad in ([1, 1], [1, -1, 1], [0, 0, 0], [1, np.nan, 1]):
        with pytest.raises(ConfigError, match="odds"): Crops(marks, 16, 1, 1, odds=bad)


@pytest.mark.parametrize("kw", [
    dict(patch=0), dict(batch=0), dict(steps=0), dict(scale_jitter=0.), dict(scale_jitter=1.1)])
def test_wrong_crops(kw):
    with pytest.raises(ConfigError, match=next(iter(kw))): Crops(ARRAYS, **dict(dict(patch=8, batch=1, steps=1), **kw))


def test_validation_crops_are_centres():
    v = validation_crops(ARRAYS, 16)
    for a, c in zip(ARRAYS, v, strict=True):
        assert (a[(a.shape[0]-16)//2:, (a.shape[1]-16)//2:][:16, :16] == c).all()
    assert len(validation_crops(ARRAYS * 20, 16, limit=7)) == 7
    assert validation_crops(ARRAYS, 200).shape == (4, 200, 200, 3)
    with pytest.raises(DataError): validation_crops([])
