"The service as a process of its own."
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import psutil

RUN = [sys.executable, "-c", "from agri_cae.cli.main import main; main()"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Served:
    "A running `agri-cae serve`"
    def __init__(self, folder, *args, **env):
        self.port, self.log = free_port(), folder/"log"
        ours = ("AGRI_CAE", "PORT", "AIP_HTTP_PORT")
        clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        own = dict(PORT=str(self.port), AGRI_CAE_MODELS='["fast"]', AGRI_CAE_LOG_LEVEL="DEBUG",
                   AGRI_CAE_HOME=str(folder/"home"))
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*RUN, "serve", *args], stdout=log, stderr=log, cwd=folder, env=clean | own | env)
        self.wait()

    def wait(self, seconds=60):
        "Until it is ready; gives the seconds that this took"
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if self.ask("GET", "/readyz")[0] == 200: return time.monotonic() - start
            except (OSError, http.client.HTTPException): pass
            time.sleep(.05)
        raise TimeoutError(self.log.read_text())

    def ask(self, method, path, body=None, head=None, timeout=60):
        "status, body, headers"
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            c.request(method, path, body, head or {})
            r = c.getresponse()
            return r.status, r.read(), r.headers
        finally: c.close()

    @property
    def worker(self):
        return max(psutil.Process(self.process.pid).children(), key=lambda p: p.memory_info().rss)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextmanager
def served(folder, *args, **env):
    s = Served(folder, *args, **env)
    try: yield s
    finally:
        if s.process.poll() is None:
            s.process.terminate()
            s.process.wait(30)
