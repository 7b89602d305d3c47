"Engines: ONNX Runtime, OpenVINO and Keras agree, count their threads, and refuse files unlike their card."

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tiny_model import block_model, box_model, write_card

from agri_cae.config import ConfigError, ModelError
from agri_cae.engines import runtimes
from agri_cae.engines.threads import cores
from agri_cae.io.images import read_image, sample, to_float
from agri_cae.modelfiles import card as card_module
from agri_cae.modelfiles.card import Card, shipped
from agri_cae.serve import Denoiser

needs_weights = pytest.mark.skipif("fast" not in shipped(), reason="no shipped weights")


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    return box_model(tmp_path_factory.mktemp("model"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


# they agree


def test_openvino_equals_onnx(tmp_path, box):
    for path in (box, block_model(tmp_path)):
        loaded = [Denoiser.load(path, engine=e, tile=64, overlap=8) for e in ("onnx", "openvino")]
        a, b = (d(noise(150, 77, 3)) for d in loaded)
        assert np.abs(a - b).max() <= 1e-5


@needs_weights
@pytest.mark.parametrize("name", shipped())
def test_openvino_equals_onnx_on_shipped_models(name):
    x = to_float(read_image(sample("field_camera")).data)[:200, :301]
    assert np.abs(Denoiser.load(name)(x) - Denoiser.load(name, engine="openvino")(x)).max() <= 1e-4


@needs_weights
def test_onnx_equals_keras():
    pytest.importorskip("keras")
    x = to_float(read_image(sample("field_camera")).data)[:200, :301]
    assert np.abs(Denoiser.load("fast")(x) - Denoiser.load("fast", engine="keras")(x)).max() <= 1e-4


# OpenVINO


def test_missing_openvino_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r'pip install "agri-cae\[openvino\]"'):
        Denoiser.load(box_model(tmp_path), engine="openvino")


class Core:
    "An OpenVINO whose CPU has what a test says; remembers the hints"

    has, hints = ("FP32",), {}

    def get_property(self, device, name):
        return self.has

    def compile_model(self, path, device, hints):
        self.hints.update(hints)
        return self.real.compile_model(path, device, hints | {"INFERENCE_PRECISION_HINT": "f32"})


@pytest.fixture
def told(monkeypatch):
    "What OpenVINO is told"
    import openvino

    monkeypatch.setattr(Core, "real", openvino.Core(), raising=False)
    monkeypatch.setattr(Core, "hints", {})
    monkeypatch.setattr(openvino, "Core", Core)
    return Core.hints


@pytest.mark.parametrize("precision, hint", [("float32", "f32"), ("bfloat16", "bf16")])
def test_openvino_gets_the_precision(tmp_path, monkeypatch, told, precision, hint):
    monkeypatch.setattr(Core, "has", ("FP32", "BF16"))
    Denoiser.load(box_model(tmp_path), engine="openvino", precision=precision, threads=1)
    assert told["INFERENCE_PRECISION_HINT"] == hint and told["INFERENCE_NUM_THREADS"] == 1


def test_a_cpu_without_bfloat16_says_so(tmp_path, told):
    with pytest.raises(ConfigError, match=r"bfloat16.*float32"):
        Denoiser.load(box_model(tmp_path), engine="openvino", precision="bfloat16", threads=1)
    assert not told


def test_bfloat16_takes_openvino(box):
    for engine in (None, "onnx", "keras"):
        with pytest.raises(ConfigError, match="openvino"):
            Denoiser.load(box, engine=engine, precision="bfloat16")


# threads


@pytest.fixture
def sessions(monkeypatch):
    "The options of each ONNX Runtime session that is made"
    import onnxruntime

    real, seen = onnxruntime.InferenceSession, []

    def session(path, opts, **kw):
        seen.append(opts)
        return real(path, opts, **kw)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return seen


def test_threads(tmp_path, monkeypatch, sessions):
    monkeypatch.setattr(runtimes, "cores", lambda: 3)
    path = box_model(tmp_path)
    for n in (0, 5):
        Denoiser.load(path, threads=n)
    assert [o.intra_op_num_threads for o in sessions] == [3, 5]
    assert {o.get_session_config_entry("session.intra_op.allow_spinning") for o in sessions} == {"0"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_counts():
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, mine)


def test_loaded_once_and_reloaded_when_replaced(tmp_path, sessions):
    path = box_model(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: Denoiser.load(path, strength=i / 8), range(8)))
    assert len(sessions) == 1
    x = noise(30, 30, 3)
    before = Denoiser.load(path)(x)
    box_model(tmp_path, side=5)
    assert np.abs(Denoiser.load(path)(x) - before).max() > 0.01 and len(sessions) == 2


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_shared_between_threads(box, engine):
    d = Denoiser.load(box, tile=64, overlap=8, threads=1, engine=engine)
    xs = [noise(100 + 13 * i, 90, 3, seed=i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(d, xs))
    assert all((a == d(x)).all() for a, x in zip(together, xs, strict=True))


# trust in weights


def test_a_changed_file_is_refused(tmp_path):
    path = box_model(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="SHA-256"):
        Denoiser.load(path)


@pytest.mark.parametrize("engine, name", [("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")])
def test_a_file_that_is_no_model_is_refused(tmp_path, engine, name):
    path = box_model(tmp_path)
    card = Card.model_validate_json(path.with_suffix(".json").read_text())
    path.write_bytes(b"no model")
    write_card(path, card)
    with pytest.raises(ModelError, match=name):
        Denoiser.load(path, engine=engine)


def test_no_model_without_its_card(tmp_path):
    path = box_model(tmp_path)
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(ModelError, match="card"):
        Denoiser.load(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match="card"):
        Denoiser.load(path)


def test_wrong_names_and_settings(tmp_path, box):
    with pytest.raises(ModelError, match="shipped name"):
        Denoiser.load("fats")
    for missing in (tmp_path, tmp_path / "gone.onnx"):
        with pytest.raises(ModelError):
            Denoiser.load(missing)
    with pytest.raises(ConfigError, match="strength"):
        Denoiser.load(box, strength=2)
    with pytest.raises(ConfigError, match="engine"):
        Denoiser.load(box, engine="torch")


def test_nothing_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(card_module, "files", lambda package: tmp_path)
    assert shipped() == []
    with pytest.raises(ModelError, match="fast"):
        Denoiser.load("fast")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_model_with_other_bands_than_its_card(tmp_path, engine):
    path = box_model(tmp_path, channels=1)
    card = Card.model_validate_json(path.with_suffix(".json").read_text())
    write_card(path, card.model_copy(update={"channels": 3}))
    with pytest.raises(ModelError, match="shape"):
        Denoiser.load(path, engine=engine)


@needs_weights
def test_what_is_grey_stays_grey():
    "A grey sheet on a coloured field, clean and noisy; the field keeps its colours"
    field = read_image(sample("airborne")).data.copy()
    field[40:140, 40:200] = field[40:140, 40:200].mean(2, keepdims=True)
    inside, d = np.s_[60:120, 60:180], Denoiser.load("fast")
    for sigma in (0, 15):
        x = np.clip(np.rint(np.random.default_rng(0).normal(field, sigma)), 0, 255).astype(np.uint8)
        y = d(d.diagnose(x)).astype(int)
        assert np.percentile(np.ptp(y[inside], 2), 95) <= 1
        away = np.ptp(y[160:], 2).mean()
        assert away > 0.8 * np.ptp(field[160:].astype(int), 2).mean()
