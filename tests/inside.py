"The service inside the process of a test."
from contextlib import contextmanager

import numpy as np
from fastapi.testclient import TestClient

from agri_cae.api.app import create_app
from agri_cae.api.settings import ApiSettings
from agri_cae.config import ServeConfig
from agri_cae.io.images import Picture, sample
from agri_cae.service.in_memory import encode

JPEG = {"Content-Type": "image/jpeg"}
PHOTO = sample("field_camera").read_bytes()
SMALL = encode(Picture(np.random.default_rng(0).integers(80, 160, (64, 80, 3), np.uint8)), "png")


@contextmanager
def service(box, **cfg):
    "A client of a service with a tiny model and these settings"
    settings = ApiSettings(models=(box,), **dict(serve=ServeConfig(model=box), monitor=False) | cfg)
    with TestClient(create_app(settings), raise_server_exceptions=False) as c: yield c


def post(c, route="/v1/denoise", body=SMALL, status=200, head=JPEG, **kw):
    "The answer, which must have this status; a refusal below /v1 must be a problem of RFC 9457"
    r = c.post(route, content=body, headers=head, **kw)
    assert r.status_code == status, (r.status_code, r.text[:300])
    if status >= 400 and route.startswith("/v1"):
        assert r.headers["Content-Type"] == "application/problem+json"
        assert set(r.json()) == {"type", "title", "status", "detail", "request_id"} and r.json()["status"] == status
        assert r.json()["request_id"] == r.headers["X-Request-Id"]
    return r


def infer(c, status=200, model="box", **tensor):
    "The same by the Open Inference Protocol"
    parameters = tensor.pop("parameters", {})
    body = dict(inputs=[dict(name="noisy") | tensor], parameters=parameters)
    r = c.post(f"/v2/models/{model}/infer", json=body)
    assert r.status_code == status, r.text
    if status >= 400: assert set(r.json()) == {"error"}
    return r.json()
