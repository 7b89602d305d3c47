"""Sweeps: killed and restarted, two processes, failing trials, Dask workers.

SWEEP_TRIALS=12 SWEEP_KILLS=3 make the first one longer."""

import importlib.util
import os
import random
import signal
from subprocess import TimeoutExpired

import pytest
import yaml

pytest.importorskip("keras")
from forked import MAIN, fork, run_in_forks, start_server

from agri_cae.config import AgriCaeError, ConfigError, DataError
from agri_cae.search import trials
from agri_cae.search.space import SweepConfig
from agri_cae.search.sweep import run_sweep
from agri_cae.tracking.store import open_store

QUICK = dict(epochs=3, steps_per_epoch=3, minutes=None, patch=32, batch=2, ema=0.5)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path / "home"))


def start(file, *more):
    return fork(MAIN, "sweep", file, "--workers", 2, *more, out=os.devnull, log=file.with_suffix(".log"))


def outcomes():
    "(trial, status) of each MLflow run, sorted"
    mlflow, experiment = open_store()
    runs = mlflow.search_runs([experiment], output_format="list")
    return sorted((r.data.tags["trial"], r.info.status) for r in runs)


def write(tmp_path, **kw):
    file = tmp_path / "space.yaml"
    file.write_text(yaml.safe_dump(dict(name="s", fixed=QUICK) | kw))
    return file


def test_killed_at_random_and_restarted(tmp_path):
    count, kills = int(os.environ.get("SWEEP_TRIALS", 3)), int(os.environ.get("SWEEP_KILLS", 2))
    space, rng = dict(lr=dict(low=1e-4, high=1e-2, log=True), loss=["psnr", "mse"]), random.Random()
    file = write(tmp_path, space=space, trials=count, prune=False)
    for _ in range(kills):
        run, pause = start(file), rng.uniform(1, 10 * count)
        try:
            run.wait(pause)
        except TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)
            assert run.wait() == -signal.SIGKILL, pause
    both = [start(file), start(file)]  # two at once share what is left
    assert [p.wait(900) for p in both] == [0, 0], file.with_suffix(".log").read_text()[-3000:]
    assert outcomes() == sorted([*((str(i), "FINISHED") for i in range(count)), ("parent", "FINISHED")])
    mlflow, experiment = open_store()
    client = mlflow.MlflowClient()
    (parent,) = mlflow.search_runs([experiment], "tags.trial = 'parent'", output_format="list")
    best = client.get_model_version_by_alias("agri-cae", "challenger")
    assert best.run_id == parent.data.tags["best_run"]
    assert len(client.search_model_versions("name = 'agri-cae'")) == 1
    for r in mlflow.search_runs([experiment], "tags.trial != 'parent'", output_format="list"):
        assert r.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert [m.step for m in client.get_metric_history(r.info.run_id, "val_psnr")] == [0, 1, 2]
        kept = {a.path for a in client.list_artifacts(r.info.run_id)}
        assert {"train.ipynb", "train.html", "report.json", "train.jsonl", "model"} <= kept
    assert start(file).wait(300) == 0 and len(outcomes()) == count + 1  # nothing is done twice


@pytest.fixture
def scheduler():
    "The address of two Dask workers; None, which means processes of the sweep's own, where Dask is not installed"
    if not importlib.util.find_spec("distributed"): yield None
    else:
        import dask
        import distributed
        how = dict(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
        forked = {"distributed.worker.multiprocessing-method": "forkserver", "distributed.worker.daemon": False}
        start_server()
        with dask.config.set(forked), distributed.LocalCluster(**how) as cluster:
            with distributed.Client(cluster) as client: client.run(run_in_forks)
            yield cluster.scheduler_address


def test_a_failing_trial_stops_no_other_on_dask_either(tmp_path, scheduler, kernels):
    "A patch of 1024 fits no sample; the check before the first trial sees the first values of the others only"
    with pytest.raises(AgriCaeError, match=r"space\.patch = 1024"):
        run_sweep(SweepConfig(space=dict(patch=[32, 1024])), tmp_path / "s", progress=False)
    assert not outcomes()
    fixed = QUICK | dict(clip_norm=1e30, optimizer="adamw", loss="mse", init_from="")
    cfg = SweepConfig(name="s", space=dict(lr=[1e-3, 0.99, 2e-3]), fixed=fixed)
    sweep = run_sweep(cfg, tmp_path / "s", workers=2, scheduler=scheduler, progress=False)
    states = [r["state"] for r in sweep.leaderboard()]
    assert len(states) == 3 and states[:2] == ["complete"] * 2


def test_a_scheduler_that_is_not_there(tmp_path):
    pytest.importorskip("distributed")
    cfg = SweepConfig(name="s", space=dict(lr=[1e-3]), fixed=QUICK)
    with pytest.raises(ConfigError, match="cannot be reached"):
        run_sweep(cfg, tmp_path / "s", scheduler="tcp://127.0.0.1:1", progress=False)


def test_all_trials_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "run_notebook", lambda *a, **k: 1 / 0)
    cfg = SweepConfig(name="s", space=dict(lr=[1e-3, 2e-3]), fixed=QUICK)
    with pytest.raises(DataError, match="ZeroDivisionError"):
        run_sweep(cfg, tmp_path / "s", progress=False)
    assert outcomes() == [("0", "FAILED"), ("1", "FAILED"), ("parent", "FAILED")]
