"""Retraining for real: a champion that knows only leaves meets drone and soil pictures, and junk. Needs the crops of ../shared/data/train, or of the folder SHIFT_DATA, with its MANIFEST.csv beside it;
SHIFT_PICTURES, SHIFT_SIDE (pixels) and SHIFT_EPOCHS (of 25 steps) make it larger. With -s it prints what was gained."""
import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("keras")
from agri_cae.config import EvalConfig, TrainConfig, unflatten
from agri_cae.lifecycle.gate import measure_gain
from agri_cae.lifecycle.registry import aliases, crown, get_version
from agri_cae.lifecycle.retrain import RetrainConfig, retrain
from agri_cae.serve import Denoiser
from agri_cae.tracking.store import register
from agri_cae.train import train

DATA = Path(os.environ.get("SHIFT_DATA") or Path(__file__).parents[3] / "shared" / "data" / "train")
COUNT, SIDE, EPOCHS = (int(os.environ.get(f"SHIFT_{k}", v)) for k, v in (("PICTURES", 12), ("SIDE", 160), ("EPOCHS", 10)))
PARAMS = dict(preset="fast", optimizer="muon", lr=2e-3, ema=.95, warmup=.1, patch=64, batch=8, epochs=EPOCHS, steps_per_epoch=25, minutes=None)
pytestmark = pytest.mark.skipif(not (DATA.parent / "MANIFEST.csv").is_file(), reason="needs the pictures of ../shared/data/train")


def crops(*tags):
    "One crop of each source with such contents: name, pixels (BGR)"
    with open(DATA.parent / "MANIFEST.csv", encoding="utf-8", newline="") as f: rows = [r for r in csv.DictReader(f) if r["split"] == "train" and r["content_tag"] in tags]
    first = {r["path_in_repo"]: r["file"] for r in reversed(rows)}
    for name in sorted(first.values()): yield Path(name).stem, cv2.imread(str(DATA / Path(name).name))[:SIDE, :SIDE]


def write(folder, pictures):
    folder.mkdir(parents=True)
    for name, x in pictures: cv2.imwrite(str(folder / f"{name}.png"), x)
    return folder


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    "Folders of leaves, to learn from and to test with, and a champion that has seen nothing else"
    root, patch = tmp_path_factory.mktemp("shift"), pytest.MonkeyPatch()
    patch.setenv("AGRI_CAE_HOME", str(root / "home"))
    leaves = [*crops("leaf")][:COUNT + COUNT // 2]
    store, test = write(root / "store", leaves[:COUNT]), write(root / "test", leaves[COUNT:])
    done = train(unflatten(TrainConfig, PARAMS | dict(folder=str(store))), root / "first", progress=False)
    crown(str(register(done.run_id, reason="leaves only").version), "the first")
    yield RetrainConfig(store=str(store), test=str(test), params=PARAMS), root, done
    patch.undo()


def pair(folder, name, noisy, clean):
    for k, x in (("noisy", noisy), ("clean", clean)): cv2.imwrite(str(folder / f"{name}_{k}.png"), np.clip(np.round(x), 0, 255).astype(np.uint8))


def junk_noise(cfg, folder):
    for i in range(8): cv2.imwrite(str(folder / f"{i}.png"), np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def junk_duplicates(cfg, folder):
    "Half as they are, half compressed once more and a little darker"
    for i, f in enumerate(sorted(Path(cfg.store).glob("*.png"))[:8]):
        x = cv2.imread(str(f))
        cv2.imwrite(str(folder / f"{i}.{'png' if i % 2 else 'jpg'}"), x if i % 2 else np.uint8(x * .9))


@pytest.mark.parametrize("junk, why", [(junk_noise, "8 noise"), (junk_duplicates, "8 is known already")], ids=["pure noise", "duplicates of old data"])
def test_junk_is_not_learned_from(champion, tmp_path, junk, why):
    cfg, *_ = champion
    (tmp_path / "new").mkdir(); junk(cfg, tmp_path / "new")
    before = aliases()
    o = retrain(tmp_path / "new", cfg, tmp_path / "out", progress=False)
    print(f"\n{o.reason}")
    assert not o.promoted and why in o.reason and aliases() == before and not (Path(cfg.store) / "added").exists()


def test_mislabelled_pairs_are_not_learned_from(champion, tmp_path):
    "The clean half is of another place"
    rng, soil = np.random.default_rng(0), [x.astype(float) for _, x in crops("drone-farmland", "plants-on-soil")][:12]
    for name in ("store", "new"): (tmp_path / name).mkdir()
    for i in range(6):
        pair(tmp_path / "store", i, soil[i] + rng.normal(0, 15, soil[i].shape), soil[i])
        pair(tmp_path / "new", i, soil[6 + i] + rng.normal(0, 15, soil[i].shape), soil[6 + (i + 1) % 6])
    before = aliases()
    o = retrain(tmp_path / "new", champion[0].model_copy(update=dict(store=str(tmp_path / "store"), test=str(tmp_path / "store"))), tmp_path / "out", progress=False)
    print(f"\n{o.reason}")
    assert not o.promoted and "do not belong together" in o.reason and aliases() == before


def test_a_real_shift_promotes_the_challenger(champion, tmp_path):
    cfg, root, first = champion
    new = write(tmp_path / "new", [*crops("drone-farmland", "drone-soil-grass", "drone-NIR-field", "plants-on-soil")][::3][:COUNT])
    before = aliases()["champion"]
    o = retrain(new, cfg, tmp_path / "out", progress=False)
    control = train(unflatten(TrainConfig, PARAMS | dict(folder=cfg.store, init_from=str(first.weights), lr=PARAMS["lr"] / 2)), tmp_path / "control", track=False, progress=False)   # as long again on leaves: what is time, and what the new pictures
    alone = measure_gain(Denoiser.load(first.weights), Denoiser.load(control.weights), EvalConfig(folder=str(tmp_path / "out" / "held_back")), progress=False)
    print(f"\n{o.reason}\nas long again on leaves only: {alone} on the new pictures")
    assert o.promoted, o.reason
    assert aliases()["champion"] == o.version and get_version(o.version).tags["replaced"] == before
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["gains"]["new"]["low"] > 0 and (tmp_path / "out" / "most_gained.png").exists()
    assert f"new pictures: {o.gains['new']}" in (tmp_path / "out" / "report.md").read_text()
