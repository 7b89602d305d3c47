"""The background trainer: killed and stopped, waiting for benchmarks, decays branched off, recipes that change under a
run."""

import json
import logging
import os
import random
import signal
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from commands import call
from forked import fork

from agri_cae.config import TrainConfig, unflatten
from agri_cae.fitting.checkpoint import State, variables
from agri_cae.fitting.step import denoising_model
from agri_cae.modelfiles.card import read_card
from agri_cae.noise import recipes
from agri_cae.noise.degradations import Banding, Gaussian
from agri_cae.search.progress import results, status
from agri_cae.search.queue import Queue, TrainerFolder, checkpoint_state, next_job
from agri_cae.search.quiet import quiet_machine

TINY = dict(
    data=dict(patch=32, batch=2, val_fraction=0.5),
    model=dict(preset="fast"),
    epochs=10**6,
    steps_per_epoch=4,
    val_every=2,
    ema=0.9,
    lr=1e-3,
)
EPOCH = 4 * 2 * 32**2 / 1e9  # gigapixels


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path / "home"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))

    def write(*jobs):
        (tmp_path / "queue.yaml").write_text(
            yaml.safe_dump(dict(jobs=[dict(config="tiny.yaml") | j for j in jobs]))
        )
        return tmp_path / "queue.yaml"

    return write


def start(queue, path):
    code = """
import sys
from agri_cae.search.trainer import Stopped, work
from agri_cae.tracking.logs import setup_logging
setup_logging()
try: work(sys.argv[1], (), sys.argv[2], track=False)
except Stopped: print("stopped")
"""
    log = queue.with_suffix(".log")
    return fork(code, queue, path, out=log, log=log)


def said(queue): return queue.with_suffix(".log").read_text()


def wait_for(what, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def epoch(run):
    return checkpoint_state(run).get("epoch", 0)


def test_killed_at_random_it_goes_on_without_a_jump(queue, tmp_path):
    "TRAINER_KILLS=10 for the full number"
    kills, rng, epochs = int(os.environ.get("TRAINER_KILLS", 2)), random.Random(0), 40
    path = queue(dict(name="long", gigapixels=epochs * EPOCH))
    folder = TrainerFolder(tmp_path / "killed")
    run = folder.path / "runs" / "long"
    for _ in range(kills):
        before, process = epoch(run), start(path, folder.path)
        wait_for(lambda before=before: epoch(run) > before, process)
        time.sleep(rng.random())
        process.kill()
        process.wait()
        assert before < epoch(run)
    for p in (folder.path, tmp_path / "whole"):
        process = start(path, p)
        assert process.wait() == 0, said(path)
    killed, whole = checkpoint_state(run), checkpoint_state(tmp_path / "whole" / "runs" / "long")
    assert killed["pixels"] == whole["pixels"] == epochs * EPOCH * 1e9
    assert all([h["epoch"] for h in s["history"]] == [*range(1, epochs, 2)] for s in (killed, whole))
    np.testing.assert_allclose(*[[h["val_psnr"] for h in s["history"]] for s in (killed, whole)], atol=1e-4)
    cards = [read_card(p / "runs" / "long" / "fast.onnx") for p in (folder.path, tmp_path / "whole")]
    assert cards[0].metrics["gigapixels"] == cards[1].metrics["gigapixels"] == pytest.approx(epochs * EPOCH)


def test_it_waits_for_a_benchmark_stops_after_a_checkpoint_and_branches_off(queue, tmp_path):
    home = tmp_path / "home" / "trainer"
    path = queue(
        dict(name="a-1", run="a", gigapixels=30 * EPOCH),
        dict(name="a-2", run="a", gigapixels=31 * EPOCH, decay=6 * EPOCH),
        dict(name="b", gigapixels=EPOCH, settings=dict(teacher="$a-2"), after=["a-2"]),
    )
    folder, run = TrainerFolder(home), home / "runs" / "a"
    log = run / "train.jsonl"
    with quiet_machine():
        process = start(path, "")
        time.sleep(0.5)
        wait_for((home / "pid").exists, process)
        wait_for(lambda: log.exists() and "waiting" in log.read_text(), process)
        time.sleep(1)
        assert not checkpoint_state(run)
    wait_for(lambda: epoch(run) > 1, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0 and "stopped" in said(path)
    assert 1 < epoch(run) < 30
    process = start(path, "")
    assert process.wait() == 0, said(path)
    assert epoch(run) == 31 and next_job(Queue.from_yaml(path), folder) is None
    branch = folder.weights(Queue.from_yaml(path).job("a-2"))
    card = read_card(branch)
    assert [r["config"]["schedule"] for r in card.history] == ["constant", "decay"]
    assert card.metrics["gigapixels"] == pytest.approx(6 * EPOCH, rel=0.2)
    taught = read_card(home / "runs" / "b" / "fast.onnx")
    assert taught.train["teacher"] == "fast.onnx" and str(tmp_path) not in taught.model_dump_json()
    assert results(path, "other.yaml", home) == []
    shown = status(path)
    parts = "a: ", "a-2, decay: ", "done: a-1, a-2, b", "the queue is at its end"
    assert [p for p in parts if p not in shown] == []


class Gaussian(Gaussian):
    "The same degradation in another module"


def test_a_run_goes_on_when_a_degradation_is_added_and_a_class_has_moved(tmp_path, monkeypatch, caplog):
    cfg = unflatten(TrainConfig, dict(patch=32, batch=2, recipe="field", ema=0.9))
    old, x = denoising_model(cfg), np.full((2, 32, 32, 3), 90, "uint8")
    old.train_on_batch(x, x)
    State().save(tmp_path / "c.npz", variables(old))
    monkeypatch.setattr(recipes, "Gaussian", Gaussian)
    field = recipes.RECIPES["field"]

    def longer(cfg, seed):
        chain = field(cfg, seed)
        chain.parts.append(Banding(seed=99))
        return chain

    monkeypatch.setitem(recipes.RECIPES, "field", longer)
    new = denoising_model(cfg)
    with caplog.at_level(logging.INFO, "agri_cae"):
        State().load(tmp_path / "c.npz", new)
    assert "drawn anew: random/Chain/Banding0" in caplog.text and caplog.text.count("random/") == 1
    before, after = variables(old), variables(new)
    for k in before:
        values = [keras.ops.convert_to_numpy(v[k]) for v in (before, after)]
        np.testing.assert_array_equal(*values, k)
    new.train_on_batch(x, x)


def test_the_decay_of_a_run_by_command(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path / "home"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | dict(epochs=2, schedule="constant")))

    def agri_cae(*args, rc=0):
        return call("train", "--no-track", *args, rc=rc)

    assert "holds no run at a constant rate" in agri_cae("--decay", "1e-5", rc=2).stderr
    run = tmp_path / "home" / "runs" / "long"
    agri_cae("--config", tmp_path / "tiny.yaml", "--out", run)
    weights = Path(agri_cae("--decay", "1e-5").stdout.strip())
    assert weights.parent.parent == run and read_card(weights).train["schedule"] == "decay"
    assert json.loads((weights.parent / "history.json").read_text())[-1]["lr"] < 1e-3
    agri_cae("--run", tmp_path, rc=2)
