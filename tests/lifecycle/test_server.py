"""A tracking server whose artifact folder only the server sees: train, sweep, register, promote, load, reproduce,
and what happens when the server goes away."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Barrier

import keras
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("psycopg2")
pytest.importorskip("mlflow")
import mlflow
from commands import call
from forked import MAIN, fork
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow_server import HAS_POSTGRESQL, Server, postgresql

from agri_cae.cli.main import app
from agri_cae.config import ModelError, StoreError, TrainConfig, unflatten
from agri_cae.lifecycle.registry import aliases, crown, get_version
from agri_cae.search.space import SweepConfig
from agri_cae.search.sweep import run_sweep
from agri_cae.serve import Denoiser, model_path
from agri_cae.tracking.store import open_store, register, write_shared
from agri_cae.train import train

QUICK = dict(epochs=2, steps_per_epoch=2, minutes=None, patch=32, batch=2, ema=0.5)
NOT_THERE = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
pytestmark = pytest.mark.skipif(not HAS_POSTGRESQL, reason=NOT_THERE)


@pytest.fixture(scope="module")
def database():
    with postgresql() as uri:
        yield uri


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    s = Server(database, tmp_path_factory.mktemp("server"))
    s.start()
    try:
        yield s
    finally:
        s.stop()


@pytest.fixture(autouse=True)
def remote(server, tmp_path, monkeypatch):
    "A machine that knows nothing but the server's address"
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AGRI_CAE_TRACKING_URI", server.uri)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


def agri(*args, code=0):
    done = CliRunner().invoke(app, [*map(str, args)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def start(file, out, answer):
    return fork(MAIN, "sweep", file, "--out", out, "--json", out=answer, log=file.with_suffix(".log"))


def test_from_sweep_to_champion(tmp_path, server, kernels, eager):
    "Two processes share a sweep on a store that is still empty"
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(dict(name="remote", space=dict(lr=[1e-3, 3e-3]), fixed=QUICK)))
    answers = [tmp_path / f"{i}.json" for i in range(2)]
    both = [start(file, tmp_path / "s", answer) for answer in answers]
    assert [p.wait(1200) for p in both] == [0, 0], file.with_suffix(".log").read_text()[-3000:]
    found = [json.loads(answer.read_text() or "{}") for answer in answers]
    boards = [f["leaderboard"] for f in found]  # of the one that ended last
    board = next((b for b in boards if [r["state"] for r in b] == ["complete"] * 2), None)
    assert board, boards
    _, experiment = open_store()
    runs = mlflow.search_runs([experiment], output_format="list")
    assert {(r.data.tags["trial"], r.info.status) for r in runs} == {(t, "FINISHED") for t in ("0", "1", "parent")}
    assert len(runs) == 3 and all(r.info.artifact_uri.startswith("mlflow-artifacts:/") for r in runs)
    assert not (tmp_path / "home" / "mlflow.db").exists()
    best = next(r for r in runs if r.data.tags["trial"] == str(board[0]["trial"])).info.run_id

    version, shipped = json.loads(agri("models", "list", "--json"))
    assert (shipped["version"], shipped["alias"]) == ("fast", "champion")
    assert version["alias"] == "challenger" and version["reason"] == "best of 2 trials of the sweep remote"
    told = agri("models", "promote", "--limit", "side=96", "--quiet", code=1)
    assert "not promoted: may be worse" in told  # than the shipped fast
    assert "was refused already" in agri("models", "promote", "--quiet", code=1)
    assert "promoted anyway: a test" in agri("models", "promote", "--anyway", "--reason", "a test")
    card = json.loads(agri("models", "show", "champion"))
    assert card["run_id"] == best and card["aliases"] == ["champion"]

    own = tmp_path / "s" / f"trial_{board[0]['trial']:04}" / "fast.onnx"
    x = np.random.default_rng(0).random((40, 50, 3), np.float32)
    np.testing.assert_array_equal(Denoiser.load("models:/agri-cae@champion")(x), Denoiser.load(own)(x))
    assert model_path("models:/agri-cae@champion") == model_path("models:/agri-cae/1")  # fetched once
    assert (tmp_path / "home" / "fetched").is_dir()
    with pytest.raises(ModelError, match="cannot be fetched"):
        Denoiser.load("models:/agri-cae@nobody")

    cfg = unflatten(TrainConfig, QUICK | dict(lr=2e-3, init_from=str(own)))
    done = train(cfg, tmp_path / "two", progress=False)
    register(done.run_id, reason="another")
    assert "train.lr" in agri("models", "diff", "challenger", "champion")
    assert "not promoted: " in agri("models", "promote", "--margin", 50, "--limit", "side=96", "--quiet", code=1)
    assert aliases() == {"champion": "1", "challenger": "2"}
    crown("2", "a test")
    assert "version 1 is the champion again" in agri("models", "rollback") and aliases()["champion"] == "1"
    with pytest.raises(ModelError, match="Versions: 1, 2"):
        get_version("9")

    again = json.loads(agri("reproduce", best, "--out", tmp_path / "again", "--force", "--json", "--quiet"))
    assert abs(again["recorded"] - again["found"]) <= 0.02 and again["run_id"] not in ("", best)


def test_input_examples(tmp_path, eager):
    done = train(unflatten(TrainConfig, QUICK), tmp_path / "run", progress=False)
    of_run = dict(experiment_ids=[open_store()[1]], filter_string=f"source_run_id = '{done.run_id}'")
    logged = mlflow.search_logged_models(**of_run, output_format="list")
    assert sorted(m.name for m in logged) == ["keras", "onnx"]
    answers = {}
    for m in logged:
        model = mlflow.pyfunc.load_model(m.model_uri)
        assert model.input_example.shape == (1, 16, 16, 3)
        y = model.predict(np.float32(model.input_example))
        answers[m.name] = next(iter(y.values())) if isinstance(y, dict) else np.asarray(y)
        folder = mlflow.artifacts.download_artifacts(m.model_uri)
        assert json.loads(model.metadata.get_serving_input(folder))["inputs"]
    np.testing.assert_allclose(answers["onnx"], answers["keras"], atol=1e-3)


@contextmanager
def few_retries(monkeypatch):
    with monkeypatch.context() as m:
        m.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        yield


def test_a_server_that_goes_away_in_the_middle(tmp_path, server, monkeypatch, eager):
    class Cut(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                server.stop()

    cfg = unflatten(TrainConfig, QUICK)
    try:
        silent = pytest.raises(StoreError, match=r"127.0.0.1.*does not answer\. Start it")
        with few_retries(monkeypatch), silent:
            train(cfg, tmp_path / "run", callbacks=(Cut(),), progress=False)
        run = (tmp_path / "run" / "mlflow_run.txt").read_text()
        said = call("models", "list", rc=1).stderr
        assert "Traceback" not in said and "does not answer" in said.splitlines()[-1], said
        with pytest.raises(StoreError):
            Denoiser.load("models:/agri-cae@champion")
    finally:
        server.start()
    done = train(cfg, tmp_path / "run", progress=False)  # goes on, in the same run
    assert done.run_id == run and mlflow.get_run(run).info.status == "FINISHED"
    scores = mlflow.MlflowClient().get_metric_history(run, "val_psnr")
    assert sorted(m.step for m in scores) == [0, 1]  # the lost one, too


def test_a_sweep_goes_on_after_the_server_was_away(tmp_path, server, monkeypatch, kernels):
    from threading import Thread

    sweep = SweepConfig(name="cut", space=dict(lr=[1e-3]), fixed=QUICK | dict(epochs=6))

    def cut():
        while not (tmp_path / "s" / "trial_0000" / "checkpoint.npz").exists():
            time.sleep(0.05)
        server.stop()

    thread = Thread(target=cut)
    thread.start()
    try:
        with few_retries(monkeypatch), pytest.raises(StoreError, match="does not answer"):
            run_sweep(sweep, tmp_path / "s", progress=False)
    finally:
        thread.join()
        server.start()
    assert [r["state"] for r in run_sweep(sweep, tmp_path / "s", progress=False).leaderboard()] == [
        "complete"
    ]
    mlflow, experiment = open_store()
    runs = mlflow.search_runs([experiment], "tags.sweep LIKE 'cut %'", output_format="list")
    assert sorted((r.data.tags["trial"], r.info.status) for r in runs) == [
        ("0", "FINISHED"),
        ("parent", "FINISHED"),
    ]


def test_runs_that_write_the_same_at_once(server):
    "PostgreSQL refuses the second insert; each of the runs has its data set and the experiment its tag all the same"
    _, experiment = open_store("together")
    client = mlflow.MlflowClient()
    context = [InputTag("mlflow.data.context", "training")]

    def describe(i, barrier):
        run = client.create_run(experiment).info.run_id
        data = Dataset(name="field", digest=f"d{i}", source_type="code", source="{}", schema="{}", profile="{}")
        barrier.wait(60)
        write_shared(client.log_inputs, run, [DatasetInput(data, context)])
        write_shared(client.set_experiment_tag, experiment, f"tag{i}", "same")
        return client.get_run(run).inputs.dataset_inputs[0].dataset.digest

    for i in range(10):
        barrier = Barrier(3)
        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(describe, [i] * 3, [barrier] * 3)) == [f"d{i}"] * 3


def test_an_experiment_that_another_machine_makes_first(monkeypatch):
    real, seen = mlflow.get_experiment_by_name, []
    open_store("both")
    monkeypatch.setattr(
        mlflow, "get_experiment_by_name", lambda name: real(name) if seen else seen.append(name)
    )
    assert open_store("both")[1] == real("both").experiment_id and seen == ["both"]
