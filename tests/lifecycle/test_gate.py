"What the gate has refused stays refused, and the shipped model is the champion of an empty registry."

import subprocess
import sys

import pytest
from tiny_model import box_model

pytest.importorskip("mlflow")
from commands import call

from agri_cae.lifecycle.gate import promote
from agri_cae.lifecycle.registry import aliases, crown, get_version, rollback
from agri_cae.modelfiles.card import weights_path
from agri_cae.tracking.store import open_store, register

RUN = [sys.executable, "-c", "from agri_cae.cli.main import main; main()", "models", "promote"]


def version(weights):
    "Register weights as if a run had made them; gives the number"
    mlflow, experiment = open_store()
    client = mlflow.MlflowClient()
    run = client.create_run(experiment).info.run_id
    client.log_metric(run, "best_val_psnr", 30.0)
    model = client.create_logged_model(experiment, name="onnx", source_run_id=run)
    for suffix in (".json", ".onnx"):
        client.log_model_artifact(model.model_id, str(weights.with_suffix(suffix)))
    client.finalize_logged_model(model.model_id, "READY")
    client.set_terminated(run)
    return str(register(run).version)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    "A version that blurs, and was refused"
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path / "home"))
    bad = version(box_model(tmp_path / "bad"))
    first = promote(progress=False, side=96)
    assert not first.promote and first.reason.startswith("may be worse on the test pictures")
    assert not aliases().get("champion") and get_version(bad).tags["refused"] == first.reason
    return bad


def stays_refused(name):
    again = promote(name, progress=False, margin=0, tolerance=99)
    assert not again.promote and again.reason.startswith("was refused already: may be worse"), again
    assert "not promoted: was refused already" in call("models", "promote", name, "-q", rc=1).stdout


def test_it_is_refused_again_also_in_a_new_process(refused):
    stays_refused("challenger")
    stays_refused(refused)
    done = subprocess.run([*RUN, "-q"], capture_output=True, text=True)
    assert done.returncode == 1 and "was refused already" in done.stdout


def test_it_is_refused_after_a_rollback(refused, tmp_path):
    good = version(weights_path("base"))
    crown(good, "a test")
    other = version(box_model(tmp_path / "other"))
    crown(other, "a mistake")
    assert rollback() == good
    stays_refused(refused)
    assert aliases()["champion"] == good


def test_it_is_refused_after_another_one_was(refused, tmp_path):
    another = version(box_model(tmp_path / "another", side=5))
    said = call("models", "promote", "--limit", "side=96", "--out", tmp_path / "report", "-q", rc=1).stdout
    assert said.startswith("not promoted: may be worse") and str(tmp_path / "report" / "report.md") in said
    assert all(f"| {name} " in said for name in ("noisy", "challenger", "fast", "base"))
    assert (tmp_path / "report" / "report.md").read_text().startswith("# Not promoted")
    assert "fast 2" in get_version(another).tags["psnr_test"]
    stays_refused(another)
    stays_refused(refused)


def test_the_only_way_around_wants_a_reason(refused):
    for wrong in (["--anyway"], ["--anyway", "--reason", " "], ["--reason", "why not"]):
        said = call("models", "promote", *wrong, rc=2).stderr
        assert "--anyway: and --reason belong together" in said and "champion" not in aliases()
    said = call("models", "promote", "--limit", "slice=1", rc=2).stderr
    assert "--margin or --limit: slice: unknown key" in said and "champion" not in aliases()
    done = call("models", "promote", "--anyway", "--reason", "a demonstration")
    assert "promoted: anyway: a demonstration" in done.stdout
    tags = get_version(refused).tags
    assert aliases() == {"champion": refused} and tags["promoted"] == "a demonstration"
    assert tags["overruled"] == tags["refused"]


def test_the_first_champion_is_better_than_the_shipped_one(refused):
    good = version(weights_path("base"))
    first = promote(progress=False, side=96)
    assert first.promote and first.reason.startswith("better on the test pictures"), first
    assert get_version(good).tags["psnr_test"].startswith("noisy 20.")
    assert aliases() == {"champion": good}
