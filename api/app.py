"The application: `create_app()`."
import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, Response
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest, multiprocess
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from agri_cae import __version__
from agri_cae.config import AgriCaeError

from . import machines, pages, v1, watch
from .problems import InferError, Problem, ProblemDetails, answer, documented
from .service import Service
from .settings import ApiSettings
from .shell import Shell, request_id

_bearer, _header = HTTPBearer(auto_error=False, description="An API key, where the service asks for one"), APIKeyHeader(name="X-API-Key", auto_error=False)


def create_app(
    cfg:ApiSettings|None=None, # by default from the environment
)->FastAPI:
    "The service. Models are loaded when it starts. Raises `ConfigError` for wrong settings, `OutputError` when the log of predictions cannot be written."
    s = Service(cfg or ApiSettings())

    @asynccontextmanager
    async def lifespan(app):
        s.warm(); restore = _drain_on_sigterm(s.gate)
        if s.monitor: s.monitor.watcher.start()
        yield
        restore(); s.gate.close()
        if s.monitor: s.monitor.watcher.stop()

    async def guard(request: Request, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)], key: Annotated[str | None, Depends(_header)]):
        owner = s.keys.owner(bearer.credentials if bearer else key)
        s.rates.take(owner or (request.client.host if request.client else ""))

    app = FastAPI(title="agri_cae", version=__version__, summary="Takes the noise out of agricultural images.", lifespan=lifespan, docs_url=None, redoc_url=None,
                  description="Errors are RFC 9457 problems; below /v2 they have the shape of the Open Inference Protocol.")
    app.state.service = s
    for kind in (Problem, AgriCaeError, RequestValidationError, HTTPException, MemoryError): app.add_exception_handler(kind, _explain)
    for r in (v1.router(s, guard), machines.router(s, guard), _system(s, guard), pages.router(), *([watch.router(s.monitor, s.keys)] if s.monitor else [])): app.include_router(r)
    if s.cfg.cors:
        app.add_middleware(CORSMiddleware, allow_origins=list(s.cfg.cors), allow_methods=["GET", "POST"], allow_headers=["*"],
                           expose_headers=["X-Model-Version", "X-Noise-Sigma", "X-Strength", "X-Milliseconds", "X-Request-Id", "Retry-After"])
    app.add_middleware(Shell)
    app.openapi = lambda made=app.openapi: _with_models(made())
    return app

async def _explain(request, e): return answer(e, request.url.path, request_id(request.scope))

def _with_models(spec):
    "The schemas of bodies that are read by hand; FastAPI's own form of 422 does not occur"
    made = models_json_schema([(m, "validation") for m in (ProblemDetails, InferError, machines.InferRequest, machines.PredictRequest)], ref_template="#/components/schemas/{model}")[1]["$defs"]
    for name, schema in made.items(): spec["components"]["schemas"].setdefault(name, schema)
    for op in (op for path in spec["paths"].values() for op in path.values()):
        if "HTTPValidationError" in str(op["responses"].get("422")): del op["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"): spec["components"]["schemas"].pop(name, None)
    return spec

def _drain_on_sigterm(gate):
    "Whichever server runs the application: at SIGTERM first the gate closes, then the server does what it does. Gives what undoes it."
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    def stop(signum, frame):
        loop.call_soon_threadsafe(gate.drain)
        if callable(before): before(signum, frame)
    with suppress(ValueError):   # not the main thread, as in a test: nobody can ask us to stop
        signal.signal(signal.SIGTERM, stop)
        return lambda: signal.signal(signal.SIGTERM, before)
    return lambda: None


def _system(s, guard):
    api = APIRouter(tags=["operation"])

    async def healthz()->dict[str, str]: return {"status": "alive"}
    for path in dict.fromkeys(("/healthz", os.environ.get("AIP_HEALTH_ROUTE", "/healthz"))): api.get(path, summary="Is the process alive?")(healthz)

    @api.get("/readyz", summary="Are the models ready?", responses=documented(503))
    async def readyz()->dict[str, str]:
        if not s.ready: raise Problem(503, "The service is stopping." if s.gate.draining else "The models are being loaded.", Retry_After="2")
        return {"status": "ready"}

    @api.get("/metrics", response_class=PlainTextResponse, summary="Numbers for Prometheus", responses=documented(401, 403, 429), dependencies=[Depends(guard)])
    def metrics():
        registry = REGISTRY
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ: registry = CollectorRegistry(); multiprocess.MultiProcessCollector(registry)
        return Response(generate_latest(registry).decode() + (s.monitor.metrics() if s.monitor else ""), media_type=CONTENT_TYPE_LATEST)

    return api
