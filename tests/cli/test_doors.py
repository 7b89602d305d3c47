"Messages name the option of their door, unknown settings are named, a full disk ends a run."

import errno
import json
import os
import re
from pathlib import Path

import pytest
from commands import ROOT, call, picture

from agri_cae.api.settings import ApiSettings
from agri_cae.config import ConfigError, Settings
from agri_cae.flights.jobs import plan
from agri_cae.io.images import read_image
from agri_cae.monitoring.log import MonitorConfig
from agri_cae.serve import DenoisedBefore, Denoiser
from agri_cae.service.client import answer_error
from agri_cae.tracking.logs import OWN, door, setting_names


def test_each_door_has_its_own_words(here, model):
    picture(here / "a.png")
    call("denoise", "a.png", "b.png", "--model", model, "--strength", "1", "-q")
    said = call("denoise", "b.png", "c.png", "--model", model, "-q", rc=1).stderr
    assert said.endswith("Use --force to do it again.\n") and "force=" not in said
    for name, words in dict(python="force=True", http="force=true", cli="--force").items():
        with door(name), pytest.raises(DenoisedBefore, match=f"Use {words} to do it again") as e:
            Denoiser.load(model).denoise_picture(read_image("b.png"))
    text = json.dumps({"detail": str(e.value).replace("--force", "force=true")}).encode()
    assert str(answer_error("http://x", "b.png", 409, text)).endswith("Use force=True to do it again.")
    with pytest.raises(ConfigError, match="or in_place=True to replace"):
        plan("a.png", "a.png")
    assert "or --in-place to replace" in call("denoise", "a.png", "a.png", rc=2).stderr


@pytest.mark.parametrize(("name", "like"), [
    ("AGRI_CAE_LOG_LEVLE", "AGRI_CAE_LOG_LEVEL"), ("AGRI_CAE_MONITOR_WIDNOW", "AGRI_CAE_MONITOR_WINDOW"),
    ("agri_cae_serve__modle", "AGRI_CAE_SERVE__MODEL"), ("AGRI_CAE_XYZ_123", ""),
    ("AGRI_CAE_QUEUE_PIXELS", None)])  # fmt: skip
def test_a_misspelt_setting_is_named_once(here, monkeypatch, name, like):
    picture(here / "a.png", side=40)
    monkeypatch.setenv(name, "1000000")
    said = [line for line in call("estimate", "a.png").stderr.splitlines() if "is no setting" in line]
    mean = f" Did you mean {like}?" if like else ""
    assert said == ([] if like is None else [f"WARNING {name.upper()} is no setting and is ignored.{mean}"])


def test_a_misspelt_setting_of_a_file_is_named(here):
    picture(here / "a.png", side=40)
    Path(".env").write_text("AGRI_CAE_MAXPIXELS=9\nOTHER=1\n")
    said = call("estimate", "a.png").stderr
    assert "AGRI_CAE_MAXPIXELS is no setting and is ignored. Did you mean AGRI_CAE_MAX_PIXELS?" in said


def test_what_the_code_and_the_manuals_name_is_known():
    files = [*(ROOT / "agri_cae").rglob("*.py"), *(ROOT / "api").glob("*.py"), *(ROOT / "deploy").glob("*.*"),
             ROOT / "README.md", ROOT / "Dockerfile"]  # fmt: skip
    named = {n for f in files for n in re.findall(r"AGRI_CAE(?:_+[A-Z]+)+\b(?!_)", f.read_text("utf-8"))}
    known = {*OWN, *(n for c in (Settings, ApiSettings, MonitorConfig) for n in setting_names(c))}
    assert named - known <= {"AGRI_CAE_MONITOR"} and len(named) > 20


def test_a_full_disk_ends_the_run(here, model, monkeypatch):
    for i in range(4):
        picture(here / "in" / f"{i}.png", seed=i)
    real, tried = os.replace, []

    def replace(a, b):
        if Path(b).parent.name == "out":
            tried.append(b)
            if len(tried) > 1:
                raise OSError(errno.ENOSPC, "No space left on device", str(a))
        return real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    said = call("denoise", "in", "out", "--model", model, rc=1).stderr
    assert len(tried) == 2 and os.listdir("out") == ["0.png"]
    [line] = [line for line in said.splitlines() if line.startswith("ERROR")]
    why = "out/1.png: cannot be written (No space left on device): the disk at /"
    for words in (why, " is full; 1 of 4 files are denoised", "Free some space", "The same command goes on with"):
        assert words in line
    done = call("denoise", "in", "out", "--model", model, "--json", "--overwrite", rc=1)
    assert [json.loads(r)["status"] for r in done.stdout.splitlines()] == ["failed"]
    assert "0 of 4 files" in done.stderr and "Without --overwrite the same command goes on" in done.stderr
