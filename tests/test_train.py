"Whole training runs: killed and resumed, tracked, by notebook, on pairs, within budgets."
import errno
import json
import os
import signal
import time
from pathlib import Path

import cv2
import nbformat
import numpy as np
import papermill
import pytest
from forked import fork

from agri_cae.config import ConfigError, DataError, NoiseConfig, OutputError, TrainConfig, flatten, unflatten
from agri_cae.fitting.checkpoint import State, finished
from agri_cae.fitting.loop import fit
from agri_cae.fitting.pictures import open_pictures
from agri_cae.fitting.validation import validation_sets
from agri_cae.io.images import read_image, sample
from agri_cae.serve import Denoiser
from agri_cae.tracking.notebooks import pipeline, run_notebook
from agri_cae.tracking.store import open_store
from agri_cae.train import train

TINY = {"epochs": 4, "steps_per_epoch": 4, "patch": 32, "batch": 2, "ema": 0.9}
SMOKE = {"epochs": 1, "steps_per_epoch": 2, "patch": 32, "batch": 2}


def tiny(**fields): return unflatten(TrainConfig, TINY | fields)


def short(**fields): return tiny(**dict(epochs=1, steps_per_epoch=2) | fields)


def quick(cfg, out, **kw): return train(cfg, out, track=False, progress=False, **kw)


def alike(a, b, atol=0.):
    for p, q in zip(a.net.get_weights(), b.net.get_weights(), strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=atol)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def pictures():
    "Two halves of the field photo, one to learn from and one to validate on"
    photo = read_image(sample("field_camera")).data
    return photo[:, :320], photo[:, 320:]


def save(folder, pictures):
    folder.mkdir(exist_ok=True)
    for i, p in enumerate(pictures): cv2.imwrite(str(folder / f"{i}.png"), p)
    return str(folder)


def runner(folder):
    code = f"""
import sys; from agri_cae.config import TrainConfig, unflatten; from agri_cae.train import train
train(unflatten(TrainConfig, {TINY!r}), sys.argv[1], track=False, progress=False)"""
    return fork(code, folder, log=os.devnull)


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    killed = runner(tmp_path / "killed")
    log, deadline = tmp_path / "killed" / "train.jsonl", time.monotonic() + 300
    while not (log.exists() and "epoch 2" in log.read_text()):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "fast.keras").exists()
    resumed, whole = quick(tiny(), tmp_path / "killed"), quick(tiny(), tmp_path / "whole")
    assert [h["epoch"] for h in resumed.fitted.state.history] == [0, 1, 2, 3]
    alike(resumed.fitted, whole.fitted, 1e-6)
    assert resumed.score == pytest.approx(whole.score, abs=1e-4)


def test_the_notebooks_parameters_are_a_train_config():
    found = papermill.inspect_notebook(str(pipeline()))
    assert set(found) == {*flatten(TrainConfig()), "out", "run_id", "trial"}
    unflatten(TrainConfig, {k: eval(v["default"]) for k, v in found.items() if k not in ("out", "run_id", "trial")})


def test_the_smoke_run_of_the_notebook(tmp_path):
    run_id = run_notebook(SMOKE, tmp_path / "run", progress=False)
    mlflow, _ = open_store()
    client, run = mlflow.MlflowClient(), mlflow.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["patch"] == "32"
    kept = {"train.ipynb", "train.html", "report.json", "curves.png", "before_after.png", "train.jsonl", "model"}
    assert kept <= {a.path for a in client.list_artifacts(run_id)}
    assert run.data.tags["mlflow.note.content"].endswith("*Artifacts*, `train.html`.")
    assert [m.step for m in client.get_metric_history(run_id, "val_psnr")] == [0]
    outputs = [o for c in nbformat.read(tmp_path / "run" / "train.ipynb", 4).cells for o in c.get("outputs", [])]
    assert len([o for o in outputs if "image/png" in o.get("data", {})]) >= 4
    lines = [json.loads(line) for line in (tmp_path / "run" / "train.jsonl").read_text().splitlines()]
    assert {o["run_id"] for o in lines} == {run_id}
    assert {o["correlation_id"] for o in lines} == {run.data.tags["correlation_id"]}
    noisy = np.random.default_rng(0).random((40, 56, 3), dtype="float32")
    logged = mlflow.search_logged_models(experiment_ids=[run.info.experiment_id], output_format="list")
    assert {m.name for m in logged} == {"onnx", "keras"}
    for uri in (f"runs:/{run_id}/model", *(f"models:/{m.model_id}" for m in logged)):
        assert Denoiser.load(uri)(noisy).shape == noisy.shape
    assert run_notebook(SMOKE, tmp_path / "run", progress=False) == run_id
    runs = mlflow.search_runs([run.info.experiment_id], output_format="list")
    assert [r.info.status for r in runs] == ["FINISHED"]


def test_a_failed_notebook_is_kept_with_its_traceback(tmp_path, kernels):
    with pytest.raises(papermill.PapermillExecutionError):
        run_notebook({"folder": str(tmp_path / "nowhere")}, tmp_path / "run", progress=False)
    mlflow, experiment = open_store()
    run, = mlflow.search_runs([experiment], output_format="list")
    assert run.info.status == "FAILED"
    artifacts = mlflow.MlflowClient().list_artifacts(run.info.run_id)
    assert [a.path for a in artifacts] == ["train.html", "train.ipynb"]
    assert "DataError" in (tmp_path / "run" / "train.ipynb").read_text()


@pytest.mark.parametrize("name", ["train", "monitor"])
def test_papermill_by_hand_is_refused_a_name_that_the_notebook_lacks(tmp_path, name, kernels):
    out = tmp_path / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError) as e:
        papermill.execute_notebook(str(pipeline(name)), str(out), {"learning_rate": 0.1}, kernel_name="python3",
                                   progress_bar=False)
    assert e.value.ename == "ConfigError" and "learning_rate: is no parameter of this notebook" in e.value.evalue
    assert not open_store()[0].search_runs(search_all_experiments=True, output_format="list")


def test_wrong_parameters_start_nothing(tmp_path):
    with pytest.raises(ConfigError, match="learning_rate"): run_notebook({"learning_rate": 1}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, eager):
    (tmp_path / "file").write_text("")
    cfg = short()
    with pytest.raises(OutputError, match="file: cannot be written"): quick(cfg, tmp_path / "file")
    def full(*a, **k): raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run"))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OutputError, match="No space left"): quick(cfg, tmp_path / "run")
    left = {p.name for p in (tmp_path / "run").iterdir()}
    assert not [n for n in left if n.endswith(".tmp")] and "fast.json" not in left


def test_other_data_in_the_same_folder_is_refused(tmp_path, pictures, eager):
    cfg = short()
    quick(cfg, tmp_path / "run")
    other = cfg.model_copy(update={"data": cfg.data.model_copy(update={"folder": save(tmp_path / "new", pictures)})})
    with pytest.raises(DataError, match="digest"): quick(other, tmp_path / "run")


def test_pictures_that_are_open_are_not_opened_again(tmp_path, monkeypatch, eager):
    cfg = short()
    opened = open_pictures(cfg, progress=False)
    monkeypatch.setattr("agri_cae.data.open_dataset", lambda *a, **k: 1 / 0)
    monkeypatch.setattr("agri_cae.fitting.pictures.load_pictures", lambda *a, **k: 1 / 0)
    assert quick(cfg, tmp_path / "run", pictures=opened).card.data["digest"] == opened.data.digest


def test_a_model_comes_with_the_profile_of_its_pictures(tmp_path, pictures, eager):
    patches = [p[y:y + 64, x:x + 64] for p in pictures for y in range(0, 320, 80) for x in range(0, 300, 80)]
    cfg = short(folder=save(tmp_path / "photos", patches))
    done = train(cfg, tmp_path / "run", progress=False)
    profile = tmp_path / "run" / "fast.profile.json"
    assert json.loads(profile.read_text())["model"] == "fast@1"
    mlflow, experiment = open_store()
    client = mlflow.MlflowClient()
    assert f"model/{profile.name}" in {a.path for a in client.list_artifacts(done.run_id, "model")}
    for m in mlflow.search_logged_models(experiment_ids=[experiment], output_format="list"):
        assert profile.name in {a.path for a in client.list_logged_model_artifacts(m.model_id)}


def test_pairs_are_learned_without_added_noise(tmp_path, pictures, eager):
    rng = np.random.default_rng(0)
    pairs = [(np.clip(p + rng.normal(0, 20, p.shape), 0, 255).astype("uint8"), p) for p in pictures]
    assert list(fit(short(), pairs[:1], pairs[1:], tmp_path, progress=False).sets) == ["pairs"]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_budgets_end_a_run(tmp_path, pictures, precision):
    cfg = tiny(epochs=None, minutes=0.02, precision=precision)
    short = fit(cfg, pictures[:1], pictures[1:], tmp_path, progress=False)
    assert short.state.seconds >= 1.2
    assert all(w.dtype == "float32" and np.isfinite(w).all() for w in short.net.get_weights())


def test_a_short_run_is_better_than_its_input_and_says_so(tmp_path, pictures, caplog):
    "The average of a run of 90 steps holds nothing of its random start, whatever length was asked for"
    cfg = tiny(epochs=3, steps_per_epoch=30, patch=64, batch=8, ema=0.999)
    with caplog.at_level("INFO", "agri_cae"):
        done = quick(cfg, tmp_path)
    noisy = done.card.metrics["val_noisy_psnr"]
    assert done.score > noisy + 1 and f"noisy {noisy:.3f} dB" in caplog.text and "worse" not in caplog.text
    assert [h["val_noisy_psnr"] for h in done.fitted.state.history] == [noisy] * 3


def test_a_model_that_makes_pictures_worse_is_not_called_good(tmp_path, caplog, eager):
    quick(tiny(epochs=1, steps_per_epoch=1, sigma_max=2.0), tmp_path)
    assert "make pictures worse" in caplog.text


def test_a_model_has_the_bands_of_its_pictures(tmp_path, eager):
    for i in range(4):
        x = np.random.default_rng(i).integers(40, 200, (12, 12), np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), cv2.resize(x, (96, 96)))
    grey = short(folder=str(tmp_path))
    assert grey.model.channels is None
    done = quick(grey, tmp_path / "run")
    assert done.card.channels == done.card.train["channels"] == 1
    assert Denoiser.load(done.weights)(np.full((40, 40), 99, np.uint8)).shape == (40, 40)
    assert quick(grey, tmp_path / "run").score == done.score  # it is the same run
    with pytest.raises(ConfigError, match=r"channels: is 3, but the pictures have 1\. Leave it out"):
        quick(short(folder=str(tmp_path), channels=3), tmp_path / "other")
    assert not [p for p in (tmp_path / "other").iterdir() if p.name[0] != "."]


def test_ten_epochs_are_no_budget_where_another_ends_the_run():
    assert finished(tiny(epochs=None), at(epoch=10)) and not finished(tiny(epochs=None), at(epoch=9))
    for budget in (dict(minutes=2), dict(gigapixels=1e-6)):
        cfg = tiny(epochs=None, **budget)
        assert not finished(cfg, at(epoch=1000)) and finished(cfg, at(epoch=1000, seconds=120, pixels=1000))
        assert finished(tiny(epochs=20, **budget), at(epoch=20))


def at(**how):
    state = State()
    for key, value in how.items():
        setattr(state, key, value)
    return state


def test_patience_ends_a_run(tmp_path, pictures):
    stale = fit(tiny(epochs=50, patience=2, lr=1e-9, ema=0), pictures[:1], pictures[1:], tmp_path, progress=False)
    assert stale.state.epoch - 1 - stale.state.best_epoch == 2


def test_a_run_goes_on_from_shipped_weights(tmp_path, eager):
    first = quick(short(), tmp_path / "a")
    second = quick(short(init_from=str(first.weights)), tmp_path / "b")
    assert len(second.card.history) == 2 and second.card.version == "2"
    assert str(tmp_path) not in second.card.model_dump_json()


def test_a_tracked_run_goes_on_with_a_larger_budget(tmp_path, eager):
    first, more = (train(short(epochs=n), tmp_path / "run", progress=False) for n in (1, 2))
    mlflow, _ = open_store()
    run = mlflow.get_run(first.run_id)
    assert more.run_id == first.run_id and run.info.status == "FINISHED"
    assert "train.html" not in run.data.tags["mlflow.note.content"]  # it was not logged
    assert [m.step for m in mlflow.MlflowClient().get_metric_history(first.run_id, "val_psnr")] == [0, 1]


def test_a_model_with_a_name_of_its_own(tmp_path, eager):
    cfg, run = short(name="orchard"), tmp_path / "run"
    done = train(cfg, run, progress=False)
    assert {f.name for f in run.glob("*.keras")} == {"orchard.keras"} and done.weights.name == "orchard.keras"
    assert {"orchard.onnx", "orchard.json"} <= {f.name for f in run.iterdir()}
    assert (done.card.name, done.card.preset) == ("orchard", "fast")
    assert set(done.card.sha256) == {"orchard.keras", "orchard.onnx"}
    mlflow, _ = open_store()
    assert mlflow.get_run(done.run_id).data.params["name"] == "orchard"
    artifacts = mlflow.MlflowClient().list_artifacts(done.run_id, "model")
    assert {Path(a.path).name for a in artifacts} == {f"orchard.{e}" for e in ("json", "onnx", "keras")}
    noisy = np.random.default_rng(0).random((40, 56, 3), dtype="float32")
    both = (Denoiser.load(m)(noisy) for m in (f"runs:/{done.run_id}/model", run / "orchard.onnx"))
    np.testing.assert_array_equal(*both)
    assert train(cfg, run, progress=False).weights == done.weights


def test_widened_data_is_reproducible(tmp_path, eager):
    plain = {"recipe": "field"}
    wide = plain | {"scale_jitter": 0.5, "colour_jitter": 1.0, "permute": 0.5, "synthetic": 0.5}
    a, b, c = (quick(short(**fields), tmp_path / n) for n, fields in (("a", wide), ("b", wide), ("c", plain)))
    alike(a.fitted, b.fitted)
    assert a.fitted.state.history[0]["loss"] != c.fitted.state.history[0]["loss"]
    assert a.card.train["synthetic"] == 0.5
    assert a.card.data == c.card.data   # drawn pictures are no data that is validated on


def test_validation_sets_of_the_field_recipe(pictures):
    sets = validation_sets(pictures, NoiseConfig(recipe="field"))
    assert list(sets) == ["field", "sigma15", "sigma25", "sigma50"]
    for name, (noisy, clean, _) in sets.items():
        assert noisy.shape == clean.shape == (2, 192, 192, 3)
        if name != "field": assert np.std(noisy - clean) * 255 == pytest.approx(float(name[5:]), rel=0.02)
    again = validation_sets(pictures, NoiseConfig(recipe="field"))
    for name in sets: np.testing.assert_array_equal(sets[name].noisy, again[name].noisy)
    below_30 = validation_sets(pictures, NoiseConfig(recipe="field", sigma_max=30))
    assert list(below_30) == ["field", "sigma15", "sigma25"]
