"Monitoring: watchers in processes, profiles, rules for Prometheus, imports, and the way from an alert to a retraining."

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import yaml
from commands import call

from agri_cae.modelfiles.card import read_card, shipped
from agri_cae.monitoring import alerts
from agri_cae.monitoring.alerts import Watcher, list_alerts
from agri_cae.monitoring.dashboard import monitor_page
from agri_cae.monitoring.drift import Shift
from agri_cae.monitoring.gauges import prometheus_rules, prometheus_text
from agri_cae.monitoring.log import MonitorConfig, PredictionLog
from agri_cae.monitoring.look import KINDS, Look, Problem
from agri_cae.monitoring.profile import Profile, load_profile
from agri_cae.monitoring.statistics import STATISTICS

ROOT = Path(__file__).parents[2]
WITH_PROFILE = [n for n in shipped() if (ROOT / f"agri_cae/weights/{n}.profile.json").is_file()]

LOOKER = """
import sys
from agri_cae.monitoring.alerts import update_alerts
from agri_cae.monitoring.log import MonitorConfig, PredictionLog
from agri_cae.monitoring.look import take_look
log = PredictionLog(MonitorConfig(path=sys.argv[1]))
for _ in range(5):
    for alert in update_alerts(log, take_look(log))[0]: print(alert.kind)
"""


def test_several_watchers_in_processes_tell_an_alert_once(tmp_path):
    log = PredictionLog(MonitorConfig(path=tmp_path / "log.db"))
    for _ in range(100):
        log.write("", "m@1", (8, 8), 500, 1.0)
    command = [sys.executable, "-c", LOOKER, str(log.path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = "".join(w.communicate()[0] for w in workers)
    assert said.split() == ["failing"] and len(list_alerts(log)) == 1


# profiles


@pytest.mark.parametrize("name", WITH_PROFILE)
def test_packaged_profiles_belong_to_the_packaged_models(name):
    p = load_profile(name)
    assert p.model.split("@")[0] == name and len(p.groups) >= 100 and set(p.values) == set(STATISTICS)
    assert {len(v) for v in p.values.values()} == {len(p.groups)}


def test_profiles_beside_weights_are_no_models():
    assert all("." not in n and read_card(n).name == n for n in shipped())


# imports


def loaded(modules, heavy):
    "Which heavy packages importing some modules loads"
    code = f"import sys, {', '.join(modules)}; print([m for m in {heavy} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_needs_no_training_stack_and_no_scipy():
    rooms = [f"agri_cae.monitoring.{m}" for m in ("log", "profile", "alerts", "dashboard")]
    heavy = ["tensorflow", "keras", "mlflow", "pandas", "matplotlib", "scipy", "tqdm.auto", "prometheus_client"]
    assert loaded([*rooms, "agri_cae.cli.monitor"], heavy) == "[]"
    assert loaded(["agri_cae.monitoring.gauges"], heavy[:-1]) == "[]"


# rules for Prometheus


def gauges():
    "The names of the gauges"
    s = Shift("sigma", 100, 1.0, 1.0, 0.1, 0.1, 1.0, False)
    text = prometheus_text(Look(0.0, 1, 100, 0.0, 0.0, (0.1, 0.2), {"m@1": [s]}, []))
    return set(re.findall(r"^(\w+)(?:\{| )", text, re.MULTILINE))


def rules():
    groups = yaml.safe_load((ROOT / "deploy/alerts.yml").read_text("utf-8"))["groups"]
    return [r for g in groups for r in g["rules"]]


def test_names_and_labels_of_gauges():
    expected = {
        f"agri_cae_monitor_{n}"
        for n in (
            "open_alerts",
            "distance",
            "psi",
            "window_predictions",
            "error_ratio",
            "slow_ratio",
            "latency_seconds",
            "last_look_timestamp_seconds",
        )
    }
    assert gauges() == expected
    text = prometheus_text(Look(0.0, 1, 100, 0.0, 0.0, (0.1, 0.2), {}, []))
    assert 'agri_cae_monitor_latency_seconds{quantile="0.95"} 0.2' in text


def test_rules_name_only_gauges_that_exist():
    assert len(rules()) == len({r["alert"] for r in rules()}) >= 5
    for r in rules():
        assert set(r) <= {"alert", "expr", "for", "labels", "annotations"}
        assert r["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} <= set(r["annotations"])
        assert re.fullmatch(r"\d+[smh]", r.get("for", "1m")) and r["expr"].count("(") == r["expr"].count(")")
        names = set(re.findall(r"\b(agri_cae_\w+|up)\b(?=\{|\)| )", r["expr"]))
        assert names and names <= gauges() | {"up"}, r["alert"]


def test_the_rules_are_those_of_the_code():
    "python -c 'from agri_cae.monitoring.gauges import *; print(prometheus_rules(), end=str())' > deploy/alerts.yml"
    assert (ROOT / "deploy/alerts.yml").read_text("utf-8") == prometheus_rules()
    said = {k: r for r in rules() for k in re.findall(r'kind="([\w ]+)"', r["expr"])}
    assert said.keys() == KINDS.keys()
    for k, words in KINDS.items():
        assert words.means in said[k]["annotations"]["description"] and k in said[k]["annotations"]["summary"]
        assert words.do in said[k]["annotations"]["description"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_alert_has_the_same_words_everywhere(kind, tmp_path, caplog, monkeypatch):
    log = PredictionLog(MonitorConfig(path=tmp_path / "log.db", alert_file=tmp_path / "a.json", webhook="http://x"))
    sent, words = [], KINDS[kind]
    monkeypatch.setattr(alerts, "post_json", lambda url, content: sent.append(content))
    look = Look(0.0, 1, 100, 0.0, 0.0, (0.1, 0.2), {}, [Problem(kind, "m@1", 1.0, "sigma 20 now, 10 before.")])
    alerts.notify(log, *alerts.update_alerts(log, look))
    text = f"{kind}: sigma 20 now, 10 before. {words.means} {words.do}"
    assert [r.getMessage() for r in caplog.records] == [f"alert: {text}"]
    assert sent[0]["text"] == f"agri_cae open: {text}"
    assert (sent[0]["means"], sent[0]["do"]) == (words.means, words.do)
    assert log.cfg.alert_file.exists() == words.retrain
    if words.retrain:
        assert json.loads(log.cfg.alert_file.read_text())[0].items() <= sent[0].items()
    page = html.unescape(monitor_page(log, look=look))
    assert kind in page and f"{words.means} {words.do}" in page and "sigma 20 now" in page
    for sentence in re.split(r"(?<=[.!?]) ", f"{words.means} {words.do}"):
        assert len(sentence.split()) < 35


# from an alert to a retraining


def draw(rng, brightness):
    "Numbers of a picture"
    return {k: rng.normal(brightness if k == "brightness" else 50, 10) for k in STATISTICS}


def retrain(new, alert, home, rc=0):
    "The command that a timer calls; what it prints"
    with mock.patch.dict(os.environ, AGRI_CAE_HOME=str(home)):
        return call("retrain", new, "--alert", alert, "--at-least", 0, "--json", rc=rc).stdout


def test_an_alert_file_starts_one_retraining(tmp_path):
    "Without the file `agri-cae retrain --alert` does nothing; a drift writes it"
    rng = np.random.default_rng(0)
    usual = [draw(rng, 120) for _ in range(200)]
    values = {k: tuple(r[k] for r in usual) for k in STATISTICS}
    profile = Profile(model="m@1", about="", groups=tuple(range(200)), values=values)
    alert, new, home = (tmp_path / n for n in ("alert.json", "new", "home"))
    new.mkdir()
    log = PredictionLog(MonitorConfig(path=tmp_path / "log.db", alert_file=alert))

    def answer(brightness):
        for _ in range(100):
            log.write("", "m@1", (8, 8), 200, 1.0, draw(rng, brightness))
        Watcher(log, {"m": profile}).once()

    answer(120)
    assert not alert.exists() and "there is no" in json.loads(retrain(new, alert, home))["reason"]
    answer(60)
    assert [(a["kind"], a["name"]) for a in json.loads(alert.read_text())] == [("darker", "m@1")]
    # it starts, and fails for want of pictures; the file stays for the next time
    assert not retrain(new, alert, home, rc=1) and alert.exists()
    alert.unlink()
    Watcher(log, {"m": profile}).once()
    assert not alert.exists()  # one alert, one retraining


def test_the_report_notebook_shows_the_page(tmp_path):
    papermill = pytest.importorskip("papermill")
    log = PredictionLog(MonitorConfig(path=tmp_path / "log.db"))
    for _ in range(60):
        log.write("", "m@1", (8, 8), 500, 1.0)
    Watcher(log).once()
    notebook, report = ROOT / "nbs/pipelines/monitor.ipynb", tmp_path / "report.ipynb"
    nb = papermill.execute_notebook(
        str(notebook), str(report), parameters=dict(db=str(log.path)), kernel_name="python3", progress_bar=False
    )
    out = [o for c in nb.cells for o in c.get("outputs", [])]
    assert "100.0% failed" in out[0]["text"] and "60 of 60 predictions failed" in out[1]["text"]
    assert "1 open alert&lt;" in out[2]["data"]["text/html"]
