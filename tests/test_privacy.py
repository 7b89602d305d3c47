"Nothing leaves the machine, and nothing is written where no user expects it, also outside a CI."

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from agri_cae.io.images import sample

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
CALLS = "connect,sendto,sendmsg,sendmmsg,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2"


@pytest.fixture
def traced(tmp_path):
    "Starts the command under strace, in an environment of a user: no variable but those that every shell has"
    names = ("PATH", "LANG", "LC_ALL", "SYSTEMROOT", "PYTHONPATH")
    env = {k: os.environ[k] for k in names if k in os.environ} | {
        "HOME": str(tmp_path / "user"),
        "AGRI_CAE_HOME": str(tmp_path / "user" / "home"),
        "TMPDIR": str(tmp_path / "user" / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    (tmp_path / "user" / "tmp").mkdir(parents=True)

    def start(*args):
        command = [sys.executable, "-c", "from agri_cae.cli.main import main; main()", *map(str, args)]
        return subprocess.Popen(
            [
                "strace",
                "-D",
                "-f",
                "-qq",
                "-s",
                "300",
                "-e",
                f"trace={CALLS}",
                "-o",
                tmp_path / "calls",
                *command,
            ],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def foreign(calls):
    "Addresses other than this machine's, and look-ups of names"
    calls = calls.read_text("utf-8", "replace")
    found = {m[1] for m in re.finditer(r'inet_(?:addr|pton)\((?:AF_INET6?, )?"([^"]+)"', calls)} - {
        "127.0.0.1",
        "0.0.0.0",
        "::1",
        "::",
    }
    return sorted(found | set(re.findall(r'"(/etc/resolv\.conf)"', calls)))


def written(calls, *allowed):
    "Paths that were opened to be written or made, outside what is allowed; failed calls are none"
    out = set()
    for line in calls.read_text("utf-8", "replace").splitlines():
        if re.search(r"= -1 E\w+", line) or "exited" in line:
            continue
        if re.search(r"open(?:at)?\(", line) and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", line):
            continue
        if not re.search(r"\b(?:open|openat|creat|mkdir|mkdirat|rename\w*)\(", line):
            continue
        out.update(p for p in re.findall(r'"((?:[^"\\]|\\.)*)"', line) if p.startswith("/"))
    return sorted(p for p in out if not p.startswith(("/dev/", "/proc/", *map(str, allowed))))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_denoising_a_folder_stays_on_the_machine(traced, tmp_path):
    (tmp_path / "flight").mkdir()
    shutil.copy(sample("field_camera"), tmp_path / "flight")
    run = traced("denoise", "flight", "clean")
    text, _ = run.communicate(timeout=120)
    assert run.returncode == 0, text
    assert list((tmp_path / "clean").iterdir())
    assert foreign(tmp_path / "calls") == []
    assert written(tmp_path / "calls", tmp_path / "user" / "home", tmp_path / "clean") == []


def test_the_service_stays_on_the_machine(traced, tmp_path):
    "As long as AGRI_CAE_PRIVACY_SECONDS says; ONNX Runtime asks for its maker's host some seconds after it is loaded"
    port, wait = free_port(), float(os.environ.get("AGRI_CAE_PRIVACY_SECONDS", 8))
    run = traced("serve", "--workers", "0", "--port", port)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=5)
                break
            except OSError:
                assert time.monotonic() < end and run.poll() is None
                time.sleep(0.2)
        picture = Path(sample("field_camera")).read_bytes()
        request = urllib.request.Request(f"{url}/v1/denoise", picture, {"Content-Type": "image/jpeg"})
        assert urllib.request.urlopen(request, timeout=60).status == 200
        time.sleep(wait)
    finally:
        run.terminate()
        run.communicate(timeout=30)
    assert foreign(tmp_path / "calls") == []
    assert written(tmp_path / "calls", tmp_path / "user" / "home") == []


def test_the_models_are_listed_without_asking_anybody(traced, tmp_path):
    pytest.importorskip("mlflow")
    run = traced("models", "list")
    text, _ = run.communicate(timeout=120)
    assert run.returncode == 0, text
    assert foreign(tmp_path / "calls") == []
    assert written(tmp_path / "calls", tmp_path / "user" / "home") == []
