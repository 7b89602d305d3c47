"What the gate has refused stays refused, and the shipped model is the champion of an empty registry."

import json
import shutil
import subprocess
import sys

import pytest
from tiny_model import box_model

pytest.importorskip("mlflow")
from commands import call

from agri_cae import __version__
from agri_cae.io.images import sample
from agri_cae.lifecycle import registry
from agri_cae.lifecycle.gate import promote
from agri_cae.lifecycle.registry import aliases, crown, get_version, refuse, rollback, version_history
from agri_cae.modelfiles.card import read_card, sha256, weights_path
from agri_cae.serve import model_path
from agri_cae.tracking.runs import RUN_NOTE
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
    assert done.stdout.startswith("promoted anyway: a demonstration\nagainst it: may be worse")
    tags = get_version(refused).tags
    assert aliases() == {"champion": refused} and tags["promoted"] == "a demonstration"
    assert tags["overruled"] == tags["refused"]


def test_the_first_champion_is_better_than_the_shipped_one(refused):
    good = version(weights_path("base"))
    first = promote(progress=False, side=96)
    assert first.promote and first.reason.startswith("better on the test pictures"), first
    assert get_version(good).tags["psnr_test"].startswith("noisy 20.")
    assert aliases() == {"champion": good}


def listed():
    return {v["version"]: v for v in json.loads(call("models", "list", "--json").stdout)}


def test_the_first_champion_goes_back_to_the_shipped_one(refused):
    assert "before which there was none" in call("models", "rollback", rc=2).stderr
    for _ in range(2):  # the second time nothing is left of the first one
        promote(refused, anyway="a mistake")
        assert list(listed()) == [refused] and listed()[refused]["state"] == "promoted anyway"
        assert "the shipped fast is the champion again" in call("models", "rollback").stdout
        assert "champion" not in aliases() and version_history()[-1]["event"] == "rolled back"
        assert model_path("models:/agri-cae@champion") == weights_path("fast")
        assert listed()["fast"]["alias"] == "champion" and "fast" in call("models", "list").stdout
        assert json.loads(call("models", "show", "champion").stdout)["name"] == "fast"
    stays_refused(refused)


def test_the_list_shows_what_the_gate_has_said(refused, tmp_path):
    row = listed()[refused]
    assert row["state"] == "refused" and row["why"].startswith("may be worse on the test pictures")
    assert "| refused " in call("models", "list").stdout
    crown(version(weights_path("base")), "better by 0.6 dB")
    assert [v["state"] for v in listed().values()] == ["promoted", "refused"]


def test_anyway_compares_where_it_is_asked_to_and_the_report_says_who_met_whom(refused, tmp_path):
    shutil.copy(sample("field_camera"), tmp_path)
    asked = "--data", tmp_path, "--out", tmp_path / "report", "--limit", "side=96"
    said = call("models", "promote", "--anyway", "--reason", "a demonstration", *asked, "-q").stdout
    assert said.startswith("promoted anyway: a demonstration\nagainst it: ") and "| challenger " in said
    assert aliases() == {"champion": refused} and "instead of" in get_version(refused).tags["overruled"]
    begin = (tmp_path / "report" / "report.md").read_text().partition("What was asked")[0]
    assert begin.startswith("# Promoted anyway") and "Why: a demonstration" in begin
    about = json.loads((tmp_path / "report" / "report.json").read_text())
    facts = about["facts"]
    assert all(f"| {k} | {v} |" in begin for k, v in facts.items()) and about["promoted"]
    assert facts["challenger"].startswith(f"version {refused} of agri-cae: box@3, digest ")
    assert facts["champion"].startswith("shipped: fast@") and facts["agri_cae"] == __version__
    assert f"{tmp_path}: 1 pictures, digest " in facts["test pictures"] and "UTC" in facts["date"]
    assert "margin 0.05, " in facts["limits (dB, side in pixels)"]


def test_what_was_trained_becomes_a_version_and_only_one(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path / "home"))
    weights = box_model(tmp_path / "run")
    said = call("models", "add", tmp_path / "run").stdout
    assert said.startswith("version 1 is the challenger") and aliases() == {"challenger": "1"}
    assert model_path("models:/agri-cae@challenger").read_bytes() == weights.read_bytes()
    refuse("1", "blurs")
    (tmp_path / "run" / "box.keras").touch()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for again in (weights, weights.with_suffix(".keras"), tmp_path / "copy"):
        assert call("models", "add", again).stdout.startswith("version 1 is")
    assert "was refused already: blurs" in call("models", "promote", rc=1).stdout
    assert "holds no trained model" in call("models", "add", tmp_path, rc=2).stderr
    other = box_model(tmp_path / "tracked", side=5, name="other")
    mlflow, experiment = open_store()
    files = read_card(other), other, sha256(other)
    run = registry._run_of_files(mlflow.MlflowClient(), experiment, *files)
    (tmp_path / "tracked" / RUN_NOTE).write_text(run)  # as a training leaves it
    assert registry.add_version(tmp_path / "tracked").run_id == run
    box_model(tmp_path / "run", side=5, name="other")
    assert "holds several models: box.onnx, other.onnx" in call("models", "add", tmp_path / "run", rc=2).stderr
