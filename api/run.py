"Start the service: one process or several, watched and replaced when they die."
import logging
import os
import signal
import tempfile

import uvicorn
from uvicorn.supervisors import Multiprocess

from agri_cae.tracking.logs import setup_logging

from .settings import ApiSettings

log = logging.getLogger("agri_cae.api")


def application():
    "What each process runs."
    setup_logging()
    from .app import create_app
    return create_app()


def run_service(
    host:str="127.0.0.1", # address to listen at
    port:int=8080,        # port
    workers:int=1,        # processes, each with models of its own; 0: this one, which nobody watches
):
    """Serve until SIGTERM or SIGINT; requests inside get the time of the settings to end.

    Raises `ConfigError` for wrong settings."""
    s = ApiSettings()
    if not (s.keys or s.keys_file): _warn_if_open(host)
    cfg = uvicorn.Config(
        f"{__package__}.run:application", factory=True, host=host, port=port, workers=max(1, workers),
        log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=round(s.grace),
        timeout_keep_alive=30, lifespan="on")
    signal.signal(signal.SIGTERM, lambda *_: None)   # uvicorn raises it again when all is done: the exit code is 0
    if not workers:
        uvicorn.Server(cfg).run()
        return
    with tempfile.TemporaryDirectory(prefix="agri_cae-") as d:
        if workers > 1: os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", d)
        Multiprocess(cfg, [cfg.bind_socket()]).run()


def _warn_if_open(host):
    if host.startswith("127.") or host in ("localhost", "::1"): return
    log.warning("no API keys are set: whoever reaches %s may use the service", host)
