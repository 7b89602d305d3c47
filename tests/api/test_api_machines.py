"The routes that machines expect: Open Inference Protocol, Vertex AI, and the description of all routes."
import base64

import numpy as np
import pytest
from inside import SMALL, infer, service

from agri_cae.serve import Denoiser
from agri_cae.service.in_memory import denoise_bytes, with_settings

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")


@pytest.mark.parametrize("datatype, dtype", [("UINT8", np.uint8), ("UINT16", np.uint16), ("FP32", np.float32)])
def test_infer_arrays(c, box, datatype, dtype):
    x = np.random.default_rng(0).integers(0, 255, (2, 16, 24, 3)).astype(dtype) / (255 if dtype == np.float32 else 1)
    x = x.astype(dtype)
    flat, nested = (infer(c, shape=list(x.shape), datatype=datatype, data=d) for d in (x.ravel().tolist(), x.tolist()))
    y = np.array(flat["outputs"][0]["data"], dtype).reshape(flat["outputs"][0]["shape"])
    assert flat == nested
    assert flat["model_version"] == "3"
    assert np.allclose(y, np.stack([Denoiser.load(box)(i) for i in x]), atol=1e-6)


def test_infer_files_and_predict(c, box):
    b64 = base64.b64encode(SMALL).decode()
    want = denoise_bytes(with_settings(Denoiser.load(box), strength=.5), SMALL).file()
    out = infer(c, shape=[2], datatype="BYTES", data=[b64] * 2, parameters=dict(strength=.5))["outputs"][0]
    assert out["shape"] == [2] and [base64.b64decode(o) for o in out["data"]] == [want] * 2
    got = c.post(
        "/predict",
        json=dict(instances=[dict(b64=b64), dict(image=dict(b64=b64))], parameters=dict(strength=0.5, model="box")),
    ).json()["predictions"]
    assert [base64.b64decode(p["b64"]) for p in got] == [want] * 2
    assert got[0]["model"] == "box@3"
    assert got[0]["strength"] == .5
    assert got[0]["sigma"] > 5
    assert c.post("/predict", json=dict(instances=[])).json() == {"predictions": []}


@pytest.mark.parametrize(
    "tensor, status",
    [
        (dict(shape=[1, 2, 2, 3], datatype="UINT8", data=[300] * 12), 400),
        (dict(shape=[1, 2, 2, 3], datatype="UINT8", data=[1.5] * 12), 400),
        (dict(shape=[1, 2, 2, 3], datatype="FP32", data=["a"] * 12), 400),
        (dict(shape=[1, 2, 2, 3], datatype="UINT8", data=[1] * 11), 400),
        (dict(shape=[2, 2, 3], datatype="UINT8", data=[1] * 12), 400),
        (dict(shape=[1, 2, 0, 3], datatype="UINT8", data=[]), 400),
        (dict(shape=[1, 2, 2, 3], datatype="INT4", data=[1] * 12), 400),
        (dict(shape=[1, 1, 2, 3], datatype="FP32", data=[[1, 2], [3]]), 400),
        (dict(shape=[1, 1, 1, 3], datatype="FP32", data=[1e300, 1, 1]), 400),
        (dict(shape=[1, 1, 1, 3], datatype="FP32", data=[10**400, 1, 1]), 400),
        (dict(shape=[1], datatype="BYTES", data=["?"]), 400),
        (dict(shape=[1], datatype="BYTES", data=[7]), 400),
        (dict(shape=[2], datatype="BYTES", data=[""]), 400),
        (dict(model="nix", shape=[1, 1, 1, 3], datatype="UINT8", data=[1] * 3), 404),
        (dict(shape=[-1, 1, 1, 3], datatype="UINT8", data=[1] * 3), 400),
    ],
)
def test_infer_refuses(c, tensor, status): infer(c, status, **tensor)


def test_json_of_any_kind(c):
    for body in (b"", b"[", b"[" * 100_000, b"null", b'{"inputs": NaN}', b"\xff\xfe", b'{"instances": [{"b64": 1}]}'):
        for route in ("/v2/models/box/infer", "/predict"):
            assert c.post(route, content=body, headers={"Content-Type": "application/json"}).status_code == 400, (
                route,
                body[:20],
            )
    assert c.post("/predict", content=b"{}").status_code == 415
    assert c.post("/predict", json=dict(instances=[], parameters=dict(model="nix", x=1))).status_code == 400


def test_v2_metadata(c):
    assert c.get("/v2/health/live").json() == {"live": True}
    assert c.get("/v2/health/ready").json() == {"ready": True}
    assert c.get("/v2").json()["name"] == "agri_cae"
    assert c.get("/v2/models/box").json()["inputs"] == [dict(name="noisy", datatype="FP32", shape=[-1, -1, -1, 3])]
    assert c.get("/v2/models/box/ready").json()["ready"]
    assert c.get("/v2/models/nix").status_code == 404 and "box" in c.get("/v2/models/nix").json()["error"]


def test_vertex_names_the_routes(box, monkeypatch):
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1:predict")
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/alive")
    with service(box) as c:
        assert (
            c.get("/alive").status_code
            == c.post("/v1/endpoints/1:predict", json=dict(instances=[])).status_code
            == 200
        )


def test_examples_of_the_description_work(c):
    spec = c.get("/openapi.json").json()
    done = 0
    for path, ops in spec["paths"].items():
        for schema in [
            m["schema"]
            for op in ops.values()
            for m in op.get("requestBody", {}).get("content", {}).values()
            if "$ref" in m["schema"]
        ]:
            example = spec["components"]["schemas"][schema["$ref"].rsplit("/")[-1]]["example"]
            done += 1
            assert c.post(path.replace("{name}", "box"), json=example).status_code == 200, path
    assert done == 2
    described = {ref for op in str(spec).split("#/components/schemas/")[1:] for ref in [op.split("'")[0]]}
    assert described <= set(spec["components"]["schemas"])
    assert all("curl" in op["description"] for p, ops in spec["paths"].items() for m, op in ops.items() if m == "post")
