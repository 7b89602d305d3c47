"Pictures in, pictures out: the routes below /v1 from inside the process, what they refuse, and hostile files."
import base64
from urllib.parse import quote

import hostile
import numpy as np
import psutil
import pytest
from fastapi.testclient import TestClient
from inside import JPEG, PHOTO, SMALL, post, service
from tiny_model import box_model

from agri_cae.api.app import create_app
from agri_cae.api.settings import ApiSettings
from agri_cae.api.uploads import accepted
from agri_cae.config import ServeConfig
from agri_cae.io.images import CODECS, Picture, provenance_of, read_image, sample
from agri_cae.io.tags import GEO, GeoTag
from agri_cae.modelfiles.card import sha256
from agri_cae.serve import Denoiser
from agri_cae.service.in_memory import denoise_bytes, encode, with_settings

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")


def test_the_answer_is_what_the_library_makes(c, box):
    want = denoise_bytes(Denoiser.load(box), PHOTO)
    r = post(c, body=PHOTO)
    assert r.content == want.file() and r.headers["Content-Type"] == "image/jpeg"
    assert r.headers["X-Model-Version"] == "box@3"
    assert r.headers["X-Strength"] == "1"
    assert float(r.headers["X-Milliseconds"]) > 0
    assert float(r.headers["X-Noise-Sigma"]) == pytest.approx(want.sigma, abs=.006)
    assert c.post("/v1/denoise", files={"file": ("x.jpg", PHOTO, "image/jpeg")}).content == r.content
    assert post(c, body=PHOTO, head={"Content-Type": "application/octet-stream"}).content == r.content


@pytest.mark.parametrize("name", ["field_camera", "airborne", "satellite"])
def test_depth_and_metadata_survive(c, name):
    a, b = (read_image(x) for x in (sample(name), post(c, body=sample(name).read_bytes()).content))
    assert (b.format, b.data.dtype, b.data.shape) == (a.format, a.data.dtype, a.data.shape)
    assert (b.meta.icc, b.meta.dpi) == (a.meta.icc, a.meta.dpi)
    if name != "field_camera":
        places = GEO & set(a.meta.tags) - {GeoTag.GDAL_METADATA}   # its statistics are those of other pixels now
        assert places and all(b.meta.tags[k] == a.meta.tags[k] for k in places)
    assert provenance_of(b).startswith("agri_cae ") and not np.array_equal(a.data, b.data)


@pytest.mark.parametrize(
    "query, accept, want",
    [
        ("", None, "png"),
        ("?format=webp", "image/jpeg", "webp"),
        ("?format=tif", None, "tiff"),
        ("?format=jpg", None, "jpeg"),
        ("", "image/jpeg", "jpeg"),
        ("", "text/html, image/webp;q=0.7, image/tiff;q=.9, */*;q=0.8", "tiff"),
        ("", "text/html,*/*", "png"),
        ("", "application/json", "png"),
    ],
)
def test_format(c, query, accept, want):
    r = post(c, f"/v1/denoise{query}", head=JPEG | ({"Accept": accept} if accept else {}))
    assert r.headers["Content-Type"] == f"image/{want}" and read_image(r.content).format == want


def test_accept_of_any_kind():
    assert accepted("image/png;q=0, image/webp;q=nonsense, image/jpeg;level=1") == "jpeg"
    assert accepted("") is accepted(";;,q") is None


def test_strength_sigma_tile_range(c, box):
    d, a = Denoiser.load(box), read_image(SMALL)
    auto = with_settings(d, strength="auto")
    def pixels(q, **kw): return read_image(post(c, f"/v1/denoise?{q}", **kw).content).data
    assert np.array_equal(pixels("strength=0"), a.data)
    assert np.array_equal(pixels("strength=0.5"), with_settings(d, strength=.5)(a.data))
    assert (
        post(c, "/v1/denoise?strength=auto").headers["X-Strength"]
        == f"{auto.strength_for(auto.diagnose(a)):g}"
    )
    told = post(c, "/v1/denoise?sigma=2")
    assert told.headers["X-Strength"] == "0.5" and told.headers["X-Noise-Sigma"] == "2.00"
    sat = sample("satellite").read_bytes()
    assert np.array_equal(
        pixels("range=5000,10000&tile=256&strength=0.5", body=sat),
        with_settings(d, strength=0.5, value_range=(5000, 10000), tile=256)(read_image(sat).data),
    )


def test_a_second_pass_wants_force(c):
    once = post(c).content
    assert "was denoised before (agri_cae" in post(c, body=once, status=409).json()["detail"]
    post(c, "/v1/denoise?force=true", body=once)


# what is refused

@pytest.mark.parametrize(
    "route, body, head, status, says",
    [
        ("/v1/denoise", b"", JPEG, 400, "picture: has zero bytes"),
        ("/v1/denoise", b"\0\0\0\x18ftypheic" + bytes(99), JPEG, 400, "is a HEIC"),
        ("/v1/denoise", PHOTO[:9000], JPEG, 400, "truncated"),
        ("/v1/denoise?strength=1.5", SMALL, JPEG, 400, "strength: "),
        ("/v1/denoise?strength=nan", SMALL, JPEG, 400, "strength: "),
        ("/v1/denoise?tile=201", SMALL, JPEG, 400, "tile: "),
        ("/v1/denoise?model=../../secret", SMALL, JPEG, 400, "'box'"),
        ("/v1/denoise?range=9,1", SMALL, JPEG, 400, "rising"),
        ("/v1/denoise?range=nan,inf", SMALL, JPEG, 400, "rising"),
        ("/v1/denoise?format=gif", SMALL, JPEG, 400, "format: "),
        ("/v1/denoise?format=jpeg", sample("satellite").read_bytes(), JPEG, 400, "JPEG cannot hold uint16"),
        ("/v1/denoise", SMALL, {}, 415, "Content-Type"),
        ("/v1/denoise", SMALL, {"Content-Type": "application/x-www-form-urlencoded"}, 415, "Content-Type"),
        ("/v1/denoise", b"--x\r\n", {"Content-Type": "multipart/form-data"}, 400, "form"),
        ("/v1/denoise", b"junk", {"Content-Type": "multipart/form-data; boundary=x"}, 400, "form"),
        (
            "/v1/denoise",
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n',
            {"Content-Type": "multipart/form-data; boundary=x"},
            400,
            "holds no file",
        ),
        ("/v1/estimate", encode(Picture(np.zeros((5, 5, 3), np.uint8)), "png"), JPEG, 400, "too small"),
        ("/v1/compare?residual=-1", SMALL, JPEG, 400, "residual: "),
    ],
)
def test_bad_requests(c, route, body, head, status, says):
    assert says in post(c, route, body, status, head).json()["detail"]


def test_too_many_bytes_are_counted_as_they_come(box):
    with service(box, upload_bytes=10_000) as c:
        read = []
        def stream():
            for _ in range(1000):
                read.append(1)
                yield bytes(1000)
        for body in (bytes(10_001), stream()):
            assert "10,000 bytes" in post(c, body=body, status=413).json()["detail"]
        assert post(c, head=JPEG | {"Content-Length": "99999999"}, body=b"x", status=413)
        assert c.post("/v1/denoise", files={"file": ("x.jpg", bytes(11_000))}).status_code == 413
        assert (
            c.post("/predict", content=bytes(11_000), headers={"Content-Type": "application/json"}).status_code == 413
        )
        post(c, body=encode(read_image(SMALL).with_data(np.full((64, 80, 3), 99, np.uint8)), "png"))


def test_too_many_pixels_are_seen_before_any_is_decoded(box, monkeypatch):
    def never(*_): raise AssertionError("decoded")
    with service(box, upload_pixels=64 * 80 - 1) as c:
        monkeypatch.setitem(CODECS, "png", CODECS["png"]._replace(decode=never))
        for route in ("/v1/denoise", "/v1/estimate", "/v1/compare"):
            assert "5,119 are taken" in post(c, route, status=422).json()["detail"]
        b64 = base64.b64encode(SMALL).decode()
        assert c.post("/predict", json=dict(instances=[dict(b64=b64)])).status_code == 422
        assert (
            c.post(
                "/v2/models/box/infer",
                json=dict(inputs=[dict(name="noisy", shape=[1], datatype="BYTES", data=[b64])]),
            ).status_code
            == 422
        )
        assert (
            c.post(
                "/v2/models/box/infer",
                json=dict(inputs=[dict(name="noisy", shape=[1, 80, 64, 1], datatype="UINT8", data=[0])]),
            ).status_code
            == 422
        )


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
    assert (r["width"], r["height"], r["format"], r["dtype"]) == (640, 427, "jpeg", "uint8")
    assert 0 < r["sigma"] < 5
    assert 0 < r["strength"] < 1


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
        assert c.get("/v1/models").json()[0]["name"] == "fast"
        assert post(c, "/v1/denoise?model=base").headers["X-Model-Version"].startswith("base@")


def test_names_of_models():
    named = ApiSettings(
        serve=ServeConfig(model="models:/agri-cae@champion"), models=("fast", "a/b/potato.onnx", "models:/agri-cae/7")
    ).named
    assert list(named) == ["champion", "fast", "potato", "7"]


def test_a_model_called_like_a_shipped_one_is_the_one_that_answers(tmp_path):
    "What `train` writes is called by its preset"
    mine = box_model(tmp_path / "mine", name="fast")
    settings = ApiSettings(serve=ServeConfig(model=str(mine)), monitor=False)
    name = f"fast ({mine.parent.as_posix()})"
    assert list(settings.named)[:1] == [name] and {"fast", "base"} <= {*settings.named}
    with TestClient(create_app(settings)) as c:
        models = {m["name"]: m for m in c.get("/v1/models").json()}
        assert models[name]["default"] and models[name]["digest"] == sha256(mine)[:12] != models["fast"]["digest"]
        assert post(c, "/v1/denoise").headers["X-Model-Digest"] == models[name]["digest"]
        assert post(c, "/v1/denoise?model=fast").headers["X-Model-Digest"] == models["fast"]["digest"]
        assert c.get(f"/v2/models/{name}").json()["name"] == name
        assert c.get(f"/v2/models/{quote(name, safe='')}/ready").json()["ready"] is True


def test_metrics(box):
    with service(box) as c:
        def value(name):
            return sum(
                float(line.rsplit(" ", 1)[1]) for line in c.get("/metrics").text.splitlines() if line.startswith(name)
            )

        names = (
            'agri_cae_requests_total{method="POST",route="/v1/denoise",status="200"}',
            'agri_cae_requests_total{method="POST",route="/v1/denoise",status="400"}',
            "agri_cae_predictions_total",
            "agri_cae_pixels_total",
        )
        before = [value(n) for n in names]
        post(c)
        post(c)
        post(c, body=b"x", status=400)
        c.get("/nowhere/%00/x")
        assert [value(n) - b for n, b in zip(names, before, strict=True)] == [2, 1, 2, 2 * 64 * 80]
        # the request for the metrics itself
        assert value("agri_cae_requests_inside") == 1 and "nowhere" not in c.get("/metrics").text
