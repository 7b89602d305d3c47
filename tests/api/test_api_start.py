"Wrong starts of the service: one line that says what is wrong, the exit code, and nothing that was started."

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from served import served
from tiny_model import box_model

from agri_cae.modelfiles.card import Card, sha256

ENTRY = "drone:" + "0" * 64
# starts the command again and again in one process, without MLflow, and says what it has loaded in the end
RUNS = """
import contextlib, io, json, os, sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def without(cls, name, *a): return None if name.split(".")[0] == "mlflow" else find(name, *a)
PathFinder.find_spec = classmethod(without)
from agri_cae.cli.main import main
found = []
for env, args in json.load(sys.stdin):
    before, said = dict(os.environ), io.StringIO()
    os.environ.update(env)
    sys.argv = ["agri-cae", "serve", *args]
    with contextlib.redirect_stderr(said):
        try: main()
        except SystemExit as e: code = e.code
    os.environ.clear()
    os.environ.update(before)
    found.append((code, said.getvalue()))
heavy = {"tensorflow", "keras", "mlflow", "onnxruntime"} & {m.split(".")[0] for m in sys.modules}
print(json.dumps([found, sorted(heavy)]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    d = tmp_path_factory.mktemp("files")
    (d / "keys").write_text("not an entry\n")
    (d / "mine").mkdir()
    box_model(d, name="bare").with_suffix(".json").unlink()
    box_model(d, name="changed").write_bytes(b"other weights")
    (d / "file").write_text("not a folder")
    (d / "log.db").write_bytes(b"not a data base" * 100)
    return d


def wrong_starts(d, busy):
    "(environment, arguments, exit code, what is said)"
    def model(value): return {}, ["--model", value]
    return [
        ({"AGRI_CAE_KEYS_FILE": f"{d}/none"}, [], 2, "none: cannot be read"),
        ({"AGRI_CAE_KEYS_FILE": f"{d}/keys"}, [], 2, "keys: holds an entry that is not NAME:SHA256"),
        ({"AGRI_CAE_KEYS_FILE": f"{d}/mine"}, [], 2, "mine: cannot be read"),
        ({"AGRI_CAE_KEYS": "secret"}, [], 2, "AGRI_CAE_KEYS: holds an entry"),
        ({"AGRI_CAE_METRICS_KEY": "secret"}, [], 2, "AGRI_CAE_METRICS_KEY: holds an entry"),
        (*model("nix"), 2, "nix: is no model"),
        (*model(f"{d}/gone.onnx"), 2, "gone.onnx: is no model"),
        (*model(f"{d}/bare.onnx"), 2, "bare.onnx"),
        (*model(f"{d}/changed.onnx"), 2, "the SHA-256 differs"),
        (*model("models:/agri-cae@champion"), 2, "needs MLflow"),
        ({"AGRI_CAE_MODELS": '["nix"]'}, [], 2, "nix: is no model"),
        ({"AGRI_CAE_MODELS": "fast"}, [], 2, "AGRI_CAE_MODELS: is not JSON"),
        ({"AGRI_CAE_HOME": f"{d}/file"}, [], 2, "file: cannot be made"),
        ({"AGRI_CAE_MONITOR_PATH": f"{d}/log.db"}, [], 1, "log.db: the prediction log fails"),
        ({"AGRI_CAE_DEADLINE": "0"}, [], 2, "deadline"),
        ({"AGRI_CAE_RATE": "fast"}, [], 2, "rate"),
        ({"AGRI_CAE_SERVE__STRENGTH": "2"}, [], 2, "strength"),
        ({"AGRI_CAE_SERVE__ENGINE": "tensorrt"}, [], 2, "engine"),
        ({}, ["--port", str(busy)], 2, f"--port {busy}: cannot be listened at (Address already in use)"),
        ({}, ["--port", "70000"], 2, "'--port'"),
        ({}, ["--host", "300.1.1.1"], 2, "--host 300.1.1.1"),
        ({}, ["--workers", "-1"], 2, "'--workers'"),
        ({"WEB_CONCURRENCY": "many"}, [], 2, "'--workers'"),
    ]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_wrong_starts(files, tmp_path, workers):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = wrong_starts(files, taken.getsockname()[1])
        home = {"AGRI_CAE_HOME": str(tmp_path / "home"), "AGRI_CAE_WORKERS": str(workers), "PORT": "0"}
        own = [home | {"AGRI_CAE_MODELS": '["fast"]'} | env for env, *_ in cases]
        for env in own:
            if "WEB_CONCURRENCY" in env: del env["AGRI_CAE_WORKERS"]
        asked = [(env, args) for env, (_, args, *_) in zip(own, cases, strict=True)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("AGRI_CAE")}
        done = subprocess.run([sys.executable, "-c", RUNS], input=json.dumps(asked), capture_output=True, text=True,
                              env=clean, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, heavy = json.loads(done.stdout)
    for (_, args, code, says), (got, said) in zip(cases, found, strict=True):
        last = said.strip().splitlines()[-1]
        assert got == code and says in last and "Traceback" not in said, (args, says, got, said)
        assert said.count("ERROR") == 1 or "Usage" in said or "Invalid value" in said, said
        assert "secret" not in said
    assert not heavy


def started(folder, workers, model):
    return served(folder, "--workers", workers, "--model", str(model), AGRI_CAE_LOG_LEVEL="INFO")


@pytest.mark.parametrize("workers", ["0", "1", "2"])
def test_weights_that_no_engine_can_run(tmp_path, workers):
    "Only the engine sees that: the first process to try ends the service"
    path = tmp_path / "mine.onnx"
    path.write_bytes(b"no network")
    card = Card(name="mine", version="1", preset="fast", receptive_field=3, sha256={path.name: sha256(path)})
    path.with_suffix(".json").write_text(card.model_dump_json())
    with pytest.raises(AssertionError) as e, started(tmp_path, workers, path): pass
    said = [line for line in str(e.value).splitlines() if line.startswith("ERROR")]
    assert len(said) == 1 and "mine.onnx" in said[0] and "Traceback" not in str(e.value), str(e.value)


def test_it_says_where_to_look_and_takes_its_workers_from_the_environment(tmp_path):
    with served(tmp_path, WEB_CONCURRENCY="2") as s:
        assert f"open http://127.0.0.1:{s.port}" in s.log.read_text()
        end = time.monotonic() + 60  # one may be ready before the other
        while s.log.read_text().count(" ready") < 2:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert s.stop() == 0


def test_sighup_replaces_the_workers_without_a_gap(tmp_path):
    with served(tmp_path) as s:
        before, statuses = s.worker.pid, []
        s.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 60
        while s.worker.pid == before or not psutil.pid_exists(s.worker.pid):
            statuses.append(s.ask("GET", "/readyz")[0])
            assert time.monotonic() < end
        statuses.append(s.ask("GET", "/readyz")[0])
        assert set(statuses) == {200} and s.stop() == 0
