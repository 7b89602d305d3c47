"What stands around every request: the log of predictions, ids, security headers, and what is not imported."
import base64
import subprocess
import sys

import pytest
from inside import JPEG, PHOTO, SMALL, infer, post, service

from agri_cae.api.keys import new_key
from agri_cae.io.images import sample

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path))
    return tmp_path


def test_log_of_predictions(box, home, monkeypatch):
    with service(box, monitor=True) as c:
        r = post(c, head=JPEG | {"X-Request-Id": "flight-7"})
        post(c, body=b"x", status=400)
        post(c, "/v1/denoise?format=jpeg", body=sample("satellite").read_bytes(), status=400)
        post(c, "/v1/compare")
        infer(c, shape=[2, 8, 8, 3], datatype="UINT8", data=[9] * 384)
        c.post("/predict", json=dict(instances=[dict(b64=base64.b64encode(SMALL).decode())]))
        log = c.app.state.worker.monitor.log.read()
        # what was answered, and nothing else
        assert log["status"].tolist() == [200] * 5
        assert set(log["model"]) == {"box@3"}
        assert log["request"][0] == "flight-7"
        assert (log["width"][0], log["height"][0]) == (80, 64)
        assert log["sigma"][0] > 5
        assert 0 < log["ms"][0] <= float(r.headers["X-Milliseconds"])
        monkeypatch.setattr(c.app.state.worker, "denoiser", lambda **_: 1 / 0)
        post(c, status=500)
        c.app.state.worker.gate.heads.submit(int).result()   # what was handed over before is done
        assert c.app.state.worker.monitor.log.read()["status"].tolist() == [200] * 5 + [500]
    monkeypatch.undo()
    monkeypatch.setenv("AGRI_CAE_HOME", str(home))
    def broken(*_): raise OSError("disk full")
    with service(box, monitor=True) as c:
        c.app.state.worker.monitor.answered = broken
        post(c)


def test_monitor_page(box, home):
    made, entry = new_key("farm")
    with service(box, monitor=True, keys=entry) as c:
        denied = c.get("/monitor")
        assert denied.status_code == 401 and denied.headers["WWW-Authenticate"].startswith("Basic")
        assert c.get("/monitor", auth=("anyone", "wrong")).status_code == 401
        post(c, head=JPEG | {"Authorization": f"Bearer {made}"})
        page = c.get("/monitor", auth=("anyone", made))
        assert page.status_code == 200
        assert "No open alert" in page.text
        assert "box@3" in page.text
        assert "script" not in page.headers["Content-Security-Policy"]
        assert "agri_cae_monitor_open_alerts" in c.get("/metrics", headers={"Authorization": f"Bearer {made}"}).text
    with service(box) as c: assert c.get("/monitor").status_code == 404


def test_request_ids(c):
    assert post(c, head=JPEG | {"X-Request-Id": "a.b-c_1"}).headers["X-Request-Id"] == "a.b-c_1"
    for bad in ("x" * 65, "a b", "<script>", "ä".encode()):
        assert len(post(c, head=JPEG | {"X-Request-Id": bad}).headers["X-Request-Id"]) == 12


def test_unexpected_errors_tell_nothing_outside(c, monkeypatch, caplog):
    monkeypatch.setattr(c.app.state.worker, "denoiser", lambda **_: 1 / 0)
    r = post(c, status=500)
    assert "division" not in r.text and "division" in caplog.text and r.headers["X-Content-Type-Options"] == "nosniff"


def test_security_headers_and_cors(c, box):
    for r in (
        post(c),
        post(c, body=b"x", status=400),
        c.get("/"),
        c.get("/nowhere"),
        c.get("/metrics"),
        c.put("/v1/denoise"),
    ):
        h = r.headers
        assert h["X-Content-Type-Options"] == "nosniff"
        assert h["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in h["Content-Security-Policy"]
        assert h["Referrer-Policy"] == "no-referrer"
    foreign = {"Origin": "https://farm.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in c.options("/v1/denoise", headers=foreign).headers
    assert "access-control-allow-origin" not in post(c, head=JPEG | foreign).headers
    with service(box, cors=("https://farm.example",)) as open_:
        assert post(open_, head=JPEG | foreign).headers["access-control-allow-origin"] == "https://farm.example"


def test_samples(c):
    assert c.get("/samples/field_camera").content == PHOTO and c.get("/samples/..%2f..%2fsetup.py").status_code == 404


def test_nothing_of_training_is_imported():
    code = """import sys, agri_cae.api.app, agri_cae.api.run
print([m for m in ('tensorflow', 'keras', 'mlflow', 'pandas', 'matplotlib', 'scipy') if m in sys.modules])"""
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "[]"
    )
