"Who is let in and when: keys, rates, queue, deadline, and clients that leave."
import asyncio
import logging
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from inside import JPEG, SMALL, post, service

from agri_cae.api import keys as api_keys
from agri_cae.api.app import create_app
from agri_cae.api.gate import LISTENS, Gate, Left
from agri_cae.api.keys import new_key
from agri_cae.api.problems import Problem
from agri_cae.api.settings import ApiSettings
from agri_cae.config import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")


def test_keys(box, tmp_path, caplog, monkeypatch):
    (good, entry), (other, second), (gone, third) = new_key("drone"), new_key("lab"), new_key("old")
    f = tmp_path/"keys"
    f.write_text(f"# those of 2026\n{second}\n{third}:revoked\n")
    caplog.set_level(logging.DEBUG)
    with service(box, keys=entry, keys_file=f) as c:
        def ask(key=None, head="Authorization", route="/v1/models"):
            return c.get(
                route, headers={head: f"Bearer {key}" if head == "Authorization" else key} if key else {}
            ).status_code

        assert [ask(k) for k in (good, other, None, "nonsense", good[:-1], good + "x", gone)] == [
            200,
            200,
            401,
            401,
            401,
            401,
            403,
        ]
        assert ask(good, "X-API-Key") == 200 and ask("ключ".encode(), "X-API-Key") == 401
        assert [
            ask(route=r) for r in ("/metrics", "/v2/models/box", "/healthz", "/readyz", "/", "/v2/health/ready")
        ] == [401, 401, 200, 200, 200, 200]
        for route in ("/v1/denoise", "/v1/estimate", "/v1/compare"):
            assert post(c, route, status=401).headers["WWW-Authenticate"] == "Bearer"
        for route in ("/predict", "/v2/models/box/infer"):
            assert c.post(route, json={}).status_code == 401
        post(c, head=JPEG | {"Authorization": f"Bearer {good}"})
        compared = []
        monkeypatch.setattr(api_keys.hmac, "compare_digest", lambda a, b: compared.append(a) or a == b)
        for k in (good, other, "nonsense", None): ask(k)
        assert len(compared) == 4 * 3                                # the same work for right, wrong and none
        f.write_text(f"{second}:revoked\n   \n")
        assert (ask(other), ask(gone), ask(good)) == (403, 401, 200)
        f.write_text("cae_a-key-instead-of-its-hash")
        assert (ask(other), ask(good)) == (401, 401)   # a file that is wrong lets nobody in
        f.write_text(second)
        assert ask(other) == 200
        f.unlink()
        assert ask(other) == 401
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
    with service(box, rate=1) as c:
        assert [c.get("/v1/models").status_code for _ in range(2)] == [200, 429]


def test_bucket_fills_again(monkeypatch):
    now = [0.]
    monkeypatch.setattr(api_keys.time, "monotonic", lambda: now[0])
    r = api_keys.Rates(60)
    [r.take("a") for _ in range(60)]
    with pytest.raises(Problem): r.take("a")
    now[0] = 1.
    r.take("a")
    now[0] = 62.
    r.take("b")
    assert [name for name, in r.db.execute("SELECT name FROM buckets")] == ["b"]  # a full one is as good as none


def test_processes_share_the_buckets(tmp_path):
    one, two = (api_keys.Rates(3, tmp_path / "rates.db") for _ in range(2))
    for r in (one, two, one): r.take("a")
    for r in (one, two):
        with pytest.raises(Problem): r.take("a")
        r.take("b")


def test_a_key_of_its_own_for_the_metrics(box):
    (user, entry), (prometheus, own) = new_key("user"), new_key("prometheus")
    def ask(c, path, key): return c.get(path, headers={"X-API-Key": key}).status_code
    with service(box, keys=entry, metrics_key=own) as c:
        assert [ask(c, "/metrics", k) for k in (prometheus, user, "")] == [200, 401, 401]
        assert [ask(c, "/v1/models", k) for k in (prometheus, user)] == [401, 200]
    with service(box, keys=entry) as c: assert ask(c, "/metrics", user) == 200
    with service(box, metrics_key=own) as c: assert [ask(c, p, "") for p in ("/metrics", "/v1/models")] == [401, 200]
    with pytest.raises(ConfigError, match="AGRI_CAE_METRICS_KEY"): api_keys.Keys(ApiSettings(metrics_key="abc"))


# queue, deadline, and clients that leave

class Slow:
    "An engine that stands still until it is let go"
    def __init__(self, c):
        self.d = c.app.state.worker.models["box"]
        self.engine, self.go, self.entered = self.d.engine, threading.Event(), threading.Semaphore(0)
    def __call__(self, x):
        self.entered.release()
        assert self.go.wait(60)
        return self.engine(x)
    def __enter__(self):
        self.d.engine = self
        return self
    def __exit__(self, *_):
        self.go.set()
        self.d.engine = self.engine


@contextmanager
def waiting(c, n):
    "n requests inside"
    with Slow(c) as slow:
        got = []
        threads = [
            threading.Thread(target=lambda: got.append(c.post("/v1/denoise", content=SMALL, headers=JPEG)))
            for _ in range(n)
        ]
        for t in threads: t.start()
        for _ in range(n): assert slow.entered.acquire(timeout=60)
        yield slow
        slow.go.set()
        for t in threads: t.join(60)
        assert [r.status_code for r in got] == [200] * n


def test_full_queue(box):
    with service(box, queue_requests=2, at_once=2) as c, waiting(c, 2):
        r = post(c, status=503)
        assert int(r.headers["Retry-After"]) > 0 and "2 requests are waiting" in r.json()["detail"]
        # the event loop is free
        assert c.get("/healthz").status_code == c.get("/readyz").status_code == c.get("/v1/models").status_code == 200
    with service(box, queue_pixels=64 * 80 + 64 * 80 // 2) as c:
        with waiting(c, 1):
            assert "5,120 pixels are waiting" in post(c, status=503).json()["detail"]
        # and free again
        post(c)
        assert c.app.state.worker.gate.pixels == c.app.state.worker.gate.requests == 0
    with service(box, queue_pixels=10) as c:
        post(c)                                                        # one alone is let in


def test_who_cannot_be_done_in_time_is_refused_at_once(box):
    with service(box, deadline=10) as c:
        gate = c.app.state.worker.gate
        post(c)
        assert gate.pace > 0   # learnt
        with waiting(c, 1):
            gate.pace = 9 / (64 * 80)
            r = post(c, status=503)
            assert "9 s until its turn" in r.json()["detail"] and r.headers["Retry-After"] == "4"
            gate.pace = 0.
        post(c)


def test_deadline(box):
    with service(box, deadline=.3) as c:
        with Slow(c): assert "within 0.3 s" in post(c, status=504).json()["detail"]
        for _ in range(200):
            if not c.app.state.worker.gate.pixels: break
            time.sleep(.05)
        gate = c.app.state.worker.gate
        assert gate.pixels == gate.requests == 0
        gate.cfg = gate.cfg.model_copy(update=dict(deadline=60))
        post(c)


def test_draining(box):
    with service(box) as c:
        gate = c.app.state.worker.gate
        c.portal.call(lambda: _now(gate.drain))
        assert c.get("/readyz").status_code == 200   # while it still listens, none is refused
        time.sleep(LISTENS + .1)
        for r in (c.get("/readyz"), post(c, status=503)):
            assert r.status_code == 503 and r.headers["Retry-After"]
        assert c.get("/v2/health/ready").json() == {"error": "Not ready."} and c.get("/healthz").status_code == 200

async def _now(f): f()


def test_drain_cuts_the_deadline(box):
    with service(box, grace=1.3, deadline=100) as c, Slow(c) as slow:
        got = []
        t = threading.Thread(target=lambda: got.append(c.post("/v1/denoise", content=SMALL, headers=JPEG)))
        t.start()
        assert slow.entered.acquire(timeout=60)
        c.portal.call(lambda: _now(c.app.state.worker.gate.drain))
        t.join(60)
        assert got[0].status_code == 503 and "stopping" in got[0].json()["detail"]


def test_work_ends_when_the_client_leaves():
    async def main():
        gate, started, ended = Gate(ApiSettings(at_once=1)), threading.Event(), []
        async def receive():
            await asyncio.to_thread(started.wait)
            return {"type": "http.disconnect"}
        def work(progress):
            started.set()
            try:
                while True:
                    progress(1, 9)
                    time.sleep(.01)
            except Left:
                ended.append(1)
                raise
        with pytest.raises(Problem) as e:
            async with gate.enter():
                await gate.run(SimpleNamespace(receive=receive), 10, work)
        gate.work.shutdown(wait=True)
        await asyncio.sleep(0)
        assert e.value.status == 499 and ended == [1] and gate.pixels == gate.requests == 0
    asyncio.run(main())
