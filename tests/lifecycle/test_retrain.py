"Retraining: what is vetted, who becomes champion, what an interruption leaves."

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("keras")
from commands import call

from agri_cae.config import ConfigError, TrainConfig, unflatten
from agri_cae.io.images import read_image, sample
from agri_cae.lifecycle import gate, retrain as module
from agri_cae.lifecycle.registry import aliases, crown, get_version
from agri_cae.lifecycle.retrain import RetrainConfig, retrain
from agri_cae.lifecycle.shots import NEW, TEST
from agri_cae.monitoring.profile import find_profiles, load_profile, profile_of
from agri_cae.tracking.store import register
from agri_cae.train import train

TINY = dict(epochs=1, steps_per_epoch=2, minutes=None, patch=32, batch=2, ema=0.5)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def new(tmp_path):
    "Six pieces of the aerial sample, turned and recoloured, so that they are like nothing known"
    x = np.round(read_image(sample("airborne")).pixels * 255).astype(np.uint8)
    (tmp_path / "new").mkdir()
    inverted, turned = 255 - x, x[::-1, ::-1, ::-1]
    for i in range(6):
        odd = np.roll(inverted, 37 * i, 1)[20 * i : 20 * i + 160, :200].transpose(1, 0, 2)
        piece = odd if i % 2 else turned[30 * i : 30 * i + 150, 60:260]
        cv2.imwrite(str(tmp_path / "new" / f"{i}.png"), np.ascontiguousarray(piece))
    return tmp_path / "new"


def gains(monkeypatch, test, on_new):
    "As if the challenger gained so much on each picture of both sets"
    real, gained = gate.compare_models, {TEST: test, NEW: on_new}

    def shifted(*args, **kw):
        found = real(*args, **kw)
        for r in found.rows:
            r.psnr["challenger"] = r.psnr[found.models[1]] + gained[r.domain]
        return found

    monkeypatch.setattr(gate, "compare_models", shifted)


def test_the_better_one_wins_and_the_worse_one_does_not(tmp_path, home, new, monkeypatch, kernels, eager):
    store = tmp_path / "store"
    store.mkdir()
    photo = read_image(sample("field_camera")).data[..., ::-1]
    for i in range(2):
        cv2.imwrite(str(store / f"{i}.png"), photo[:, 320 * i : 320 * i + 300])
    first = train(unflatten(TrainConfig, TINY), tmp_path / "first", progress=False)
    crown(str(register(first.run_id).version), "the first")
    # models of seconds, whose scores are made up: they may make pictures worse
    cfg = RetrainConfig(store=str(store), params=TINY, side=96, below_input=99)
    gains(monkeypatch, -0.3, 0.5)
    lost = retrain(new, cfg, tmp_path / "one", progress=False)
    assert not lost.promoted and "may be worse on the test pictures" in lost.reason
    assert aliases() == {"champion": "1", "challenger": "2"}
    assert get_version("2").tags["refused"] == lost.reason and not (store / "added").exists()
    monkeypatch.setattr(module, "_decide", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        retrain(new, cfg, tmp_path / "two", progress=False)
    assert aliases()["champion"] == "1" and not (store / "added").exists()  # killed in the middle: no harm
    monkeypatch.undo()
    monkeypatch.setenv("AGRI_CAE_HOME", str(home))
    gains(monkeypatch, 0.0, 0.5)
    won = retrain(new, cfg, tmp_path / "two", progress=False)  # the same folder goes on
    assert won.promoted and aliases() == {"champion": "3"} and get_version("3").tags["replaced"] == "1"
    added = sorted(p.name for p in (store / "added").rglob("*.png"))
    held = sorted(p.name for p in (tmp_path / "two" / "held_back").rglob("*.png"))
    assert added and held and not set(added) & set(held) and len(added) + len(held) == 6
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["promoted"] and report["gains"]["new"]["gain"] == pytest.approx(0.5)
    text = (tmp_path / "two" / "report.md").read_text()
    assert text.startswith("# Promoted") and f"new pictures: {won.gains['new']}" in text
    assert all(f"| {name} |" in text for name in ("noisy", "challenger", "champion", "fast", "base"))
    assert (tmp_path / "two" / "most_gained.png").exists() and "champion " in get_version("3").tags["psnr_new"]
    again = retrain(new, cfg, tmp_path / "three", progress=False)  # by now they are known, but for those held back
    assert not again.promoted and f"{len(added)} is known already" in again.reason


def test_a_trained_model_comes_with_a_profile(tmp_path, home, eager):
    photos = [read_image(sample(n)).data[..., ::-1] for n in ("field_camera", "airborne")]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(24):
        x = photos[i % 2]
        r, c = 60 * (i // 8), 70 * (i // 2 % 4)
        cv2.imwrite(str(folder / f"{i}.png"), x[r : r + 100, c : c + 100])
    cfg = unflatten(TrainConfig, TINY | dict(folder=str(folder), recipe="sensor"))
    done = train(cfg, tmp_path / "run", progress=False)
    register(done.run_id)
    path = done.weights.with_suffix(".profile.json")
    assert path == tmp_path / "run" / "fast.profile.json" and len(load_profile(path).groups) == 24
    for model in (str(done.weights), "models:/agri-cae@challenger"):
        assert profile_of("fast@1", find_profiles([model])).about == "pictures of pictures, as in training"
    assert "of train" in profile_of("fast@1", find_profiles(["fast"])).about  # else that of the shipped one


def test_pairs_that_do_not_belong_together(tmp_path, home):
    photo, rng = read_image(sample("field_camera")).data[..., ::-1], np.random.default_rng(0)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()

    def pair(folder, i, noisy, clean):
        for k, x in (("noisy", noisy), ("clean", clean)):
            cv2.imwrite(str(tmp_path / folder / f"{i}_{k}.png"), np.clip(x, 0, 255).astype(np.uint8))

    for i in range(5):
        piece, other = photo[40 * i : 40 * i + 150, :200], photo[40 * i : 40 * i + 150, 400:600]
        pair("old", i, other + rng.normal(0, 10, other.shape), other)
        pair("new", i, rng.integers(0, 256, piece.shape), piece)
    cfg = RetrainConfig(store=str(tmp_path / "old"), test=str(tmp_path / "old"))
    o = retrain(tmp_path / "new", cfg, tmp_path / "out", progress=False)
    assert not o.promoted and "do not belong together" in o.reason and not aliases()
    assert "do not belong together" in (tmp_path / "out" / "report.md").read_text()


def test_only_one_at_a_time(tmp_path, home, new):
    home.mkdir()
    with module.alone(home, "retrain"), pytest.raises(ConfigError, match="retrain"):
        retrain(new, out=tmp_path / "o", progress=False)


def test_the_command_waits_for_pictures_and_for_an_alert(tmp_path, home, new):
    def reason(*args):
        return json.loads(call("retrain", new, "--json", *args).stdout)["reason"]

    assert "holds 6 of 50" in reason("--at-least", "50")
    assert "there is no" in reason("--alert", tmp_path / "alert")
    call("retrain", new, "--set", "nothing", rc=2)
    assert not aliases()
