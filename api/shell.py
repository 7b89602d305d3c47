"Around every request: an id, security headers, metrics, a log line, and an answer to what went wrong."
import logging
import re
import time
import uuid

from prometheus_client import Counter, Gauge, Histogram

from agri_cae.tracking.logs import door, run_context

from .problems import answer

log = logging.getLogger("agri_cae.api")
REQUESTS = Counter("agri_cae_requests", "Requests", ["method", "route", "status"])
SECONDS = Histogram("agri_cae_request_seconds", "From arrival to the start of the answer", ["route"],
                    buckets=(.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60))
PREDICTIONS = Counter("agri_cae_predictions", "Pictures denoised", ["model"])
PIXELS = Counter("agri_cae_pixels", "Pixels denoised")
INSIDE = Gauge("agri_cae_requests_inside", "Requests that are worked on or wait", multiprocess_mode="livesum")

_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
HEADERS = [   # of every answer that does not set them itself
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),   # a page brings its own
]


def request_id(scope)->str: # as in the log
    return scope["state"]["request_id"]


class Shell:
    "ASGI middleware."
    def __init__(self, app): self.app = app

    async def __call__(self, scope, receive, send):
        "See the module."
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        rid, status = _wanted_id(scope), None
        scope.setdefault("state", {}).update(request_id=rid, start=time.perf_counter())

        async def sending(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _complete(message["headers"], rid)
            await send(message)

        INSIDE.inc()
        with run_context(run_id=rid), door("http"):
            try: await self.app(scope, receive, sending)
            except Exception as e:
                log.exception("unexpected")
                if status is None: await answer(e, scope["path"], rid)(scope, receive, sending)
            finally:
                INSIDE.dec()
                _note(scope, status or 499)


def _wanted_id(scope):
    "The id that the client gives, when it is a sound one; else a new one"
    asked = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return asked if _ID.fullmatch(asked) else uuid.uuid4().hex[:12]


def _complete(headers, rid):
    have = {k for k, _ in headers}
    return [*headers, *(h for h in HEADERS if h[0] not in have), (b"x-request-id", rid.encode())]


def _note(scope, status):
    "Count the request and log it"
    seconds, route = time.perf_counter() - scope["state"]["start"], getattr(scope.get("route"), "path", "none")
    method, rid = scope["method"], request_id(scope)
    if status >= 500 and status != 503 and method == "POST":   # 503 is no failure: it says when to try again
        scope["app"].state.worker.log_failure(rid, status, round(1000 * seconds, 1))
    REQUESTS.labels(method if route != "none" else "any", route, status).inc()
    SECONDS.labels(route).observe(seconds)
    log.info("%s %s %d %.0f ms %s", method, ascii(scope["path"])[1:-1][:200], status, 1000 * seconds, rid)
