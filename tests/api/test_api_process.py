"The service from outside: signals, a worker that is killed, uploads that never end, keys in the log, the client."
import http.client
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from served import Served, served

from agri_cae.io.images import Picture, provenance_of, read_image, sample
from agri_cae.service.in_memory import encode

PICTURE = encode(Picture(np.random.default_rng(0).integers(80, 160, (300, 400, 3), np.uint8)), "png")
HEAD = {"Content-Type": "image/png"}


@contextmanager
def load(s, clients):
    "Clients that ask one after another, until the block ends; yields what they got: statuses, or names of exceptions"
    got, over = [], threading.Event()
    def client():
        while not over.is_set():
            try: got.append(s.ask("POST", "/v1/denoise", PICTURE, HEAD)[0])
            except (OSError, http.client.HTTPException) as e:
                got.append(type(e).__name__)
                time.sleep(.05)
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for t in threads: t.start()
    try: yield got
    finally:
        over.set()
        for t in threads: t.join(90)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(.02)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_sigterm_under_load(tmp_path, workers):
    "Each request is answered, refused cleanly, or never gets a connection; the exit code is 0."
    with served(tmp_path, "--workers", workers) as s:
        with load(s, 8) as got:
            until(lambda: got.count(200) >= 8)
            before = len(got)
            assert s.stop() == 0
        # 503: a machine so busy that some would not be done in time
        assert set(got[:before]) <= {200, 503}
        log = s.log.read_text()
        assert "Traceback" not in log and "ERROR" not in log
        assert log.count("POST /v1/denoise 200") == got.count(200)      # what was answered has arrived
        assert set(got) <= {200, 503, "ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected"}


def test_killed_worker_is_replaced_under_load(tmp_path):
    with served(tmp_path) as s, load(s, 4) as got:
        until(lambda: got.count(200) >= 4)
        first = s.worker.pid
        os.kill(first, signal.SIGKILL)
        start, n = time.monotonic(), len(got)
        until(lambda: got[n:].count(200) >= 8)
        print(f"first answers after {time.monotonic() - start:.1f} s")
        assert s.worker.pid != first
        assert set(got) <= {
            200,
            503,
            "ConnectionRefusedError",
            "ConnectionResetError",
            "RemoteDisconnected",
            "IncompleteRead",
        }
        assert s.stop() == 0
    with sqlite3.connect(tmp_path/"home"/"predictions.db") as db:
        logged = db.execute("SELECT count(*) FROM predictions WHERE status = 200").fetchone()[0]
    assert logged >= got.count(200)   # nothing that was answered is lost


def test_a_service_that_cannot_start_says_why(tmp_path):
    with pytest.raises(AssertionError) as e:
        Served(tmp_path, "--workers", "0", "--model", "nix")
    assert "nix: is no model" in str(e.value)


def test_upload_that_never_ends(tmp_path):
    "Chunks without a length, more than are taken: refused while they come in"
    limits = dict(AGRI_CAE_UPLOAD_BYTES="1000000", AGRI_CAE_DEADLINE="5", AGRI_CAE_QUEUE_REQUESTS="1")
    with served(tmp_path, "--workers", "0", **limits) as s:
        sent = 0
        with socket.create_connection(("127.0.0.1", s.port), timeout=30) as c:
            c.sendall(
                b"POST /v1/denoise HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            try:
                while sent < 50_000_000:
                    c.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
                    sent += 65536
            except OSError: pass
            try: answer = c.recv(65536)
            except OSError: answer = b""
        assert sent < 20_000_000 and (not answer or b"413" in answer.split(b"\r\n")[0])
        until(lambda: "413" in s.log.read_text())
        # one that stands still loses its place at the deadline
        with socket.create_connection(("127.0.0.1", s.port), timeout=30) as c:
            c.sendall(
                b"POST /v1/denoise HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"
            )
            until(lambda: s.ask("POST", "/v1/denoise", PICTURE, HEAD)[0] == 503)
            assert b" 504 " in c.recv(65536).split(b"\r\n")[0]
        until(lambda: s.ask("POST", "/v1/denoise", PICTURE, HEAD)[0] == 200)


def test_keys_and_client(tmp_path):
    "`agri-cae key`, `serve` and `denoise --server` work together; the key is in no log"
    run = [sys.executable, "-c", "from agri_cae.cli.main import main; main()"]
    key, entry = subprocess.run([*run, "key", "drone"], capture_output=True, text=True, check=True).stdout.split()
    flight = tmp_path/"flight"
    (flight/"a").mkdir(parents=True)
    for name in ("one.jpg", "a/two.jpg"):
        (flight/name).write_bytes(sample("field_camera").read_bytes())
    (flight/"broken.png").write_bytes(PICTURE[:5000])
    with served(tmp_path, AGRI_CAE_KEYS=entry) as s:
        def client(*args, **env):
            return subprocess.run(
                [*run, "denoise", *map(str, args), "--server", f"http://127.0.0.1:{s.port}"],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=os.environ | env,
            )

        refused = client(flight/"one.jpg", "x.jpg")
        assert refused.returncode == 1 and "AGRI_CAE_KEY" in refused.stderr and not (tmp_path/"x.jpg").exists()
        done = client(flight, "clean", "--strength", "0.5", "--json", AGRI_CAE_KEY=key)
        # one junk file stops nobody
        assert done.returncode == 1 and "broken.png: the file is truncated" in done.stderr, done.stderr
        records = [json.loads(o) for o in done.stdout.splitlines()]
        assert {r["status"] for r in records} == {"done", "failed"}
        assert all(
            r["strength"] == 0.5 and r["model"].startswith("fast@") and r["sigma"] > 0
            for r in records
            if r["status"] == "done"
        )
        assert provenance_of(read_image(tmp_path/"clean/a/two.jpg")).endswith("strength=0.5")
        again = client(flight, "clean", AGRI_CAE_KEY=key)
        assert "2 skipped" in again.stderr
        twice = client("clean/one.jpg", "y.jpg", AGRI_CAE_KEY=key)
        assert twice.returncode == 1 and "was denoised before" in twice.stderr
        assert client(flight/"one.jpg", "z.png", "--threads", "1").returncode == 2
        assert s.ask("GET", "/v1/models", head={"X-API-Key": key})[0] == 200
        assert s.ask("GET", f"/v1/models?key={key[:8]}", head={"Authorization": f"Basic {key}"})[0] == 401
        assert s.stop() == 0
        assert key not in s.log.read_text() and key[:8] not in s.log.read_text()


# two workers, which count together

@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    with served(folder, "--workers", "2", AGRI_CAE_MODELS='["fast", "base"]', AGRI_CAE_RATE="10000") as s:
        yield s
        assert s.stop() == 0


def count(s, name):
    "The sum of a metric over its labels"
    lines = s.ask("GET", "/metrics")[1].decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_several_workers_count_together(pair):
    name = 'agri_cae_requests_total{method="POST",route="/v1/denoise",status="200"}'
    before = count(pair, name)
    for _ in range(6): assert pair.ask("POST", "/v1/denoise", PICTURE, HEAD)[0] == 200
    assert count(pair, name) == before + 6


def lines_with_curl(spec):
    "Those of the description, and those of the chapter"
    chapter = json.loads((Path(__file__).parents[2]/"nbs/tutorials/service.ipynb").read_text("utf-8"))
    texts = [op.get("description", "") for ops in spec["paths"].values() for op in ops.values()]
    texts += ["".join(c["source"]) for c in chapter["cells"] if c["cell_type"] == "markdown"]
    lines = [o for t in texts for o in t.splitlines() if "curl " in o and "http://localhost" in o]
    return list(dict.fromkeys(lines))


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_every_line_with_curl_works(tmp_path, pair):
    "Each route has one"
    (tmp_path/"photo.jpg").write_bytes(sample("field_camera").read_bytes())
    spec = json.loads(pair.ask("GET", "/openapi.json")[1])
    lines = lines_with_curl(spec)
    for line in lines:
        ours = line.replace("curl ", "curl --fail-with-body -sS ").replace("localhost:8080", f"127.0.0.1:{pair.port}")
        done = subprocess.run(["bash", "-c", ours], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, (line, done.stdout[-300:], done.stderr)
    assert all(any(path.replace("{name}", "fast") in line for line in lines) for path in spec["paths"])
    assert read_image(tmp_path/"clean.png").format == "png"


def test_client_that_leaves_ends_the_work(pair):
    "The last test: for a while the worker still counts the pixels of this picture, and may refuse others"
    big = encode(Picture(np.random.default_rng(0).integers(80, 160, (3000, 4000, 3), np.uint8)), "jpeg")
    before = count(pair, "agri_cae_predictions_total{")
    with socket.create_connection(("127.0.0.1", pair.port)) as c:
        head = f"Host: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(big)}\r\n\r\n".encode()
        c.sendall(b"POST /v1/denoise?tile=256&model=fast HTTP/1.1\r\n" + head + big)
        until(lambda: count(pair, "agri_cae_requests_inside") == 2)
    until(lambda: "/v1/denoise 499" in pair.log.read_text())
    assert count(pair, "agri_cae_predictions_total{") == before
