"The routes of whoever operates the service: is it alive, is it ready, and numbers for Prometheus."
import os

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest, multiprocess

from .problems import Problem, documented
from .worker import Worker


def router(worker:Worker, reader)->APIRouter:
    "Health and metrics."
    api = APIRouter(tags=["operation"])

    async def healthz()->dict[str, str]: return {"status": "alive"}

    for path in dict.fromkeys(("/healthz", os.environ.get("AIP_HEALTH_ROUTE", "/healthz"))):
        api.get(path, summary="Is the process alive?")(healthz)

    @api.get("/readyz", summary="Are the models ready?", responses=documented(503))
    async def readyz()->dict[str, str]:
        if worker.ready: return {"status": "ready"}
        why = "The service is stopping." if worker.gate.draining else "The models are being loaded."
        raise Problem(503, why, Retry_After="2")

    @api.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse,
             responses=documented(401, 403), dependencies=[Depends(reader)])
    def metrics():
        text = generate_latest(_registry()).decode() + (worker.monitor.metrics() if worker.monitor else "")
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return api


def _registry():
    "The numbers of this process, or of all workers together"
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ: return REGISTRY
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return registry
