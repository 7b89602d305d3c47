"Monitoring: figures on real pictures, processes that die, rules for Prometheus, what is imported, and the way from an alert to a retraining."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import monitor_figures as figures
import numpy as np
import pytest
import yaml

from agri_cae.config import OutputError
from agri_cae.io.images import to_float
from agri_cae.modelfiles.card import read_card, shipped
from agri_cae.monitoring import log as monitor
from agri_cae.monitoring.alerts import Look, Watcher, list_alerts, prometheus_text
from agri_cae.monitoring.drift import Shift
from agri_cae.monitoring.profile import Profile, load_profile
from agri_cae.monitoring.log import STATISTICS, MonitorConfig, PredictionLog, picture_statistics

ROOT = Path(__file__).parents[2]
TRAIN = ROOT.parent / "shared/data/train"
needs_weights = pytest.mark.skipif("fast" not in shipped(), reason="no shipped weights")


# false alarms and detection on real pictures

@pytest.fixture(scope="module")
def rows():
    if not TRAIN.is_dir(): pytest.skip("no training pictures in ../shared/data/train")
    return figures.measure(TRAIN, every=2)


@needs_weights
@pytest.mark.parametrize("content", [None, ("leaf",)], ids=["everything", "leaves"])
@pytest.mark.parametrize("seed", range(3))
def test_at_most_one_alert_on_twenty_windows_as_ever(rows, content, seed): assert len(figures.false_alarms(rows, seed, content)) <= 1


@needs_weights
@pytest.mark.parametrize("shift", figures.SHIFTS)
def test_a_shift_is_caught_within_200_pictures(rows, shift):
    for content in (None, ("leaf",)):
        for seed in range(3): assert figures.caught_after(rows, seed, figures.is_shift(shift), content) is not None, (content, seed)


@needs_weights
@pytest.mark.parametrize("tag", ["drone-farmland", "plants-on-soil", "drone-soil-grass"])
def test_another_crop_is_caught_within_200_pictures(rows, tag):
    for seed in range(3): assert figures.caught_after(rows, seed, figures.is_crop(tag), ("leaf",)) is not None, seed


# the log

WRITER = """
import os, sys, threading
from agri_cae.monitoring.log import MonitorConfig, PredictionLog
log = PredictionLog(MonitorConfig(path=sys.argv[1]))
def work(t):
    for i in range(100000):
        log.write(f"{os.getpid()}-{t}-{i}", "m@1", (8, 8), 200, 1., {"sigma": float(i)})
        os.write(1, f"{os.getpid()}-{t}-{i}\\n".encode())
for t in range(4): threading.Thread(target=work, args=(t,)).start()
"""


def test_nothing_answered_is_lost_when_processes_with_threads_are_killed(tmp_path):
    "Four processes open a log that is not there yet, write from four threads each, and die in the middle"
    workers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "log.db")], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [{w.stdout.readline().strip() for _ in range(300)} for w in workers]
    for w in workers: w.kill()
    for w, s in zip(workers, said):
        s |= {l.strip() for l in w.stdout.readlines() if l.endswith("\n")}; w.wait(); w.stdout.close()
    records = PredictionLog(MonitorConfig(path=tmp_path / "log.db")).read()
    assert all(len(s) >= 300 for s in said) and set().union(*said) <= set(records["request"]) and len(set(records["request"])) == len(records["id"])
    assert PredictionLog(MonitorConfig(path=tmp_path / "log.db")).run("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_writes_over_a_connection_of_its_own(tmp_path):
    code = """if 1:
    import os, sys
    from agri_cae.monitoring.log import MonitorConfig, PredictionLog
    log = PredictionLog(MonitorConfig(path=sys.argv[1])); log.write("before", "m@1", (), 200, 1.)
    if not (pid := os.fork()): log.write("child", "m@1", (), 200, 1.); os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0; log.write("parent", "m@1", (), 200, 1.); assert len(log._inherited) == 0
    print(*log.read()["request"])"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "log.db")], capture_output=True, text=True, check=True).stdout.split() == ["before", "child", "parent"]


def test_a_log_that_cannot_be_written_says_so(tmp_path):
    log = PredictionLog(MonitorConfig(path=tmp_path / "log.db"))
    log.run("PRAGMA max_page_count = 1")   # a full disk
    with pytest.raises(OutputError, match="full"):
        for i in range(10000): log.write("x" * 200, "m@1", (), 200, 1.)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Check the disk"): PredictionLog(MonitorConfig(path=tmp_path / "file" / "log.db"))


def test_the_log_stays_bounded(tmp_path):
    log = PredictionLog(MonitorConfig(path=tmp_path / "log.db", rows=1000))
    for i in range(5200): log.write("a" * 12, "m@1", (64, 64), 200, 1., {k: 1.2345 for k in STATISTICS})
    size = (tmp_path / "log.db").stat().st_size
    for i in range(5000): log.write("a" * 12, "m@1", (64, 64), 200, 1., {k: 1.2345 for k in STATISTICS})
    log.run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert len(log.read()["id"]) <= 1500 and (tmp_path / "log.db").stat().st_size <= 2 * max(size, 200_000)


def test_several_watchers_in_processes_tell_an_alert_once(tmp_path):
    log = PredictionLog(MonitorConfig(path=tmp_path / "log.db"))
    for i in range(100): log.write("", "m@1", (8, 8), 500, 1.)
    code = "import sys; from agri_cae.monitoring.alerts import take_look, update_alerts; from agri_cae.monitoring.log import MonitorConfig, PredictionLog; log = PredictionLog(MonitorConfig(path=sys.argv[1])); [print(a.kind) for _ in range(5) for a in update_alerts(log, take_look(log))[0]]"
    workers = [subprocess.Popen([sys.executable, "-c", code, str(log.path)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert "".join(w.communicate()[0] for w in workers).split() == ["errors"] and len(list_alerts(log)) == 1


# profiles

@pytest.mark.parametrize("name", [n for n in shipped() if (ROOT / f"agri_cae/weights/{n}.profile.json").is_file()])
def test_packaged_profiles_belong_to_the_packaged_models(name):
    p = load_profile(name)
    assert p.model.split("@")[0] == name and len(p.groups) >= 100 and set(p.values) == set(STATISTICS) and {len(v) for v in p.values.values()} == {len(p.groups)}


def test_profiles_beside_weights_are_no_models():
    assert all("." not in n and read_card(n).name == n for n in shipped())


# cost

def test_statistics_look_at_few_pixels(monkeypatch):
    "A large picture costs no more than a small one, but for its thumbnail"
    touched = []
    monkeypatch.setattr(monitor, "to_float", lambda x, r=None: touched.append(x.size) or to_float(x, r))
    big = np.zeros((3000, 4000, 3), np.uint8); picture_statistics(big, big, sigma=3.)
    assert 0 < sum(touched) <= 250_000


def test_importing_needs_no_training_stack_and_no_scipy():
    code = "import sys, agri_cae.monitoring.log, agri_cae.monitoring.dashboard, agri_cae.cli.monitor; print([m for m in ('tensorflow', 'keras', 'mlflow', 'pandas', 'matplotlib', 'scipy', 'tqdm.auto') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# rules for Prometheus

def _gauges():
    s = Shift("sigma", 100, 1., 1., .1, .1, 1., False)
    return set(re.findall(r"^(\w+)(?:\{| )", prometheus_text(Look(0., 1, 100, 0., 0., (.1, .2), {"m@1": [s]}, [])), re.M))


def test_rules_name_only_gauges_that_exist():
    rules = [r for g in yaml.safe_load((ROOT / "deploy/alerts.yml").read_text("utf-8"))["groups"] for r in g["rules"]]
    assert len(rules) == len({r["alert"] for r in rules}) >= 5
    for r in rules:
        assert set(r) <= {"alert", "expr", "for", "labels", "annotations"} and r["labels"]["severity"] in ("warning", "critical") and {"summary", "description"} <= set(r["annotations"])
        assert re.fullmatch(r"\d+[smh]", r.get("for", "1m")) and r["expr"].count("(") == r["expr"].count(")")
        names = set(re.findall(r"\b(agri_cae_\w+|up)\b(?=\{|\)| )", r["expr"])); assert names and names <= _gauges() | {"up"}, r["alert"]
    kinds = {k for r in rules for k in re.findall(r'kind="(\w+)"', r["expr"])}
    assert kinds == set(re.findall(r'open_alerts\{kind="(\w+)"', prometheus_text(Look(0., 0, 0, 0., 0., (0., 0.), {}, []))))


# from an alert to a retraining

def test_an_alert_file_starts_one_retraining(tmp_path):
    "Without the file `agri-cae retrain --alert` does nothing; a drift writes it"
    rng = np.random.default_rng(0)
    def draw(brightness): return {k: rng.normal(brightness if k == "brightness" else 50, 10) for k in STATISTICS}
    usual = [draw(120) for _ in range(200)]
    profile = Profile(model="m@1", about="", groups=tuple(range(200)), values={k: tuple(r[k] for r in usual) for k in STATISTICS})
    alert, new = tmp_path / "alert.json", tmp_path / "new"; new.mkdir()
    log = PredictionLog(MonitorConfig(path=tmp_path / "log.db", alert_file=alert))
    def retrain(): return json.loads(subprocess.run([sys.executable, "-c", "from agri_cae.cli.main import main; main()", "retrain", str(new), "--alert", str(alert), "--at-least", "0", "--json"],
                                                    capture_output=True, text=True, env={**os.environ, "AGRI_CAE_HOME": str(tmp_path / "home")}).stdout or "null")
    for _ in range(100): log.write("", "m@1", (8, 8), 200, 1., draw(120))
    Watcher(log, {"m": profile}).once(); assert not alert.exists() and "there is no" in retrain()["reason"]
    for _ in range(100): log.write("", "m@1", (8, 8), 200, 1., draw(60))
    Watcher(log, {"m": profile}).once(); assert [a["name"] for a in json.loads(alert.read_text())] == ["m@1 brightness"]
    assert retrain() is None                                     # it starts, and fails for want of pictures; the file stays for the next time
    assert alert.exists(); alert.unlink(); Watcher(log, {"m": profile}).once(); assert not alert.exists()   # one alert, one retraining


def test_the_report_notebook_shows_the_page(tmp_path):
    papermill = pytest.importorskip("papermill")
    log = PredictionLog(MonitorConfig(path=tmp_path / "log.db"))
    for _ in range(60): log.write("", "m@1", (8, 8), 500, 1.)
    Watcher(log).once()
    nb = papermill.execute_notebook(str(ROOT / "nbs/pipelines/monitor.ipynb"), str(tmp_path / "report.ipynb"), parameters=dict(db=str(log.path)), kernel_name="python3", progress_bar=False)
    out = [o for c in nb.cells for o in c.get("outputs", [])]
    assert "100.0% failed" in out[0]["text"] and "60 of 60 predictions failed" in out[1]["text"] and "1 open alert&lt;" in out[2]["data"]["text/html"]
