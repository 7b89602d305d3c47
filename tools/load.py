#!/usr/bin/env python3
"""Measure the service on this machine: what HTTP adds to the library, what 64 clients get, and whether memory stays flat.
  tools/load.py overhead|crowd|soak [--requests 20000] [--model fast]
Starts `agri-cae serve` itself, on the loopback address."""
import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")   # as in the service
import numpy as np
import psutil

from agri_cae.io.images import Picture, read_image, sample
from agri_cae.serve import Denoiser
from agri_cae.service.requests import denoise_bytes, encode


class Server:
    def __init__(self, model, **env):
        with socket.socket() as s: s.bind(("127.0.0.1", 0)); self.port = s.getsockname()[1]
        self.process = subprocess.Popen([sys.executable, "-c", "from agri_cae.cli.main import main; main()", "serve", "--workers", "0", "--model", model, "--port", str(self.port)],
                                        env=os.environ | {"AGRI_CAE_MODELS": json.dumps([model]), "AGRI_CAE_LOG_LEVEL": "WARNING"} | env)
        end = time.monotonic() + 60
        while True:
            try: assert self.ask("GET", "/readyz")[0] == 200; break
            except OSError: assert time.monotonic() < end; time.sleep(.1)
    def __enter__(self): return self
    def __exit__(self, *_): self.process.send_signal(signal.SIGTERM); print("exit code", self.process.wait(30))
    def connection(self): return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
    def ask(self, method, path, body=None, c=None):
        own = c or self.connection()
        try: own.request(method, path, body, {"Content-Type": "image/png"}); r = own.getresponse(); return r.status, r.read(), r.headers
        finally:
            if c is None: own.close()
    @property
    def memory(self): return psutil.Process(self.process.pid).memory_info().rss / 2**20


def picture(side, format):
    "A piece of the sample with a little noise, as a file"
    a = read_image(sample("field_camera")).data
    a = np.tile(a, (-(-side // a.shape[0]), -(-side // a.shape[1]), 1))[:side, :side]
    return encode(Picture(np.clip(a + np.random.default_rng(0).normal(0, 10, a.shape), 0, 255).astype(np.uint8)), format)


def overhead(args):
    "Turn and turn about, so that what else the machine does meets all alike; processor time, which it meets least, is told beside the time on the clock"
    d, m = Denoiser.load(args.model), statistics.median
    with Server(args.model) as s:
        c, server = s.connection(), psutil.Process(s.process.pid)
        def cpu(): t = server.cpu_times(); return t.user + t.system
        for side, format, n in ((64, "png", args.requests or 300), (1000, "png", 15), (1000, "jpeg", 25)):
            data = picture(side, format); pixels = read_image(data).data
            ways = dict(network=lambda: d(pixels), library=lambda: denoise_bytes(d, data).file(), HTTP=lambda: s.ask("POST", "/v1/denoise", data, c))
            clock, used = {k: [] for k in ways}, {k: 0. for k in ways}
            for i in range(n + 3):
                for k, f in ways.items():
                    t, own, its = time.perf_counter(), time.process_time(), cpu(); f()
                    if i > 2: clock[k].append(1000 * (time.perf_counter() - t)); used[k] += 1000 * (time.process_time() - own + cpu() - its) / n
            print(f"{side}x{side} {format}: " + ", ".join(f"{k} {m(clock[k]):.1f} ms (processor {used[k]:.1f})" for k in ways))
            for k in ("library", "network"):
                more = m(h - b for h, b in zip(clock["HTTP"], clock[k]))
                print(f"  HTTP over the {k}: {more:+.1f} ms, {100 * more / m(clock[k]):+.1f} %; processor {used['HTTP'] - used[k]:+.1f} ms, {100 * (used['HTTP'] / used[k] - 1):+.1f} %", flush=True)
        rounds = []
        for _ in range(8):   # with several clients the next picture is read while the network runs
            t = time.perf_counter(); [d(pixels) for _ in range(12)]; alone = time.perf_counter() - t
            t = time.perf_counter(); clients(s, data, 3, 12); rounds.append((time.perf_counter() - t) / alone)
        print(f"{side}x{side} {format}, three clients: {100 * (m(rounds[1:]) - 1):+.1f} % time for as many pictures as the network alone, one after another", flush=True)


def clients(s, data, n, count):
    "n clients, each with a connection of its own, until `count` requests are through: (status, seconds, Retry-After) of each"
    got, left, lock = [], [count], threading.Lock()
    def client():
        c = s.connection()
        while True:
            with lock:
                if not left[0]: return
                left[0] -= 1
            t = time.perf_counter()
            try: status, _, head = s.ask("POST", "/v1/denoise", data, c); wait = head.get("Retry-After")
            except (OSError, http.client.HTTPException) as e: status, wait = type(e).__name__, None; c.close()
            got.append((status, time.perf_counter() - t, wait))
            if wait: time.sleep(min(.2, float(wait)))
    threads = [threading.Thread(target=client) for _ in range(n)]
    for t in threads: t.start()
    for t in threads: t.join()
    return got


def crowd(args):
    "64 clients and pictures of a megapixel, on a queue for 32, with a deadline of 20 s"
    data = picture(1000, "jpeg")
    with Server(args.model, AGRI_CAE_QUEUE_REQUESTS="32", AGRI_CAE_DEADLINE="20") as s:
        t = time.perf_counter(); got = clients(s, data, 64, args.requests or 600); t = time.perf_counter() - t
        statuses = [g[0] for g in got]; ok = sorted(g[1] for g in got if g[0] == 200)
        print({k: statuses.count(k) for k in sorted(set(statuses), key=str)}, "all with Retry-After:", all(w for st, _, w in got if st in (429, 503)))
        if ok: print(f"{len(ok) / t:.2f} pictures/s; answered: median {ok[len(ok) // 2]:.1f} s, p99 {ok[int(.99 * len(ok))]:.1f} s; memory {s.memory:.0f} MiB")


def soak(args):
    "Many requests of several sizes and kinds, some broken; memory after a tenth against memory at the end"
    kinds = [picture(64, "png"), picture(96, "jpeg"), picture(128, "webp"), picture(64, "tiff"), picture(64, "png")[:500], b"junk"]
    n = args.requests or 20_000
    with Server(args.model) as s:
        done = 0
        for step in range(10):
            for k in kinds: clients(s, k, 8, n // 10 // len(kinds) + 1); done += n // 10 // len(kinds) + 1
            memory = s.memory
            if step == 0: first = memory
            print(f"{done} requests: {memory:.0f} MiB ({100 * (memory / first - 1):+.1f} %)", flush=True)


p = argparse.ArgumentParser(description=__doc__.splitlines()[0]); p.add_argument("what", choices=["overhead", "crowd", "soak"]); p.add_argument("--requests", type=int, default=0); p.add_argument("--model", default="fast")
args = p.parse_args(); globals()[args.what](args)
