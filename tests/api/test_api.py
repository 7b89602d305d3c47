"The service from inside its process: every route, every status, keys, rates, queue, deadline, and what a hostile file does to it."
import asyncio
import base64
import logging
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import hostile
import numpy as np
import psutil
import pytest
from tiny_model import box_model

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")
pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from agri_cae.api import keys as api_keys
from agri_cae.api.app import create_app
from agri_cae.api.gate import Gate, Left
from agri_cae.api.keys import new_key
from agri_cae.api.problems import Problem
from agri_cae.api.settings import ApiSettings
from agri_cae.api.uploads import accepted
from agri_cae.config import ConfigError, ServeConfig
from agri_cae.io.images import CODECS, Picture, provenance_of, read_image, sample
from agri_cae.io.tags import GEO
from agri_cae.serve import Denoiser
from agri_cae.service.requests import denoise_bytes, encode, tuned

JPEG = {"Content-Type": "image/jpeg"}
PHOTO = sample("field_camera").read_bytes()
SMALL = encode(Picture(np.random.default_rng(0).integers(80, 160, (64, 80, 3), np.uint8)), "png")


@pytest.fixture(scope="module")
def box(tmp_path_factory): return str(box_model(tmp_path_factory.mktemp("model")))


@contextmanager
def service(box, **cfg):
    with TestClient(create_app(ApiSettings(serve=ServeConfig(model=box), models=(box,), **dict(monitor=False) | cfg)), raise_server_exceptions=False) as c: yield c


@pytest.fixture(scope="module")
def c(box):
    with service(box) as c: yield c


def post(c, route="/v1/denoise", body=SMALL, status=200, head=JPEG, **kw):
    r = c.post(route, content=body, headers=head, **kw)
    assert r.status_code == status, (r.status_code, r.text[:300])
    if status >= 400 and route.startswith("/v1"):
        assert r.headers["Content-Type"] == "application/problem+json"
        assert set(r.json()) == {"type", "title", "status", "detail", "request_id"} and r.json()["status"] == status
        assert r.json()["request_id"] == r.headers["X-Request-Id"]
    return r


# denoise

def test_the_answer_is_what_the_library_makes(c, box):
    want = denoise_bytes(Denoiser.load(box), PHOTO)
    r = post(c, body=PHOTO)
    assert r.content == want.file() and r.headers["Content-Type"] == "image/jpeg"
    assert r.headers["X-Model-Version"] == "box@3" and r.headers["X-Strength"] == "1" and float(r.headers["X-Milliseconds"]) > 0
    assert float(r.headers["X-Noise-Sigma"]) == pytest.approx(want.sigma, abs=.006)
    assert c.post("/v1/denoise", files={"file": ("x.jpg", PHOTO, "image/jpeg")}).content == r.content
    assert post(c, body=PHOTO, head={"Content-Type": "application/octet-stream"}).content == r.content


@pytest.mark.parametrize("name", ["field_camera", "airborne", "satellite"])
def test_depth_and_metadata_survive(c, name):
    a, b = (read_image(x) for x in (sample(name), post(c, body=sample(name).read_bytes()).content))
    assert (b.format, b.data.dtype, b.data.shape, b.meta.icc, b.meta.dpi) == (a.format, a.data.dtype, a.data.shape, a.meta.icc, a.meta.dpi)
    if name != "field_camera":
        places = GEO & set(a.meta.tags)
        assert places and all(b.meta.tags[k] == a.meta.tags[k] for k in places)
    assert provenance_of(b).startswith("agri_cae ") and not np.array_equal(a.data, b.data)


@pytest.mark.parametrize("query, accept, want", [("", None, "png"), ("?format=webp", "image/jpeg", "webp"), ("?format=tif", None, "tiff"), ("?format=jpg", None, "jpeg"), ("", "image/jpeg", "jpeg"),
                                                 ("", "text/html, image/webp;q=0.7, image/tiff;q=.9, */*;q=0.8", "tiff"), ("", "text/html,*/*", "png"), ("", "application/json", "png")])
def test_format(c, query, accept, want):
    r = post(c, f"/v1/denoise{query}", head=JPEG | ({"Accept": accept} if accept else {}))
    assert r.headers["Content-Type"] == f"image/{want}" and read_image(r.content).format == want


def test_accept_of_any_kind():
    assert accepted("image/png;q=0, image/webp;q=nonsense, image/jpeg;level=1") == "jpeg" and accepted("") is accepted(";;,q") is None


def test_strength_sigma_tile_range(c, box):
    d, a = Denoiser.load(box), read_image(SMALL)
    pixels = lambda q, **kw: read_image(post(c, f"/v1/denoise?{q}", **kw).content).data
    assert np.array_equal(pixels("strength=0"), a.data)
    assert np.array_equal(pixels("strength=0.5"), tuned(d, strength=.5)(a.data))
    assert post(c, "/v1/denoise?strength=auto").headers["X-Strength"] == f"{d.settled(a.data, d.sigma(a.data)).cfg.strength if d.cfg.strength == 'auto' else tuned(d, strength='auto').settled(a.data).cfg.strength:g}"
    told = post(c, "/v1/denoise?sigma=2")
    assert told.headers["X-Strength"] == "0.5" and told.headers["X-Noise-Sigma"] == "2.00"
    sat = sample("satellite").read_bytes()
    assert np.array_equal(pixels("range=5000,10000&tile=256&strength=0.5", body=sat), tuned(d, strength=.5, value_range=(5000, 10000), tile=256)(read_image(sat).data))


def test_a_second_pass_wants_force(c):
    once = post(c).content
    assert "was denoised before (agri_cae" in post(c, body=once, status=409).json()["detail"]
    post(c, "/v1/denoise?force=true", body=once)


# what is refused

@pytest.mark.parametrize("route, body, head, status, says", [
    ("/v1/denoise", b"", JPEG, 400, "picture: has zero bytes"), ("/v1/denoise", b"GIF89a" + bytes(99), JPEG, 400, "is a GIF"), ("/v1/denoise", PHOTO[:9000], JPEG, 400, "truncated"),
    ("/v1/denoise?strength=1.5", SMALL, JPEG, 400, "strength: "), ("/v1/denoise?strength=nan", SMALL, JPEG, 400, "strength: "), ("/v1/denoise?tile=201", SMALL, JPEG, 400, "tile: "),
    ("/v1/denoise?model=../../secret", SMALL, JPEG, 400, "'box'"), ("/v1/denoise?range=9,1", SMALL, JPEG, 400, "rising"), ("/v1/denoise?range=nan,inf", SMALL, JPEG, 400, "rising"),
    ("/v1/denoise?format=gif", SMALL, JPEG, 400, "format: "), ("/v1/denoise?format=jpeg", sample("satellite").read_bytes(), JPEG, 400, "JPEG cannot hold uint16"),
    ("/v1/denoise", SMALL, {}, 415, "Content-Type"), ("/v1/denoise", SMALL, {"Content-Type": "application/x-www-form-urlencoded"}, 415, "Content-Type"),
    ("/v1/denoise", b"--x\r\n", {"Content-Type": "multipart/form-data"}, 400, "form"), ("/v1/denoise", b"junk", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "form"),
    ("/v1/denoise", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n', {"Content-Type": "multipart/form-data; boundary=x"}, 400, "holds no file"),
    ("/v1/estimate", encode(Picture(np.zeros((5, 5, 3), np.uint8)), "png"), JPEG, 400, "too small"), ("/v1/compare?residual=-1", SMALL, JPEG, 400, "residual: ")])
def test_bad_requests(c, route, body, head, status, says): assert says in post(c, route, body, status, head).json()["detail"]


def test_too_many_bytes_are_counted_as_they_come(box):
    with service(box, upload_bytes=10_000) as c:
        read = []
        def stream():
            for _ in range(1000): read.append(1); yield bytes(1000)
        for body in (bytes(10_001), stream()): assert "10,000 bytes" in post(c, body=body, status=413).json()["detail"]
        assert post(c, head=JPEG | {"Content-Length": "99999999"}, body=b"x", status=413)
        assert c.post("/v1/denoise", files={"file": ("x.jpg", bytes(11_000))}).status_code == 413
        assert c.post("/predict", content=bytes(11_000), headers={"Content-Type": "application/json"}).status_code == 413
        post(c, body=encode(read_image(SMALL).with_data(np.full((64, 80, 3), 99, np.uint8)), "png"))


def test_too_many_pixels_are_seen_before_any_is_decoded(box, monkeypatch):
    def never(*_): raise AssertionError("decoded")
    with service(box, upload_pixels=64 * 80 - 1) as c:
        monkeypatch.setitem(CODECS, "png", CODECS["png"]._replace(decode=never))
        for route in ("/v1/denoise", "/v1/estimate", "/v1/compare"): assert "5,119 are taken" in post(c, route, status=422).json()["detail"]
        b64 = base64.b64encode(SMALL).decode()
        assert c.post("/predict", json=dict(instances=[dict(b64=b64)])).status_code == 422
        assert c.post("/v2/models/box/infer", json=dict(inputs=[dict(name="noisy", shape=[1], datatype="BYTES", data=[b64])])).status_code == 422
        assert c.post("/v2/models/box/infer", json=dict(inputs=[dict(name="noisy", shape=[1, 80, 64, 1], datatype="UINT8", data=[0])])).status_code == 422


def test_hostile_files_never_break_it(c):
    "At least 300 files: only 2xx and 4xx, and memory stays bounded."
    seen, low, high = {}, None, 0
    for i, (name, data) in enumerate(hostile.files()):
        r = c.post("/v1/denoise", content=data, headers=JPEG)
        assert r.status_code < 500, (name, r.text)
        seen.setdefault(r.status_code, []).append(name)
        rss = psutil.Process().memory_info().rss
        if i == 320: low = rss                       # all mutants are through
        high = max(high, rss)
    assert sum(map(len, seen.values())) >= 300 and len(seen[200]) > 20 and len(seen[400]) > 100 and len(seen[422]) >= 4
    assert high - low < 600 * 2**20
    assert post(c, body=PHOTO).status_code == 200


# the other routes

def test_estimate(c):
    r = post(c, "/v1/estimate", body=PHOTO).json()
    assert (r["width"], r["height"], r["format"], r["dtype"]) == (640, 427, "jpeg", "uint8") and 0 < r["sigma"] < 5 and 0 < r["strength"] < 1


def test_compare(c):
    a = read_image(SMALL).data
    got = read_image(post(c, "/v1/compare?residual=2").content)
    assert got.format == "png" and got.data.shape == (64, 3 * 80 + 16, 3) and np.array_equal(got.data[:, :80], a)
    post(c, "/v1/compare", body=sample("satellite").read_bytes())


def test_models(c):
    (m,) = c.get("/v1/models").json()
    assert (m["name"], m["version"], m["default"], m["channels"]) == ("box", "3", True, 3)


def test_shipped_models_are_served_by_default():
    with TestClient(create_app(ApiSettings(monitor=False))) as c:
        assert [m["name"] for m in c.get("/v1/models").json()][0] == "fast"
        assert post(c, "/v1/denoise?model=base").headers["X-Model-Version"].startswith("base@")


def test_names_of_models():
    named = ApiSettings(serve=ServeConfig(model="models:/agri-cae@champion"), models=("fast", "a/b/potato.onnx", "models:/agri-cae/7")).named
    assert list(named) == ["champion", "fast", "potato", "7"]


def infer(c, status=200, model="box", **tensor):
    r = c.post(f"/v2/models/{model}/infer", json=dict(inputs=[dict(name="noisy") | tensor], parameters=tensor.pop("parameters", {})))
    assert r.status_code == status, r.text
    if status >= 400: assert set(r.json()) == {"error"}
    return r.json()


@pytest.mark.parametrize("datatype, dtype", [("UINT8", np.uint8), ("UINT16", np.uint16), ("FP32", np.float32)])
def test_infer_arrays(c, box, datatype, dtype):
    x = np.random.default_rng(0).integers(0, 255, (2, 16, 24, 3)).astype(dtype) / (255 if dtype == np.float32 else 1); x = x.astype(dtype)
    flat, nested = (infer(c, shape=list(x.shape), datatype=datatype, data=d) for d in (x.ravel().tolist(), x.tolist()))
    y = np.array(flat["outputs"][0]["data"], dtype).reshape(flat["outputs"][0]["shape"])
    assert flat == nested and flat["model_version"] == "3" and np.allclose(y, np.stack([Denoiser.load(box)(i) for i in x]), atol=1e-6)


def test_infer_files_and_predict(c, box):
    b64, want = base64.b64encode(SMALL).decode(), denoise_bytes(tuned(Denoiser.load(box), strength=.5), SMALL).file()
    out = infer(c, shape=[2], datatype="BYTES", data=[b64] * 2, parameters=dict(strength=.5))["outputs"][0]
    assert out["shape"] == [2] and [base64.b64decode(o) for o in out["data"]] == [want] * 2
    got = c.post("/predict", json=dict(instances=[dict(b64=b64), dict(image=dict(b64=b64))], parameters=dict(strength=.5, model="box"))).json()["predictions"]
    assert [base64.b64decode(p["b64"]) for p in got] == [want] * 2 and got[0]["model"] == "box@3" and got[0]["strength"] == .5 and got[0]["sigma"] > 5
    assert c.post("/predict", json=dict(instances=[])).json() == {"predictions": []}


@pytest.mark.parametrize("tensor, status", [
    (dict(shape=[1, 2, 2, 3], datatype="UINT8", data=[300] * 12), 400), (dict(shape=[1, 2, 2, 3], datatype="UINT8", data=[1.5] * 12), 400), (dict(shape=[1, 2, 2, 3], datatype="FP32", data=["a"] * 12), 400),
    (dict(shape=[1, 2, 2, 3], datatype="UINT8", data=[1] * 11), 400), (dict(shape=[2, 2, 3], datatype="UINT8", data=[1] * 12), 400), (dict(shape=[1, 2, 0, 3], datatype="UINT8", data=[]), 400),
    (dict(shape=[1, 2, 2, 3], datatype="INT4", data=[1] * 12), 400), (dict(shape=[1, 1, 2, 3], datatype="FP32", data=[[1, 2], [3]]), 400), (dict(shape=[1, 1, 1, 3], datatype="FP32", data=[1e300, 1, 1]), 400),
    (dict(shape=[1, 1, 1, 3], datatype="FP32", data=[10**400, 1, 1]), 400), (dict(shape=[1], datatype="BYTES", data=["?"]), 400), (dict(shape=[1], datatype="BYTES", data=[7]), 400), (dict(shape=[2], datatype="BYTES", data=[""]), 400),
    (dict(shape=[1, 1, 1, 7], datatype="FP32", data=[0] * 7), 400), (dict(model="nix", shape=[1, 1, 1, 3], datatype="UINT8", data=[1] * 3), 404), (dict(shape=[-1, 1, 1, 3], datatype="UINT8", data=[1] * 3), 400)])
def test_infer_refuses(c, tensor, status): infer(c, status, **tensor)


def test_json_of_any_kind(c):
    for body in (b"", b"[", b"[" * 100_000, b"null", b'{"inputs": NaN}', b"\xff\xfe", b'{"instances": [{"b64": 1}]}'):
        for route in ("/v2/models/box/infer", "/predict"): assert c.post(route, content=body, headers={"Content-Type": "application/json"}).status_code == 400, (route, body[:20])
    assert c.post("/predict", content=b"{}").status_code == 415
    assert c.post("/predict", json=dict(instances=[], parameters=dict(model="nix", x=1))).status_code == 400


def test_v2_metadata(c):
    assert c.get("/v2/health/live").json() == {"live": True} and c.get("/v2/health/ready").json() == {"ready": True} and c.get("/v2").json()["name"] == "agri_cae"
    assert c.get("/v2/models/box").json()["inputs"] == [dict(name="noisy", datatype="FP32", shape=[-1, -1, -1, 3])] and c.get("/v2/models/box/ready").json()["ready"]
    assert c.get("/v2/models/nix").status_code == 404 and "box" in c.get("/v2/models/nix").json()["error"]


def test_vertex_names_the_routes(box, monkeypatch):
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1:predict"); monkeypatch.setenv("AIP_HEALTH_ROUTE", "/alive")
    with service(box) as c: assert c.get("/alive").status_code == c.post("/v1/endpoints/1:predict", json=dict(instances=[])).status_code == 200


def test_examples_of_the_description_work(c):
    spec = c.get("/openapi.json").json(); done = 0
    for path, ops in spec["paths"].items():
        for schema in [m["schema"] for op in ops.values() for m in op.get("requestBody", {}).get("content", {}).values() if "$ref" in m["schema"]]:
            example = spec["components"]["schemas"][schema["$ref"].rsplit("/")[-1]]["example"]; done += 1
            assert c.post(path.replace("{name}", "box"), json=example).status_code == 200, path
    assert done == 2
    described = {ref for op in str(spec).split("#/components/schemas/")[1:] for ref in [op.split("'")[0]]}
    assert described <= set(spec["components"]["schemas"])
    assert all("curl" in op["description"] for p, ops in spec["paths"].items() for m, op in ops.items() if m == "post")


def test_metrics(box):
    with service(box) as c:
        def value(name): return sum(float(line.rsplit(" ", 1)[1]) for line in c.get("/metrics").text.splitlines() if line.startswith(name))
        names = ('agri_cae_requests_total{method="POST",route="/v1/denoise",status="200"}', 'agri_cae_requests_total{method="POST",route="/v1/denoise",status="400"}', "agri_cae_predictions_total", "agri_cae_pixels_total")
        before = [value(n) for n in names]
        post(c); post(c); post(c, body=b"x", status=400); c.get("/nowhere/%00/x")
        assert [value(n) - b for n, b in zip(names, before)] == [2, 1, 2, 2 * 64 * 80]
        assert value("agri_cae_requests_inside") == 1 and "nowhere" not in c.get("/metrics").text   # the request for the metrics itself


# who may call

def test_keys(box, tmp_path, caplog, monkeypatch):
    (good, entry), (other, second), (gone, third) = new_key("drone"), new_key("lab"), new_key("old")
    f = tmp_path/"keys"; f.write_text(f"# those of 2026\n{second}\n{third}:revoked\n")
    caplog.set_level(logging.DEBUG)
    with service(box, keys=entry, keys_file=f) as c:
        def ask(key=None, head="Authorization", route="/v1/models"): return c.get(route, headers={head: f"Bearer {key}" if head == "Authorization" else key} if key else {}).status_code
        assert [ask(k) for k in (good, other, None, "nonsense", good[:-1], good + "x", gone)] == [200, 200, 401, 401, 401, 401, 403]
        assert ask(good, "X-API-Key") == 200 and ask("ключ".encode(), "X-API-Key") == 401
        assert [ask(route=r) for r in ("/metrics", "/v2/models/box", "/healthz", "/readyz", "/", "/v2/health/ready")] == [401, 401, 200, 200, 200, 200]
        for route in ("/v1/denoise", "/v1/estimate", "/v1/compare"): assert post(c, route, status=401).headers["WWW-Authenticate"] == "Bearer"
        for route in ("/predict", "/v2/models/box/infer"): assert c.post(route, json={}).status_code == 401
        post(c, head=JPEG | {"Authorization": f"Bearer {good}"})
        compared = []
        monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append(a) or a == b)
        for k in (good, other, "nonsense", None): ask(k)
        assert len(compared) == 4 * 3                                # the same work for right, wrong and none
        f.write_text(f"{second}:revoked\n   \n"); assert (ask(other), ask(gone), ask(good)) == (403, 401, 200)
        f.write_text("cae_a-key-instead-of-its-hash"); assert (ask(other), ask(good)) == (401, 401)   # a file that is wrong lets nobody in
        f.write_text(second); assert ask(other) == 200
        f.unlink(); assert ask(other) == 401
    assert not any(k in caplog.text for k in (good, other, gone, "nonsense"))


def test_keys_that_are_wrong_stop_the_start_and_are_not_shown(tmp_path):
    for cfg in (dict(keys="cae_secret"), dict(keys_file=tmp_path/"none"), dict(keys="a:" + "0" * 63)):
        with pytest.raises(ConfigError) as e: create_app(ApiSettings(**cfg))
        assert "secret" not in str(e.value)
    with pytest.raises(ConfigError): new_key("a:b")


def test_rate_of_each_key(box):
    keys = [new_key(n) for n in "ab"]
    with service(box, keys=",".join(e for _, e in keys), rate=3) as c:
        def ask(i): return c.get("/v1/models", headers={"X-API-Key": keys[i][0]})
        assert [ask(0).status_code for _ in range(4)] == [200, 200, 200, 429] and ask(1).status_code == 200
        assert 1 <= int(ask(0).headers["Retry-After"]) <= 20
    with service(box, rate=1) as c: assert [c.get("/v1/models").status_code for _ in range(2)] == [200, 429]


def test_bucket_fills_again(monkeypatch):
    now = [0.]; monkeypatch.setattr(api_keys.time, "monotonic", lambda: now[0])
    r = api_keys.Rates(60, most=2); [r.take("a") for _ in range(60)]
    with pytest.raises(Problem): r.take("a")
    now[0] = 1.; r.take("a"); r.take("b"); r.take("c"); assert list(r.buckets) == ["b", "c"]


# queue, deadline, and clients that leave

class Slow:
    "An engine that stands still until it is let go"
    def __init__(self, c):
        self.d = c.app.state.service.models["box"]; self.engine, self.go, self.entered = self.d.engine, threading.Event(), threading.Semaphore(0)
    def __call__(self, x): self.entered.release(); assert self.go.wait(60); return self.engine(x)
    def __enter__(self): self.d.engine = self; return self
    def __exit__(self, *_): self.go.set(); self.d.engine = self.engine


@contextmanager
def waiting(c, n):
    "n requests inside"
    with Slow(c) as slow:
        got = []; threads = [threading.Thread(target=lambda: got.append(c.post("/v1/denoise", content=SMALL, headers=JPEG))) for _ in range(n)]
        for t in threads: t.start()
        for _ in range(n): assert slow.entered.acquire(timeout=60)
        yield slow
        slow.go.set()
        for t in threads: t.join(60)
        assert [r.status_code for r in got] == [200] * n


def test_full_queue(box):
    with service(box, queue_requests=2, at_once=2) as c, waiting(c, 2):
        r = post(c, status=503); assert int(r.headers["Retry-After"]) > 0 and "2 requests are waiting" in r.json()["detail"]
        assert c.get("/healthz").status_code == c.get("/readyz").status_code == c.get("/v1/models").status_code == 200     # the event loop is free
    with service(box, queue_pixels=64 * 80 + 64 * 80 // 2) as c:
        with waiting(c, 1): assert "5,120 pixels are waiting" in post(c, status=503).json()["detail"]
        post(c)                                                                                             # and free again
        assert c.app.state.service.gate.pixels == c.app.state.service.gate.requests == 0
    with service(box, queue_pixels=10) as c: post(c)                                                        # one alone is let in


def test_who_cannot_be_done_in_time_is_refused_at_once(box):
    with service(box, deadline=10) as c:
        gate = c.app.state.service.gate; post(c)
        assert gate.pace > 0   # learnt
        with waiting(c, 1):
            gate.pace = 9 / (64 * 80); r = post(c, status=503); assert "9 s until its turn" in r.json()["detail"] and r.headers["Retry-After"] == "4"
            gate.pace = 0.
        post(c)


def test_deadline(box):
    with service(box, deadline=.3) as c:
        with Slow(c): assert "within 0.3 s" in post(c, status=504).json()["detail"]
        for _ in range(200):
            if not c.app.state.service.gate.pixels: break
            time.sleep(.05)
        gate = c.app.state.service.gate; assert gate.pixels == gate.requests == 0
        gate.cfg = gate.cfg.model_copy(update=dict(deadline=60)); post(c)


def test_draining(box):
    with service(box) as c:
        gate = c.app.state.service.gate
        c.portal.call(lambda: _now(gate.drain))
        for r in (c.get("/readyz"), post(c, status=503)): assert r.status_code == 503 and r.headers["Retry-After"]
        assert c.get("/v2/health/ready").json() == {"error": "Not ready."} and c.get("/healthz").status_code == 200

async def _now(f): f()


def test_drain_cuts_the_deadline(box):
    with service(box, grace=1.3, deadline=100) as c, Slow(c) as slow:
        got = []; t = threading.Thread(target=lambda: got.append(c.post("/v1/denoise", content=SMALL, headers=JPEG))); t.start()
        assert slow.entered.acquire(timeout=60); c.portal.call(lambda: _now(c.app.state.service.gate.drain)); t.join(60)
        assert got[0].status_code == 503 and "stopping" in got[0].json()["detail"]


def test_work_ends_when_the_client_leaves():
    async def main():
        gate, started, ended = Gate(ApiSettings(at_once=1)), threading.Event(), []
        async def receive(): await asyncio.to_thread(started.wait); return {"type": "http.disconnect"}
        def work(progress):
            started.set()
            try:
                while True: progress(1, 9); time.sleep(.01)
            except Left: ended.append(1); raise
        with pytest.raises(Problem) as e:
            async with gate.enter(): await gate.run(SimpleNamespace(receive=receive), 10, work)
        gate.work.shutdown(wait=True); await asyncio.sleep(0)
        assert e.value.status == 499 and ended == [1] and gate.pixels == gate.requests == 0
    asyncio.run(main())


# around it

@pytest.fixture
def home(tmp_path, monkeypatch): monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path)); return tmp_path


def test_log_of_predictions(box, home, monkeypatch):
    with service(box, monitor=True) as c:
        r = post(c, head=JPEG | {"X-Request-Id": "flight-7"}); post(c, body=b"x", status=400); post(c, "/v1/denoise?format=jpeg", body=sample("satellite").read_bytes(), status=400)
        post(c, "/v1/compare"); infer(c, shape=[2, 8, 8, 3], datatype="UINT8", data=[9] * 384); c.post("/predict", json=dict(instances=[dict(b64=base64.b64encode(SMALL).decode())]))
        log = c.app.state.service.monitor.log.read()
        assert log["status"].tolist() == [200] * 5 and set(log["model"]) == {"box@3"} and log["request"][0] == "flight-7"       # what was answered, and nothing else
        assert (log["width"][0], log["height"][0]) == (80, 64) and log["sigma"][0] > 5 and 0 < log["ms"][0] <= float(r.headers["X-Milliseconds"])
        monkeypatch.setattr(c.app.state.service, "denoiser", lambda **_: 1 / 0); post(c, status=500)
        c.app.state.service.gate.heads.submit(int).result()   # what was handed over before is done
        assert c.app.state.service.monitor.log.read()["status"].tolist() == [200] * 5 + [500]
    monkeypatch.undo(); monkeypatch.setenv("AGRI_CAE_HOME", str(home))
    def broken(*_): raise OSError("disk full")
    with service(box, monitor=True) as c: c.app.state.service.monitor.answered = broken; post(c)


def test_monitor_page(box, home):
    made, entry = new_key("farm")
    with service(box, monitor=True, keys=entry) as c:
        denied = c.get("/monitor"); assert denied.status_code == 401 and denied.headers["WWW-Authenticate"].startswith("Basic")
        assert c.get("/monitor", auth=("anyone", "wrong")).status_code == 401
        post(c, head=JPEG | {"Authorization": f"Bearer {made}"})
        page = c.get("/monitor", auth=("anyone", made))
        assert page.status_code == 200 and "No open alert" in page.text and "box@3" in page.text and "script" not in page.headers["Content-Security-Policy"]
        assert "agri_cae_monitor_open_alerts" in c.get("/metrics", headers={"Authorization": f"Bearer {made}"}).text
    with service(box) as c: assert c.get("/monitor").status_code == 404


def test_request_ids(c):
    assert post(c, head=JPEG | {"X-Request-Id": "a.b-c_1"}).headers["X-Request-Id"] == "a.b-c_1"
    for bad in ("x" * 65, "a b", "<script>", "ä".encode()): assert len(post(c, head=JPEG | {"X-Request-Id": bad}).headers["X-Request-Id"]) == 12


def test_unexpected_errors_tell_nothing_outside(c, monkeypatch, caplog):
    monkeypatch.setattr(c.app.state.service, "denoiser", lambda **_: 1 / 0)
    r = post(c, status=500)
    assert "division" not in r.text and "division" in caplog.text and r.headers["X-Content-Type-Options"] == "nosniff"


def test_security_headers_and_cors(c, box):
    for r in (post(c), post(c, body=b"x", status=400), c.get("/"), c.get("/nowhere"), c.get("/metrics"), c.put("/v1/denoise")):
        h = r.headers; assert h["X-Content-Type-Options"] == "nosniff" and h["X-Frame-Options"] == "DENY" and "frame-ancestors 'none'" in h["Content-Security-Policy"] and h["Referrer-Policy"] == "no-referrer"
    foreign = {"Origin": "https://farm.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in c.options("/v1/denoise", headers=foreign).headers and "access-control-allow-origin" not in post(c, head=JPEG | foreign).headers
    with service(box, cors=("https://farm.example",)) as open_: assert post(open_, head=JPEG | foreign).headers["access-control-allow-origin"] == "https://farm.example"


def test_samples(c):
    assert c.get("/samples/field_camera").content == PHOTO and c.get("/samples/..%2f..%2fsetup.py").status_code == 404


def test_nothing_of_training_is_imported():
    code = "import sys, agri_cae.api.app, agri_cae.api.run; print([m for m in ('tensorflow', 'keras', 'mlflow', 'pandas', 'matplotlib', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
