"The prediction log: processes that die, forks, full disks, bounds; and how few pixels its numbers look at."

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from agri_cae.config import OutputError
from agri_cae.io.images import to_float
from agri_cae.monitoring import statistics
from agri_cae.monitoring.log import MonitorConfig, PredictionLog
from agri_cae.monitoring.statistics import STATISTICS, picture_statistics

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

FORKED = """
import os, sys
from agri_cae.monitoring.log import MonitorConfig, PredictionLog
log = PredictionLog(MonitorConfig(path=sys.argv[1]))
log.write("before", "m@1", (), 200, 1.)
pid = os.fork()
if not pid:
    log.write("child", "m@1", (), 200, 1.)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
log.write("parent", "m@1", (), 200, 1.)
assert len(log._inherited) == 0
print(*log.read()["request"])
"""


def open_log(folder, **settings):
    return PredictionLog(MonitorConfig(path=folder / "log.db", **settings))


def test_nothing_answered_is_lost_when_processes_with_threads_are_killed(tmp_path):
    "Four processes open a log that is not there yet, write from four threads each, and die in the middle"
    command = [sys.executable, "-c", WRITER, str(tmp_path / "log.db")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = [{w.stdout.readline().strip() for _ in range(300)} for w in workers]
    for w in workers:
        w.kill()
    for w, s in zip(workers, said, strict=True):
        s |= {line.strip() for line in w.stdout.readlines() if line.endswith("\n")}
        w.communicate()
    records = open_log(tmp_path).read()
    assert all(len(s) >= 300 for s in said) and set().union(*said) <= set(records["request"])
    assert len(set(records["request"])) == len(records["id"])
    assert open_log(tmp_path).run("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_writes_over_a_connection_of_its_own(tmp_path):
    command = [sys.executable, "-c", FORKED, str(tmp_path / "log.db")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["before", "child", "parent"]


def test_a_log_that_cannot_be_written_says_so(tmp_path):
    log = open_log(tmp_path)
    log.run("PRAGMA max_page_count = 1")  # a full disk
    with pytest.raises(OutputError, match="full"):
        for _ in range(10000):
            log.write("x" * 200, "m@1", (), 200, 1.0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Check the disk"):
        open_log(tmp_path / "file")


def test_the_log_stays_bounded(tmp_path):
    log, numbers = open_log(tmp_path, rows=1000), dict.fromkeys(STATISTICS, 1.2345)

    def write(count):
        for _ in range(count):
            log.write("a" * 12, "m@1", (64, 64), 200, 1.0, numbers)

    write(5200)
    size = (tmp_path / "log.db").stat().st_size
    write(5000)
    log.run("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert len(log.read()["id"]) <= 1500
    assert (tmp_path / "log.db").stat().st_size <= 2 * max(size, 200_000)


def test_statistics_look_at_few_pixels(monkeypatch):
    "A large picture costs no more than a small one, but for its thumbnail"
    touched = []

    def counted(x, value_range=None):
        touched.append(x.size)
        return to_float(x, value_range)

    monkeypatch.setattr(statistics, "to_float", counted)
    big = np.zeros((3000, 4000, 3), np.uint8)
    picture_statistics(big, big, sigma=3.0)
    assert 0 < sum(touched) <= 250_000


def test_another_process_that_reads_takes_nothing_away(tmp_path):
    "Threads write, a command opens the log and closes it: what is written afterwards is in the file all the same"
    log = PredictionLog(MonitorConfig(path=tmp_path / "p.db"))
    threads = [threading.Thread(target=log.write, args=(str(i), "m@1", (9, 9), 200, 1.)) for i in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    count = f"""from agri_cae.monitoring.log import MonitorConfig, PredictionLog
log = PredictionLog(MonitorConfig(path={str(tmp_path / "p.db")!r}))
print(log.newest())
log.close()"""
    def read(): return subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True).stdout
    assert read() == "3\n"
    log.write("4", "m@1", (9, 9), 200, 1.)
    assert read() == "4\n" and log.newest() == 4
    assert (tmp_path / "p.db").stat().st_mode & 0o777 == 0o600
