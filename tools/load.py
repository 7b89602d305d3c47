#!/usr/bin/env python3
"""Measure the service on this machine: what HTTP adds to the library, what a crowd gets, whether memory stays flat.
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
from agri_cae.service.in_memory import denoise_bytes, encode

RUN = [sys.executable, "-c", "from agri_cae.cli.main import main; main()"]


class Server:
    "A running `agri-cae serve`"
    def __init__(self, model, **env):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        own = {"AGRI_CAE_MODELS": json.dumps([model]), "AGRI_CAE_LOG_LEVEL": "WARNING"}
        command = [*RUN, "serve", "--workers", "0", "--model", model, "--port", str(self.port)]
        self.process = subprocess.Popen(command, env=os.environ | own | env)
        self._wait()

    def _wait(self):
        end = time.monotonic() + 60
        while True:
            try:
                assert self.ask("GET", "/readyz")[0] == 200
                return
            except OSError:
                assert time.monotonic() < end
                time.sleep(.1)

    def __enter__(self): return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        print("exit code", self.process.wait(30))

    def connection(self): return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def ask(self, method, path, body=None, c=None):
        "Status, body, headers"
        own = c or self.connection()
        try:
            own.request(method, path, body, {"Content-Type": "image/png"})
            r = own.getresponse()
            return r.status, r.read(), r.headers
        finally:
            if c is None: own.close()

    @property
    def memory(self): return psutil.Process(self.process.pid).memory_info().rss / 2**20   # MiB


def picture(side, format):
    "A piece of the sample with a little noise, as a file"
    a = read_image(sample("field_camera")).data
    a = np.tile(a, (-(-side // a.shape[0]), -(-side // a.shape[1]), 1))[:side, :side]
    noisy = a + np.random.default_rng(0).normal(0, 10, a.shape)
    return encode(Picture(np.clip(noisy, 0, 255).astype(np.uint8)), format)


# overhead

class Cost:
    "Milliseconds on the clock of each run, and processor time of all runs together, here and in the server"
    def __init__(self, server): self.server, self.clock, self.processor = psutil.Process(server.process.pid), [], 0.

    def _processor(self):
        t = self.server.cpu_times()
        return time.process_time() + t.user + t.system

    def run(self, f):
        clock, processor = time.perf_counter(), self._processor()
        f()
        self.clock.append(1000 * (time.perf_counter() - clock))
        self.processor += 1000 * (self._processor() - processor)

    @property
    def median(self): return statistics.median(self.clock)

    @property
    def processor_each(self): return self.processor / len(self.clock)


def compare(s, d, data, n):
    "The same picture by the network alone, the library, and HTTP, in turns: what else the machine does meets all alike"
    pixels, c = read_image(data).data, s.connection()
    ways = dict(network=lambda: d(pixels), library=lambda: denoise_bytes(d, data).file(),
                HTTP=lambda: s.ask("POST", "/v1/denoise", data, c))
    for f in (*ways.values(),) * 3: f()
    costs = {k: Cost(s) for k in ways}
    for _ in range(n):
        for k, f in ways.items(): costs[k].run(f)
    return costs


def overhead(args):
    "What HTTP adds. Processor time stands beside the time on the clock: other work on the machine changes it least"
    d = Denoiser.load(args.model)
    with Server(args.model) as s:
        for side, format, n in ((64, "png", args.requests or 300), (1000, "png", 15), (1000, "jpeg", 25)):
            data = picture(side, format)
            costs = compare(s, d, data, n)
            print(f"{side}x{side} {format}: " + ", ".join(
                f"{k} {c.median:.1f} ms (processor {c.processor_each:.1f})" for k, c in costs.items()))
            for k in ("library", "network"): print_more(costs["HTTP"], costs[k], k)
        print_clients(s, d, data)


def print_more(http, base, name):
    more = statistics.median(h - b for h, b in zip(http.clock, base.clock, strict=True))
    processor = http.processor_each - base.processor_each
    print(f"  HTTP over the {name}: {more:+.1f} ms, {100 * more / base.median:+.1f} %; "
          f"processor {processor:+.1f} ms, {100 * processor / base.processor_each:+.1f} %", flush=True)


def print_clients(s, d, data):
    "With several clients the next picture is read while the network runs"
    pixels, rounds = read_image(data).data, []
    for _ in range(8):
        t = time.perf_counter()
        for _ in range(12): d(pixels)
        alone = time.perf_counter() - t
        t = time.perf_counter()
        clients(s, data, 3, 12)
        rounds.append((time.perf_counter() - t) / alone)
    more = 100 * (statistics.median(rounds[1:]) - 1)
    print(f"three clients: {more:+.1f} % time for as many pictures as the network alone, one after another", flush=True)


# many clients

def clients(s, data, n, count):
    "n clients, each with its own connection, until `count` requests are through: (status, seconds, Retry-After)"
    got, left, lock = [], [count], threading.Lock()

    def ask(c):
        t = time.perf_counter()
        try:
            status, _, head = s.ask("POST", "/v1/denoise", data, c)
            wait = head.get("Retry-After")
        except (OSError, http.client.HTTPException) as e:
            status, wait = type(e).__name__, None
            c.close()
        got.append((status, time.perf_counter() - t, wait))
        if wait: time.sleep(min(.2, float(wait)))

    def client():
        c = s.connection()
        while True:
            with lock:
                if not left[0]: return
                left[0] -= 1
            ask(c)

    threads = [threading.Thread(target=client) for _ in range(n)]
    for t in threads: t.start()
    for t in threads: t.join()
    return got


def crowd(args):
    "64 clients and pictures of a megapixel, on a queue for 32, with a deadline of 20 s"
    data = picture(1000, "jpeg")
    with Server(args.model, AGRI_CAE_QUEUE_REQUESTS="32", AGRI_CAE_DEADLINE="20") as s:
        t = time.perf_counter()
        got = clients(s, data, 64, args.requests or 600)
        t = time.perf_counter() - t
        statuses, ok = [g[0] for g in got], sorted(g[1] for g in got if g[0] == 200)
        polite = all(wait for status, _, wait in got if status in (429, 503))
        print({k: statuses.count(k) for k in sorted(set(statuses), key=str)}, "all with Retry-After:", polite)
        if not ok: return
        print(f"{len(ok) / t:.2f} pictures/s; answered: median {ok[len(ok) // 2]:.1f} s, "
              f"p99 {ok[int(.99 * len(ok))]:.1f} s; memory {s.memory:.0f} MiB")


def soak(args):
    "Many requests of several sizes and kinds, some broken; memory after a tenth against memory at the end"
    sound = [picture(64, "png"), picture(96, "jpeg"), picture(128, "webp"), picture(64, "tiff")]
    kinds = [*sound, sound[0][:500], b"junk"]
    each, done = (args.requests or 20_000) // 10 // len(kinds) + 1, 0
    with Server(args.model) as s:
        for step in range(10):
            for k in kinds:
                clients(s, k, 8, each)
                done += each
            memory = s.memory
            if step == 0: first = memory
            print(f"{done} requests: {memory:.0f} MiB ({100 * (memory / first - 1):+.1f} %)", flush=True)


if __name__ == "__main__":
    measures = dict(overhead=overhead, crowd=crowd, soak=soak)
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("what", choices=measures)
    p.add_argument("--requests", type=int, default=0)
    p.add_argument("--model", default="fast")
    args = p.parse_args()
    measures[args.what](args)
