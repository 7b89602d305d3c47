"The application: `create_app()`."
import asyncio
import signal
from contextlib import asynccontextmanager, suppress
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from agri_cae import __version__
from agri_cae.config import AgriCaeError

from . import machines, operation, pages, v1, watch
from .problems import InferError, Problem, ProblemDetails, answer
from .settings import ApiSettings
from .shell import Shell, request_id
from .worker import Worker

_bearer = HTTPBearer(auto_error=False, description="An API key, where the service asks for one")
_header = APIKeyHeader(name="X-API-Key", auto_error=False)
EXPOSED = ["X-Model-Version", "X-Model-Digest", "X-Noise-Sigma", "X-Strength", "X-Milliseconds", "X-Request-Id",
           "Retry-After"]


def create_app(
    cfg:ApiSettings|None=None, # by default from the environment
)->FastAPI:
    """The service. Models are loaded when it starts.

    Raises `ConfigError` for wrong settings, `OutputError` when the log of predictions cannot be written."""
    worker = Worker(cfg or ApiSettings())
    app = FastAPI(
        title="agri_cae", version=__version__, summary="Takes the noise out of agricultural images.",
        description="Errors are RFC 9457 problems; below /v2 they have the shape of the Open Inference Protocol.",
        lifespan=_lifespan, docs_url=None, redoc_url=None)
    app.state.worker = worker
    for kind in (Problem, AgriCaeError, RequestValidationError, HTTPException, MemoryError):
        app.add_exception_handler(kind, _explain)
    for router in _routers(worker): app.include_router(router)
    if worker.cfg.cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(worker.cfg.cors), allow_methods=["GET", "POST"],
                           allow_headers=["*"], expose_headers=EXPOSED)
    app.add_middleware(Shell)
    described = app.openapi
    app.openapi = lambda: _with_models(described())
    return app


@asynccontextmanager
async def _lifespan(app):
    worker = app.state.worker
    if not worker.ready: worker.warm()   # in a test; a server process has loaded it before
    restore = _drain_on_sigterm(worker.gate)
    if worker.monitor: worker.monitor.watcher.start()
    yield
    restore()
    worker.gate.close()
    if worker.monitor: worker.monitor.watcher.stop()


def _routers(worker):
    async def reader(
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
        key: Annotated[str | None, Depends(_header)],
    ): worker.keys.reader(bearer.credentials if bearer else key)

    async def guard(
        request: Request,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
        key: Annotated[str | None, Depends(_header)],
    ):
        owner = worker.keys.owner(bearer.credentials if bearer else key)
        worker.rates.take(owner or (request.client.host if request.client else ""))

    yield v1.router(worker, guard)
    yield machines.router(worker, guard)
    yield operation.router(worker, reader)
    yield pages.router()
    if worker.monitor: yield watch.router(worker.monitor, worker.keys)


async def _explain(request, e): return answer(e, request.url.path, request_id(request.scope))


def _with_models(spec):
    "Add the schemas of bodies that are read by hand, and drop FastAPI's own form of 422, which does not occur"
    ours = [(m, "validation") for m in (ProblemDetails, InferError, machines.InferRequest, machines.PredictRequest)]
    made = models_json_schema(ours, ref_template="#/components/schemas/{model}")[1]["$defs"]
    schemas = spec["components"]["schemas"]
    for name, schema in made.items(): schemas.setdefault(name, schema)
    for op in (op for path in spec["paths"].values() for op in path.values()):
        if "HTTPValidationError" in str(op["responses"].get("422")): del op["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"): schemas.pop(name, None)
    return spec


def _drain_on_sigterm(gate):
    "At SIGTERM first the gate closes, then the server does what it does. Gives a function that undoes this"
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

    def stop(signum, frame):
        loop.call_soon_threadsafe(gate.drain)
        if callable(before): before(signum, frame)

    with suppress(ValueError):   # not the main thread, as in a test: nobody can ask us to stop
        signal.signal(signal.SIGTERM, stop)
        return lambda: signal.signal(signal.SIGTERM, before)
    return lambda: None
