"An MLflow tracking server with PostgreSQL, for tests: both can be stopped and started again."

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

FOUND = [Path(p).parent for p in [shutil.which("initdb")] if p]
BIN = next(iter([*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *FOUND]), None)
HAS_POSTGRESQL = bool(BIN and (BIN / "initdb").exists() and os.name == "posix")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(ready, process, log, seconds=300):
    end = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None and time.monotonic() < end, Path(log).read_text()[-3000:]
        time.sleep(0.3)


def stop(process):
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def postgresql():
    "URI of a PostgreSQL of our own, on a socket in a temporary folder; it refuses to run as root"
    import psycopg2

    def ready():
        try:
            psycopg2.connect(host=d, user="agri", dbname="postgres").close()
            return True
        except psycopg2.OperationalError:
            return False

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as d, open(f"{d}/log", "w") as log:
        user = {}
        if os.geteuid() == 0:
            import pwd

            user = dict(user="nobody", group=pwd.getpwnam("nobody").pw_gid, extra_groups=[])
            os.chown(d, pwd.getpwnam("nobody").pw_uid, -1)
        how = dict(cwd=d, stdout=log, stderr=log, **user)
        init = [BIN / "initdb", "-D", f"{d}/data", "-U", "agri", "-A", "trust", "-E", "UTF8", "--no-sync"]
        assert subprocess.run(init, **how).returncode == 0, Path(log.name).read_text()[-3000:]
        server = subprocess.Popen([BIN / "postgres", "-D", f"{d}/data", "-k", d, "-h", "", "-F"], **how)
        try:
            wait_for(ready, server, log.name)
            yield f"postgresql+psycopg2://agri@/postgres?host={d}"
        finally:
            stop(server)


class Server:
    "An MLflow server that can be stopped and started again"

    def __init__(self, database, folder):
        self.database, self.folder, self.port = database, folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def up(self):
        try:
            return urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200
        except OSError:
            return False

    def start(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("AGRI_CAE", "MLFLOW"))}
        env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        stores = ["--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")]
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", *stores, *address]
        with open(self.folder / "log", "a") as log:
            how = dict(cwd=self.folder, stdout=log, stderr=log, env=env, start_new_session=True)
            self.process = subprocess.Popen(command, **how)
        wait_for(self.up, self.process, log.name)

    def stop(self):
        os.killpg(self.process.pid, 15)  # with its workers
        self.process.wait(60)
