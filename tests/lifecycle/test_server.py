"A real MLflow tracking server with PostgreSQL and an artifact folder that only the server sees: train, sweep, register, promote, load, reproduce, and what happens when the server goes away."
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

psycopg2 = pytest.importorskip("psycopg2")
mlflow = pytest.importorskip("mlflow")
from agri_cae.cli.main import app
from agri_cae.config import ModelError, StoreError, TrainConfig, unflatten
from agri_cae.lifecycle.registry import aliases, crown, get_version
from agri_cae.search.study import SweepConfig
from agri_cae.search.sweep import run_sweep
from agri_cae.serve import Denoiser, model_path
from agri_cae.tracking.store import open_store, register
from agri_cae.train import train

QUICK = dict(epochs=2, steps_per_epoch=2, minutes=None, patch=32, batch=2, ema=.5)
BIN = next(iter([*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *(Path(p).parent for p in [shutil.which("initdb")] if p)]), None)
pytestmark = pytest.mark.skipif(not (BIN and (BIN / "initdb").exists() and os.name == "posix"), reason="PostgreSQL is not installed (Debian: apt-get install postgresql)")
MAIN = [sys.executable, "-c", "from agri_cae.cli.main import main; main()"]


def free_port():
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); return s.getsockname()[1]


def wait_for(ready, process, log, seconds=300):
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None and time.monotonic() < end, Path(log).read_text()[-3000:]
        time.sleep(.3)


def stop(process):
    process.terminate()
    try: process.wait(60)
    except subprocess.TimeoutExpired: process.kill(); process.wait()


@pytest.fixture(scope="module")
def database():
    "URI of a PostgreSQL of our own, on a socket in a temporary folder; it refuses to run as root"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as d:
        user = {}
        if os.geteuid() == 0:
            import pwd
            user = dict(user="nobody", group=pwd.getpwnam("nobody").pw_gid, extra_groups=[])
            os.chown(d, pwd.getpwnam("nobody").pw_uid, -1)
        with open(f"{d}/log", "w") as log:
            made = subprocess.run([BIN / "initdb", "-D", f"{d}/data", "-U", "agri", "-A", "trust", "-E", "UTF8", "--no-sync"], cwd=d, stdout=log, stderr=log, **user)
            assert made.returncode == 0, Path(log.name).read_text()[-3000:]
            server = subprocess.Popen([BIN / "postgres", "-D", f"{d}/data", "-k", d, "-h", "", "-F"], cwd=d, stdout=log, stderr=log, **user)
            def ready():
                try: psycopg2.connect(host=d, user="agri", dbname="postgres").close(); return True
                except psycopg2.OperationalError: return False
            try:
                wait_for(ready, server, log.name)
                yield f"postgresql+psycopg2://agri@/postgres?host={d}"
            finally: stop(server)


class Server:
    "An MLflow server that can be stopped and started again"
    def __init__(self, database, folder):
        self.database, self.folder, self.port = database, folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def up(self):
        try: return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        except OSError: return False

    def start(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AGRI_CAE", "MLFLOW"))} | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with open(self.folder / "log", "a") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1", "--port", str(self.port),
                                             "--workers", "1"], cwd=self.folder, stdout=log, stderr=log, env=env, start_new_session=True)
        wait_for(self.up, self.process, log.name)

    def stop(self):
        os.killpg(self.process.pid, 15)   # with its workers
        self.process.wait(60)


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    s = Server(database, tmp_path_factory.mktemp("server"))
    s.start()
    try: yield s
    finally: s.stop()


@pytest.fixture(autouse=True)
def remote(server, tmp_path, monkeypatch):
    "A machine that knows nothing but the server's address"
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path / "home")); monkeypatch.setenv("AGRI_CAE_TRACKING_URI", server.uri)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


def agri(*args, code=0):
    done = CliRunner().invoke(app, [*map(str, args)])
    assert done.exit_code == code, (done.output, done.exception)
    return done.stdout


def start(file, out): return subprocess.Popen([*MAIN, "sweep", str(file), "--out", str(out), "--json"], stdout=subprocess.PIPE, stderr=open(file.with_suffix(".log"), "a"), text=True)


def test_from_sweep_to_champion(tmp_path, server):
    "Two processes share a sweep on a store that is still empty"
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(dict(name="remote", space=dict(lr=[1e-3, 3e-3]), fixed=QUICK)))
    both = [start(file, tmp_path / "s") for _ in range(2)]
    found = [json.loads(p.communicate(timeout=1200)[0] or "{}") for p in both]
    assert [p.returncode for p in both] == [0, 0], file.with_suffix(".log").read_text()[-3000:]
    board = found[0]["leaderboard"] if all(r["state"] == "complete" for r in found[0]["leaderboard"]) else found[1]["leaderboard"]
    assert [r["state"] for r in board] == ["complete"] * 2
    _, experiment = open_store()
    runs = mlflow.search_runs([experiment], output_format="list")
    assert sorted((r.data.tags["trial"], r.info.status) for r in runs) == [("0", "FINISHED"), ("1", "FINISHED"), ("parent", "FINISHED")]
    assert all(r.info.artifact_uri.startswith("mlflow-artifacts:/") for r in runs) and not (tmp_path / "home" / "mlflow.db").exists()
    best = next(r for r in runs if r.data.tags["trial"] == str(board[0]["trial"])).info.run_id

    version, = json.loads(agri("models", "list", "--json"))
    assert version["alias"] == "challenger" and version["reason"] == "best of 2 trials of the sweep remote"
    assert "the first champion" in agri("models", "promote", "--quiet")
    card = json.loads(agri("models", "show", "champion"))
    assert card["run_id"] == best and card["aliases"] == ["champion"]

    own = tmp_path / "s" / f"trial_{board[0]['trial']:04}" / "fast.onnx"
    x = np.random.default_rng(0).random((40, 50, 3), np.float32)
    np.testing.assert_array_equal(Denoiser.load("models:/agri-cae@champion")(x), Denoiser.load(own)(x))
    assert model_path("models:/agri-cae@champion") == model_path("models:/agri-cae/1") and (tmp_path / "home" / "fetched").is_dir()   # fetched once
    with pytest.raises(ModelError, match="cannot be fetched"): Denoiser.load("models:/agri-cae@nobody")

    done = train(unflatten(TrainConfig, QUICK | dict(lr=2e-3, init_from=str(own))), tmp_path / "two", progress=False)
    register(done.run_id, reason="another")
    assert "train.lr" in agri("models", "diff", "challenger", "champion")
    assert "not promoted: " in agri("models", "promote", "--margin", 50, "--quiet", code=1) and aliases() == {"champion": "1", "challenger": "2"}
    crown("2", "a test")
    assert "version 1 is the champion again" in agri("models", "rollback") and aliases()["champion"] == "1"
    with pytest.raises(ModelError, match="Versions: 1, 2"): get_version("9")

    again = json.loads(agri("reproduce", best, "--out", tmp_path / "again", "--force", "--json", "--quiet"))
    assert abs(again["recorded"] - again["found"]) <= .02 and again["run_id"] not in ("", best)


def test_input_examples(tmp_path):
    done = train(unflatten(TrainConfig, QUICK), tmp_path / "run", progress=False)
    logged = mlflow.search_logged_models(experiment_ids=[open_store()[1]], filter_string=f"source_run_id = '{done.run_id}'", output_format="list")
    assert sorted(m.name for m in logged) == ["keras", "onnx"]
    answers = {}
    for m in logged:
        model = mlflow.pyfunc.load_model(m.model_uri)
        assert model.input_example.shape == (1, 16, 16, 3)
        y = model.predict(np.float32(model.input_example))
        answers[m.name] = next(iter(y.values())) if isinstance(y, dict) else np.asarray(y)
        assert json.loads(model.metadata.get_serving_input(mlflow.artifacts.download_artifacts(m.model_uri)))["inputs"]
    np.testing.assert_allclose(answers["onnx"], answers["keras"], atol=1e-3)


@contextmanager
def few_retries(monkeypatch):
    with monkeypatch.context() as m: m.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"); yield


def test_a_server_that_goes_away_in_the_middle(tmp_path, server, monkeypatch):
    class Cut(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0: server.stop()

    cfg = unflatten(TrainConfig, QUICK)
    try:
        with few_retries(monkeypatch), pytest.raises(StoreError, match=r"127.0.0.1.*does not answer\. Start it"): train(cfg, tmp_path / "run", callbacks=(Cut(),), progress=False)
        run = (tmp_path / "run" / "mlflow_run.txt").read_text()
        done = subprocess.run([*MAIN, "models", "list"], capture_output=True, text=True)
        assert done.returncode == 1 and "does not answer" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr
        with pytest.raises(StoreError): Denoiser.load("models:/agri-cae@champion")
    finally: server.start()
    done = train(cfg, tmp_path / "run", progress=False)                       # goes on, in the same run
    assert done.run_id == run and mlflow.get_run(run).info.status == "FINISHED"
    assert sorted(m.step for m in mlflow.MlflowClient().get_metric_history(run, "val_psnr")) == [0, 1]   # the lost one too


def test_a_sweep_goes_on_after_the_server_was_away(tmp_path, server, monkeypatch):
    from threading import Thread
    sweep = SweepConfig(name="cut", space=dict(lr=[1e-3]), fixed=QUICK | dict(epochs=6))
    def cut():
        while not (tmp_path / "s" / "trial_0000" / "checkpoint.npz").exists(): time.sleep(.05)
        server.stop()
    thread = Thread(target=cut); thread.start()
    try:
        with few_retries(monkeypatch), pytest.raises(StoreError, match="does not answer"): run_sweep(sweep, tmp_path / "s", progress=False)
    finally: thread.join(); server.start()
    assert [r["state"] for r in run_sweep(sweep, tmp_path / "s", progress=False).leaderboard()] == ["complete"]
    mlflow, experiment = open_store()
    runs = mlflow.search_runs([experiment], "tags.sweep LIKE 'cut %'", output_format="list")
    assert sorted((r.data.tags["trial"], r.info.status) for r in runs) == [("0", "FINISHED"), ("parent", "FINISHED")]


def test_an_experiment_that_another_machine_makes_first(monkeypatch):
    real, seen = mlflow.get_experiment_by_name, []
    open_store("both")
    monkeypatch.setattr(mlflow, "get_experiment_by_name", lambda name: real(name) if seen else seen.append(name))
    assert open_store("both")[1] == real("both").experiment_id and seen == ["both"]
