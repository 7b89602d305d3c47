"Start the service: one process or several, watched and replaced when they die."
import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from agri_cae.config import AgriCaeError, ConfigError, home
from agri_cae.io.files import write_text
from agri_cae.modelfiles.card import read_card
from agri_cae.serve import model_path
from agri_cae.tracking.logs import one_line, setup_logging

from .keys import Keys
from .settings import ApiSettings
from .watch import Monitor

log = logging.getLogger("agri_cae.api")
REASON = "AGRI_CAE_STARTUP_ERROR"   # environment variable: file in which a process says why it cannot start


def load():
    "The application with its models loaded."
    from .app import create_app
    app = create_app()
    app.state.worker.warm()
    return app


def application():
    "What each process runs. What is wrong it leaves to the one that watches, which then starts no other."
    setup_logging()
    try: return load()
    except AgriCaeError as e:
        write_text(os.environ[REASON], one_line(e))
        sys.exit(STARTUP_FAILURE)


def run_service(
    host:str="127.0.0.1", # address to listen at
    port:int=8080,        # port; 0: any that is free
    workers:int=1,        # processes, each with models of its own; 0: this one, which nobody watches
):
    """Serve until SIGTERM or SIGINT; requests inside get the time of the settings to end. At SIGHUP the processes are
    replaced one by one, with models and settings as they are then.

    Raises `ConfigError`, `ModelError` and `OutputError` for what is wrong, before any process is started."""
    settings = ApiSettings()
    check_settings(settings)
    listener = _listen(host, port)
    if not (settings.keys or settings.keys_file): _warn_if_open(host)
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    log.info("open http://%s:%d", shown, listener.getsockname()[1])
    common = dict(log_config=None, access_log=False, server_header=False, timeout_keep_alive=30, lifespan="on",
                  timeout_graceful_shutdown=round(settings.seconds_to_end))
    if workers: _watch(workers, listener, common)
    else: _run(listener, common)


def check_settings(settings:ApiSettings):
    "Build what each process will hold, but for the engines of the models. Raises what is wrong with it."
    Keys(settings)
    for model in settings.named.values(): read_card(model_path(model, settings.serve.engine))
    if settings.monitor: Monitor(settings.named.values()).log.close()


def _listen(host, port):
    "A socket at that address"
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try: listener.bind((host, port))
    except (OSError, OverflowError) as e:
        listener.close()
        raise ConfigError(f"--host {host} --port {port}", f"cannot be listened at ({getattr(e, 'strerror', e)})",
                          "Choose another one, or end what listens there") from None
    listener.set_inheritable(True)
    return listener


def _run(listener, common):
    "This process serves"
    app = load()
    _end_well()
    uvicorn.Server(uvicorn.Config(app, **common)).run([listener])


_START = 60   # seconds that a process may take to load its models


class _Processes(Multiprocess):
    "Replaces its processes at SIGHUP, and says so"
    def handle_hup(self):
        log.info("SIGHUP: the processes are replaced one by one")
        before, usual = [p.pid for p in self.processes], self.config.timeout_worker_healthcheck
        self.config.timeout_worker_healthcheck = _START   # while the others serve, a new one may take its time
        super().handle_hup()
        self.config.timeout_worker_healthcheck = usual
        left = {p.pid for p in self.processes}.intersection(before)
        if not left: log.info("the processes are replaced")
        elif not self.should_exit.is_set():
            log.error("%d of %d processes go on as they were: a new one was not ready in time, or could not start "
                      "with the models and settings as they are now", len(left), len(before))


def _watch(workers, listener, common):
    "Other processes serve, and share a folder"
    _end_well()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)   # it would say that one fails, but not why
    cfg = uvicorn.Config(f"{__package__}.run:application", factory=True, workers=workers, **common)
    with tempfile.TemporaryDirectory(prefix="serve-", dir=home()) as folder:
        shared = Path(folder)
        os.environ[REASON] = str(shared / "reason")
        if workers > 1:
            os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
            os.environ.setdefault("AGRI_CAE_RATES_FILE", str(shared / "rates.sqlite"))
        _Processes(cfg, [listener]).run()
        if not (shared / "reason").exists(): return
        log.error((shared / "reason").read_text("utf-8"))
        sys.exit(2)


def _end_well():
    "uvicorn raises SIGTERM again when all is done: the exit code is 0 all the same"
    signal.signal(signal.SIGTERM, lambda *_: None)


def _warn_if_open(host):
    if host.startswith("127.") or host in ("localhost", "::1"): return
    log.warning("no API keys are set: whoever reaches %s may use the service", host)
