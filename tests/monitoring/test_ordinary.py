"Three simulated cameras before a service: no alert for their ordinary pictures, and the right words for a change."

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("keras")
from agri_cae.api.watch import Monitor
from agri_cae.cli.monitor import monitor_app
from agri_cae.io.colour import from_linear, to_linear
from agri_cae.io.images import Picture, from_float, read_image, sample, to_float
from agri_cae.modelfiles.card import shipped
from agri_cae.monitoring.alerts import list_alerts
from agri_cae.noise.degradations import SensorNoise
from agri_cae.noise.scenes import draw_scenes
from agri_cae.serve import Denoiser
from agri_cae.service.in_memory import denoise_bytes, encode

pytestmark = pytest.mark.skipif("fast" not in shipped(), reason="no shipped weights")
SEED = 0
SIDE, LOOK = 64, 25  # pixels; pictures from one look to the next
CAMERAS = dict(  # sample that lends pieces and colours; gain and read noise; light, how it varies; blur of the lens
    drone=dict(name="airborne", gain=(4e-4, 4e-4), read=0.3, light=1.0, varies=0.1, soft=0.0),
    field=dict(name="field_camera", gain=(1e-3, 6e-3), read=0.6, light=0.8, varies=0.15, soft=0.0),
    tower=dict(name="airborne", gain=(4e-3, 4e-3), read=0.8, light=0.4, varies=0.15, soft=0.5),
)
CHANGES = {
    "noise risen": dict(noise=2),
    "darker": dict(light=0.3),
    "blurred": dict(blur=1.5),
}


class Camera:
    "Takes pictures of drawn scenes and of pieces of a photo; the light changes slowly from one to the next."

    def __init__(self, seed, name, gain, read, light, varies, soft):
        photo = from_float(to_float(read_image(sample(name)).data), np.uint8)
        self.scenes = [*draw_scenes(16, [photo], 3 * SIDE, seed), *[photo] * 16]
        self.rng, self.sky = np.random.default_rng(seed), 0.0
        self.light, self.varies, self.soft = light, varies, soft
        self.sensor = {n: SensorNoise(tuple(n**2 * g for g in gain), n * read, seed=seed) for n in (1, 2)}

    def piece(self):
        scene = self.scenes[self.rng.integers(len(self.scenes))]
        y, x = (self.rng.integers(n - 2 * SIDE) for n in scene.shape[:2])
        return cv2.resize(to_float(scene[y:, x:][: 2 * SIDE, : 2 * SIDE]), (SIDE, SIDE), interpolation=cv2.INTER_AREA)

    def sun(self):
        self.sky = 0.9 * self.sky + 0.19**0.5 * self.rng.standard_normal()
        return self.light * np.exp(self.varies * self.sky)

    def shoot(self, count, noise=1, light=1.0, blur=0.0):
        "PNG files"
        x = [cv2.GaussianBlur(self.piece(), (0, 0), max(0.05, np.hypot(blur, self.soft))) for _ in range(count)]
        x = np.stack([from_linear(to_linear(p) * light * self.sun()) for p in x]).astype(np.float32)
        noisy = np.clip(np.asarray(self.sensor[noise](x)), 0, 1)
        return [encode(Picture(from_float(p, np.uint8)), "png") for p in noisy]


def watch(monitor, denoiser, files):
    "What a service does with files, but for HTTP, and a look; gives the kinds of its alerts"
    for f in files:
        a = denoise_bytes(denoiser, f)
        monitor.answered("", a.denoiser, a.found, 20.0, a.after.data)
    monitor.watcher.once()
    return [a.kind for a in list_alerts(monitor.log)]


@pytest.mark.parametrize("name", CAMERAS)
def test_ordinary_pictures_raise_no_alert_and_changes_the_right_one(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AGRI_CAE_HOME", str(tmp_path))
    camera, denoiser = Camera(SEED, **CAMERAS[name]), Denoiser.load("fast", threads=1)
    monitor, worker = Monitor(["fast"]), Monitor(["fast"])  # two processes of one service
    for _ in range(200 // LOOK):  # against the profile of the training
        assert watch(monitor, denoiser, camera.shoot(LOOK)) == []
    assert monitor.watcher.look.without and worker.watcher.once().without
    done = CliRunner().invoke(monitor_app, ["learn", "--first", "200"])
    assert done.exit_code == 0 and "200 pictures" in done.output
    for m in (monitor, worker):  # taken up without a restart, and without new pictures
        assert m.watcher.once().without == () and not m.watcher.profiles["fast"].training
    for _ in range(250 // LOOK):
        assert watch(monitor, denoiser, camera.shoot(LOOK)) == []
    for kind, change in CHANGES.items():
        copy = tmp_path / f"{kind}.db"
        monitor.log.run("VACUUM INTO ?", (str(copy),))
        monkeypatch.setenv("AGRI_CAE_MONITOR_PATH", str(copy))
        seen = (watch(Monitor(["fast"]), denoiser, camera.shoot(LOOK, **change)) for _ in range(200 // LOOK))
        assert next(filter(None, seen), None) == [kind]
