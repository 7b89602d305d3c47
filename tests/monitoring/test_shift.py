"""Retraining for real: a champion that knows only leaves meets drone and soil pictures, and junk.

Needs the crops of ../shared/data/train, or of the folder SHIFT_DATA, with its MANIFEST.csv in the parent folder.
SHIFT_PICTURES, SHIFT_SIDE (pixels) and SHIFT_EPOCHS (of 25 steps) make it larger. With -s it prints what was gained;
SHIFT_CONTROL=1 also trains the champion as long again without the new pictures: what time alone gains on them.
"""

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("keras")
from agri_cae.benchmark.compare import compare_models
from agri_cae.config import EvalConfig, TrainConfig, unflatten
from agri_cae.lifecycle.judging import whole_sets
from agri_cae.lifecycle.registry import aliases, crown, get_version
from agri_cae.lifecycle.retrain import RetrainConfig, retrain
from agri_cae.lifecycle.shots import NEW, Shots
from agri_cae.serve import Denoiser
from agri_cae.tracking.store import register
from agri_cae.train import train

DATA = Path(os.environ.get("SHIFT_DATA") or Path(__file__).parents[3] / "shared" / "data" / "train")
SIZES = dict(PICTURES=12, SIDE=160, EPOCHS=10)
COUNT, SIDE, EPOCHS = (int(os.environ.get(f"SHIFT_{k}", v)) for k, v in SIZES.items())
PARAMS = dict(
    preset="fast",
    optimizer="muon",
    lr=2e-3,
    ema=0.95,
    warmup=0.1,
    patch=64,
    batch=8,
    epochs=EPOCHS,
    steps_per_epoch=25,
    minutes=None,
)
MANIFEST = DATA.parent / "MANIFEST.csv"
pytestmark = pytest.mark.skipif(not MANIFEST.is_file(), reason="needs the pictures of ../shared/data/train")


def crops(*tags):
    "One crop of each source with such contents: name, pixels (BGR)"
    with open(MANIFEST, encoding="utf-8", newline="") as f:
        rows = [r for r in csv.DictReader(f) if r["split"] == "train" and r["content_tag"] in tags]
    first = {r["path_in_repo"]: r["file"] for r in reversed(rows)}
    for name in sorted(first.values()):
        yield Path(name).stem, cv2.imread(str(DATA / Path(name).name))[:SIDE, :SIDE]


def write(folder, pictures):
    folder.mkdir(parents=True)
    for name, x in pictures:
        cv2.imwrite(str(folder / f"{name}.png"), x)
    return folder


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    "Folders of leaves, to learn from and to test with, and a champion that has seen nothing else"
    root, patch = tmp_path_factory.mktemp("shift"), pytest.MonkeyPatch()
    patch.setenv("AGRI_CAE_HOME", str(root / "home"))
    leaves = [*crops("leaf")][: COUNT + COUNT // 2]
    store, test = write(root / "store", leaves[:COUNT]), write(root / "test", leaves[COUNT:])
    done = train(unflatten(TrainConfig, PARAMS | dict(folder=str(store))), root / "first", progress=False)
    crown(str(register(done.run_id, reason="leaves only").version), "the first")
    yield RetrainConfig(store=str(store), test=str(test), params=PARAMS), root, done
    patch.undo()


def pair(folder, name, noisy, clean):
    for k, x in (("noisy", noisy), ("clean", clean)):
        cv2.imwrite(str(folder / f"{name}_{k}.png"), np.clip(np.round(x), 0, 255).astype(np.uint8))


def junk_noise(cfg, folder):
    for i in range(8):
        x = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), x)


def junk_duplicates(cfg, folder):
    "Half as they are, half compressed once more and a little darker"
    for i, f in enumerate(sorted(Path(cfg.store).glob("*.png"))[:8]):
        x = cv2.imread(str(f))
        if i % 2:
            cv2.imwrite(str(folder / f"{i}.png"), x)
        else:
            cv2.imwrite(str(folder / f"{i}.jpg"), np.uint8(x * 0.9))


JUNK = [(junk_noise, "8 noise"), (junk_duplicates, "8 is known already")]


@pytest.mark.parametrize("junk, why", JUNK, ids=["pure noise", "duplicates of old data"])
def test_junk_is_not_learned_from(champion, tmp_path, junk, why):
    cfg, *_ = champion
    (tmp_path / "new").mkdir()
    junk(cfg, tmp_path / "new")
    before = aliases()
    o = retrain(tmp_path / "new", cfg, tmp_path / "out", progress=False)
    print(f"\n{o.reason}")
    assert not o.promoted and why in o.reason and aliases() == before
    assert not (Path(cfg.store) / "added").exists()


def test_mislabelled_pairs_are_not_learned_from(champion, tmp_path):
    "The clean half is of another place"
    rng = np.random.default_rng(0)
    soil = [x.astype(float) for _, x in crops("drone-farmland", "plants-on-soil")][:12]
    noisy = [x + rng.normal(0, 15, x.shape) for x in soil]
    store, new = tmp_path / "store", tmp_path / "new"
    for folder in (store, new):
        folder.mkdir()
    for i in range(6):
        pair(store, i, noisy[i], soil[i])
        pair(new, i, noisy[6 + i], soil[6 + (i + 1) % 6])
    cfg = champion[0].model_copy(update=dict(store=str(store), test=str(store)))
    before = aliases()
    o = retrain(new, cfg, tmp_path / "out", progress=False)
    print(f"\n{o.reason}")
    assert not o.promoted and "do not belong together" in o.reason and aliases() == before


def as_long_on_leaves(cfg, first, folder):
    "What the champion gains on the new pictures when it is trained as long again without them"
    params = PARAMS | dict(folder=cfg.store, init_from=str(first.weights), lr=PARAMS["lr"] / 2)
    control = train(unflatten(TrainConfig, params), folder / "control", track=False, progress=False)
    shots = Shots({NEW: EvalConfig(folder=str(folder / "out" / "held_back" / "held"))})
    models = dict(challenger=Denoiser.load(control.weights), champion=Denoiser.load(first.weights))
    return whole_sets(compare_models(models, shots, EvalConfig().sigmas, patterns=False, progress=False))[NEW]


def test_a_real_shift_promotes_the_challenger(champion, tmp_path, kernels):
    cfg, _, first = champion
    others = [*crops("drone-farmland", "drone-soil-grass", "drone-NIR-field", "plants-on-soil")]
    before = aliases()["champion"]
    o = retrain(write(tmp_path / "new", others[::3][:COUNT]), cfg, tmp_path / "out", progress=False)
    print(f"\n{o.reason}")
    if os.environ.get("SHIFT_CONTROL"):
        print(f"as long again on leaves only: {as_long_on_leaves(cfg, first, tmp_path)} on the new pictures")
    assert o.promoted, o.reason
    assert aliases()["champion"] == o.version and get_version(o.version).tags["replaced"] == before
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["gains"]["new"]["low"] > 0 and (tmp_path / "out" / "most_gained.png").exists()
    assert f"new pictures: {o.gains['new']}" in (tmp_path / "out" / "report.md").read_text()
