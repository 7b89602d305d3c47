"Serving: tiles, data types, bands, levels, trust in weights, memory, threads, and what is imported."
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tiny_model import block_model, box_model, write_card

from agri_cae import config, serve
from agri_cae.config import ConfigError, ImageError, ModelError, OutputError, ServeConfig
from agri_cae.engines import runtimes as engines
from agri_cae.io.images import SAMPLES, Picture, from_float, provenance_of, read_image, sample, to_float, write_image
from agri_cae.measures.metrics import psnr
from agri_cae.modelfiles.card import Card, shipped
from agri_cae.noise.awgn import awgn
from agri_cae.noise.estimate import sigma_errors
from agri_cae.serve import DenoisedBefore, Denoiser, denoise_file

SHARED = Path(__file__).parents[2]/"shared/data"
SHIPPED = "fast" in shipped()
needs_weights = pytest.mark.skipif(not SHIPPED, reason="no shipped weights")


@pytest.fixture(scope="module")
def box(tmp_path_factory): return box_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def block(tmp_path_factory): return block_model(tmp_path_factory.mktemp("model"))


def noise(*shape, dtype=np.float32, seed=0):
    x = np.random.default_rng(seed).random(shape, np.float32)
    return x if dtype == np.float32 else (x * np.iinfo(dtype).max).astype(dtype)


# tiles

@pytest.mark.parametrize("size", [(200, 333), (64, 65), (129, 512), (1000, 71)])
@pytest.mark.parametrize("tile", [64, 72, 128])
def test_tiled_equals_whole(box, block, size, tile):
    x = noise(*size, 3)
    for path in (box, block):
        whole, tiled = (Denoiser.load(path, tile=t, overlap=8)(x) for t in (2048, tile))
        assert np.abs(whole - tiled).max() <= 1e-6


def test_tiles_would_show_without_margin(box):
    "The comparison above can fail: a card that claims less than the truth gives seams."
    x, d = noise(192, 192, 3), Denoiser.load(box, tile=64, overlap=0)
    blind = Denoiser(d.engine, d.card.model_copy(update={"receptive_field": 0}), d.cfg)
    assert np.abs(blind(x) - d(x)).max() > 0.01


def test_overlap_is_never_less_than_half_the_receptive_field(box):
    d = Denoiser.load(box)
    wide = Denoiser(d.engine, d.card.model_copy(update={"receptive_field": 300}), ServeConfig(tile=64, overlap=0))
    assert wide.overlap >= 150 and wide.overlap % 8 == 0 and wide.tile > 2 * wide.overlap and wide.tile % 8 == 0
    assert wide(noise(500, 500, 3)).shape == (500, 500, 3)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 9, 3), (7, 8, 4), (8, 8, 1), (2, 2, 2)])
def test_tiny(box, block, shape):
    for path in (box, block):
        y = Denoiser.load(path)(noise(*shape, dtype=np.uint8))
        assert y.shape == shape and y.dtype == np.uint8


def test_progress(box):
    seen = []
    Denoiser.load(box, tile=64, overlap=8)(noise(100, 150, 3), lambda *a: seen.append(a))
    assert seen[-1][0] == seen[-1][1] == len(seen) == 6 and [s[0] for s in seen] == list(range(1, 7))


# data types, bands, strength

@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16])
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 2), (40, 50, 3), (40, 50, 4)])
def test_same_shape_and_type_out(box, dtype, shape):
    x = noise(*shape, dtype=dtype) if np.issubdtype(dtype, np.integer) else noise(*shape).astype(dtype)
    before = x.copy()
    y = Denoiser.load(box)(x)
    assert y.shape == x.shape and y.dtype == x.dtype and (x == before).all()
    inner = np.s_[1:-1, 1:-1]
    one = np.float64(x).reshape(40, 50, -1)[..., 0]
    mean = sum(np.roll(one, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    y1 = np.float64(y).reshape(40, 50, -1)[..., 0]
    integer = np.issubdtype(dtype, np.integer)
    assert abs(y1.mean() - one.mean()) <= (.5 if integer else 1e-3)        # the level of the band is kept: the model, dark at the border, would lower it
    drift = np.median(y1 - mean)                                           # by a constant
    assert drift > 0 and np.abs(y1 - mean - drift)[inner].max() <= (1 if integer else 2e-3)
    if x.ndim == 3 and x.shape[2] in (2, 4): assert (y[..., -1] == x[..., -1]).all()


def test_model_of_one_band_takes_any_picture(tmp_path):
    d = Denoiser.load(box_model(tmp_path, channels=1))
    x = noise(30, 30, 3)
    assert np.allclose(d(x)[..., 1], d(x[..., 1]), atol=1e-6)


def test_strength(box):
    x = noise(50, 60, 3, dtype=np.uint16)
    none, half, full = (np.int64(Denoiser.load(box, strength=s)(x)) for s in (0, .5, 1))
    assert (none == x).all()
    assert np.abs(half - (none + full) / 2).max() <= 1
    assert np.abs(full - x).max() > 1000


def test_strength_0_returns_floats_exactly(box):
    x = noise(9, 9).astype(np.float64) * 3 - 1
    assert (Denoiser.load(box, strength=0)(x) == x).all()


def test_value_range(box):
    "The declared range is the unit of the model: a shifted and scaled picture gives the shifted and scaled result."
    x = noise(50, 50, 3)
    stored = (5000 + 5000 * x).astype(np.uint16)
    seen = []
    d = Denoiser.load(box, value_range=(5000, 10000))
    spy = Denoiser(lambda b: (seen.append(b), d.engine(b))[1], d.card, d.cfg)
    y = spy(stored)
    assert np.abs(seen[0][0, :50, :50] - x).max() < 1e-3
    assert y.dtype == np.uint16 and np.abs((np.float64(y) - 5000) / 5000 - d(5000 + 5000 * x) / 5000 + 1)[1:-1, 1:-1].max() < 1e-3


def test_floats_are_not_clipped_integers_are(box):
    d = Denoiser.load(box)
    hard = Denoiser(lambda b: 3 * b - 1, d.card, d.cfg)      # three times the contrast, about 0.5
    x = np.tile(np.float32([.25, .75]), (8, 4))
    assert np.allclose(hard(x), 3 * x - 1)
    assert np.unique(hard((x * 255).round().astype(np.uint8))).tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64, np.float16])
@pytest.mark.parametrize("strength", [.5, 1])
def test_drift_is_taken_back_by_one_constant(box, dtype, strength):
    "A model that loses contrast and light gives the mean of each band back, in the whole as in tiles, and leaves alpha and no-data values alone."
    x = noise(150, 170, 4); x[..., 1] *= .3
    x = x.astype(dtype) if np.issubdtype(dtype, np.floating) else (x * np.iinfo(dtype).max).astype(dtype)
    d = Denoiser.load(box, strength=strength)
    dull = [Denoiser(lambda b: .9 * b - .03, d.card, d.cfg.model_copy(update={"tile": t, "overlap": 8})) for t in (64, 512)]
    tiled, y = (f(x) for f in dull)
    step = 1 if np.issubdtype(dtype, np.integer) else 2e-3 if dtype == np.float16 else 1e-6
    assert np.abs(np.float64(y) - tiled).max() <= step
    assert np.abs(y.mean((0, 1), np.float64) - x.mean((0, 1), np.float64)).max() <= step / 2 * 1.001 and (y[..., 3] == x[..., 3]).all()
    constant = (np.float64(y) - (1 - .1 * strength) * np.float64(x))[..., 0]
    assert np.ptp(constant[x[..., 0] > x[..., 0].max() / 2]) <= 2 * step


def test_no_data_has_no_say_in_the_levels(box):
    d = Denoiser.load(box, value_range=(5000, 10000))
    loses = Denoiser(lambda b: np.where(b < -.5, b + .4, b), d.card, d.cfg)
    scene = np.full((50, 50, 3), 7000, np.uint16); scene[:, :20] = 0
    assert (loses(scene)[:, 20:] == 7000).all()


@pytest.mark.parametrize("bad, what", [
    (np.full((20, 20), np.nan, np.float32), "NaN"), (np.full((20, 20), np.inf), "NaN or infinite"), (np.full((20, 20), -np.inf, np.float16), "NaN or infinite"), (np.full((20, 20, 3), 255.), "from 255"),
    (np.zeros((20, 20), np.int32), "int32"), (np.zeros((20, 20), bool), "bool"), (np.zeros((0, 20), np.uint8), "empty"), (np.zeros((20, 20, 7), np.uint8), "7"),
    (np.zeros(20, np.uint8), "no picture"), (np.zeros((2, 20, 20, 3), np.uint8), "no picture")])
@pytest.mark.parametrize("strength", [0, 1, "auto"])
def test_bad_arrays(box, strength, bad, what):
    with pytest.raises(ImageError, match=what): Denoiser.load(box, strength=strength)(bad)


# strength by the noise

def flat(sigma, *shape, seed=0): return from_float(np.random.default_rng(seed).normal(.5, sigma / 255, shape), np.uint8)


def test_auto_leaves_the_clean_and_cleans_the_noisy(box):
    auto, full = Denoiser.load(box, strength="auto"), Denoiser.load(box)
    for sigma, least, most in ((.3, 0, .1), (2, .4, .6), (40, 1, 1)):
        x = flat(sigma, 150, 170, 4); s = auto.settled(x).cfg.strength
        assert least <= s <= most and auto.sigma(x) == pytest.approx(sigma, rel=.1, abs=.2)
        assert (auto(x) == Denoiser.load(box, strength=s)(x)).all()
    assert (auto(x) == full(x)).all()


def test_auto_is_one_strength_for_all_tiles_and_minds_no_alpha(box):
    x = np.concatenate([flat(1, 200, 150, 3), flat(20, 200, 150, 3)], 1)      # quiet at the left, loud at the right
    tiled, whole = (Denoiser.load(box, strength="auto", tile=t, overlap=8) for t in (64, 2048))
    assert (tiled(x) == whole(x)).all() and 0 < whole.settled(x).cfg.strength < 1
    for alpha in (0, 255): assert (whole(np.dstack([x, np.full(x.shape[:2], alpha, np.uint8)]))[..., :3] == whole(x)).all()


def test_auto_on_a_picture_that_is_too_small(box, caplog):
    auto, x = Denoiser.load(box, strength="auto"), noise(3, 7, 3, dtype=np.uint8)
    with caplog.at_level("INFO", "agri_cae"): assert (auto(x) == Denoiser.load(box)(x)).all()
    assert auto.sigma(x) is None and "too small" in caplog.text and "strength 1" in caplog.text


def test_auto_in_files(box, tmp_path):
    write_image(Picture(flat(2, 90, 90, 3)), tmp_path / "a.png"); write_image(Picture(flat(2, 3, 3, 3)), tmp_path / "b.png")
    auto = Denoiser.load(box, strength="auto")
    done = denoise_file(auto, tmp_path / "a.png", tmp_path / "c.png", measure=True)
    assert done["model"] == "box@3" and .4 < done["strength"] < .6 and done["sigma"] == pytest.approx(2, abs=.2)
    assert provenance_of(read_image(tmp_path / "c.png")) == f"agri_cae {serve.__version__} box@3 strength={done['strength']}"
    assert denoise_file(auto, tmp_path / "b.png", tmp_path / "d.png", measure=True) == dict(model="box@3", strength=1)
    assert "sigma" not in denoise_file(auto, tmp_path / "a.png", tmp_path / "e.png")


@pytest.mark.skipif(not (SHARED / "test").is_dir(), reason="needs the pictures of ../shared/data/test")
def test_noise_estimate_is_right_to_a_tenth():
    errors = sigma_errors(SHARED / "test")
    assert len(errors) == 5 and all(len(e) == 24 and np.median(e) <= .1 for e in errors.values()), {s: np.median(e) for s, e in errors.items()}


# engines

def test_openvino_equals_onnx(box, block):
    for path in (box, block):
        a, b = (Denoiser.load(path, engine=e, tile=64, overlap=8)(noise(150, 77, 3)) for e in ("onnx", "openvino"))
        assert np.abs(a - b).max() <= 1e-5


@needs_weights
@pytest.mark.parametrize("name", shipped())
def test_openvino_equals_onnx_on_shipped_models(name):
    x = to_float(read_image(sample("field_camera")).data)[:200, :301]
    assert np.abs(Denoiser.load(name)(x) - Denoiser.load(name, engine="openvino")(x)).max() <= 1e-4


def test_missing_openvino_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r'pip install "agri-cae\[openvino\]"'): Denoiser.load(box_model(tmp_path), engine="openvino")


@pytest.mark.parametrize("precision, has, hint", [("float32", ["FP32", "BF16"], "f32"), ("bfloat16", ["FP32", "BF16"], "bf16"), ("bfloat16", ["FP32"], None)])
def test_openvino_is_told_the_precision(tmp_path, monkeypatch, precision, has, hint):
    import openvino
    real, told = openvino.Core(), {}
    class Core:
        def get_property(self, device, name): return has
        def compile_model(self, path, device, hints): told.update(hints); return real.compile_model(path, device, hints | {"INFERENCE_PRECISION_HINT": "f32"})
    monkeypatch.setattr(openvino, "Core", Core)
    def load(): return Denoiser.load(box_model(tmp_path), engine="openvino", precision=precision, threads=1)
    if hint: load(); assert told["INFERENCE_PRECISION_HINT"] == hint and told["INFERENCE_NUM_THREADS"] == 1
    else:
        with pytest.raises(ConfigError, match="bfloat16.*float32"): load()
        assert not told


def test_bfloat16_takes_openvino(box):
    for engine in (None, "onnx", "keras"):
        with pytest.raises(ConfigError, match="openvino"): Denoiser.load(box, engine=engine, precision="bfloat16")


def test_threads(tmp_path, monkeypatch):
    import onnxruntime
    real, seen = onnxruntime.InferenceSession, []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda p, opts, **k: (seen.append(opts), real(p, opts, **k))[1])
    monkeypatch.setattr(engines, "cores", lambda: 3)
    path = box_model(tmp_path)
    for n in (0, 5): Denoiser.load(path, threads=n)
    assert [o.intra_op_num_threads for o in seen] == [3, 5] and all(o.get_session_config_entry("session.intra_op.allow_spinning") == "0" for o in seen)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_counts():
    mine = os.sched_getaffinity(0)
    try: os.sched_setaffinity(0, {min(mine)}); assert engines.cores() == 1
    finally: os.sched_setaffinity(0, mine)


# trust in weights

def test_models_that_are_refused(tmp_path, box):
    path = box_model(tmp_path / "a")
    card = path.with_suffix(".json").read_text()
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ModelError, match="SHA-256"): Denoiser.load(path)
    path.write_bytes(b"no model"); write_card(path, Card.model_validate_json(card))
    for engine, name in (("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")):
        with pytest.raises(ModelError, match=name): Denoiser.load(path, engine=engine)
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(ModelError, match="card"): Denoiser.load(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ModelError, match="card"): Denoiser.load(path)
    with pytest.raises(ModelError, match="shipped name"): Denoiser.load("fats")
    with pytest.raises(ModelError): Denoiser.load(tmp_path)
    with pytest.raises(ModelError): Denoiser.load(tmp_path / "gone.onnx")
    with pytest.raises(ConfigError, match="strength"): Denoiser.load(box, strength=2)
    with pytest.raises(ConfigError, match="engine"): Denoiser.load(box, engine="torch")


def test_nothing_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "files", lambda package: tmp_path)
    assert shipped() == []
    with pytest.raises(ModelError, match="fast"): Denoiser.load("fast")


def test_model_with_other_bands_than_its_card(tmp_path):
    path = box_model(tmp_path, channels=1)
    write_card(path, Card.model_validate_json(path.with_suffix(".json").read_text()).model_copy(update={"channels": 3}))
    for engine in ("onnx", "openvino"):
        with pytest.raises(ModelError, match="shape"): Denoiser.load(path, engine=engine)


def test_loaded_once_and_reloaded_when_replaced(tmp_path, monkeypatch):
    import onnxruntime
    path, made, real = box_model(tmp_path), [], onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: (made.append(1), real(*a, **k))[1])
    with ThreadPoolExecutor(8) as pool: list(pool.map(lambda i: Denoiser.load(path, strength=i / 8), range(8)))
    assert len(made) == 1
    x = noise(30, 30, 3); before = Denoiser.load(path)(x)
    box_model(tmp_path, side=5)
    assert np.abs(Denoiser.load(path)(x) - before).max() > 0.01 and len(made) == 2


def test_mlflow_uri(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("AGRI_CAE_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    before = mlflow.get_tracking_uri()
    try:
        with pytest.raises(ModelError, match="MLflow"): Denoiser.load("models:/nobody@champion")
        path = box_model(tmp_path / "m")
        with mlflow.start_run(experiment_id=mlflow.create_experiment("t", (tmp_path / "artifacts").as_uri())) as run:
            for f in path.parent.iterdir(): mlflow.log_artifact(f, "model")
        assert Denoiser.load(f"runs:/{run.info.run_id}/model").card.name == "box"
        client = mlflow.MlflowClient()
        client.create_registered_model("agri_cae")
        client.create_model_version("agri_cae", f"{run.info.artifact_uri}/model", run.info.run_id)
        client.set_registered_model_alias("agri_cae", "champion", 1)
        assert Denoiser.load("models:/agri_cae@champion").card.version == "3"
        with pytest.raises(ModelError, match="no weights"): Denoiser.load(f"runs:/{run.info.run_id}/model", engine="keras")
    finally: mlflow.set_tracking_uri(before)


# memory, threads, imports

def test_memory_follows_the_tile(box):
    "Beyond the result, an array of 25 MP takes no more than one of 6 MP."
    def peak(side):
        x, d = np.zeros((side, side, 3), np.uint8), Denoiser.load(box, tile=512)
        d = Denoiser(lambda b: b, d.card, d.cfg)
        tracemalloc.start()
        try: d(x); return tracemalloc.get_traced_memory()[1] - x.nbytes
        finally: tracemalloc.stop()
    small, large = peak(2500), peak(5000)
    assert large < 1.1 * small and large < 12 * 512 * 512 * 3 * 4


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_shared_between_threads(box, engine):
    d = Denoiser.load(box, tile=64, overlap=8, threads=1, engine=engine)
    xs = [noise(100 + 13 * i, 90, 3, seed=i) for i in range(12)]
    with ThreadPoolExecutor(4) as pool: together = list(pool.map(d, xs))
    assert all((a == d(x)).all() for a, x in zip(together, xs))


@pytest.mark.parametrize("module", ["agri_cae.serve", "agri_cae.cli.main", "agri_cae.io.images", "agri_cae.cli.demo"])
def test_light_imports(module):
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {{'tensorflow', 'keras', 'mlflow', 'matplotlib', 'torch', 'jax', 'skimage', 'pandas', 'openvino'}}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (out.returncode, out.stdout.strip()) == (0, ""), out.stderr


# files

def test_file_keeps_depth_and_says_what_was_done(box, tmp_path):
    d, out = Denoiser.load(box), tmp_path / "sub" / "out.tif"
    denoise_file(d, sample("satellite"), out)
    before, after = read_image(sample("satellite")), read_image(out)
    assert after.data.dtype == np.uint16 and after.data.shape == before.data.shape
    assert provenance_of(after) == d.provenance == f"agri_cae {serve.__version__} box@3 strength=1"
    with pytest.raises(DenoisedBefore, match="out.tif.*--force"): denoise_file(d, out, tmp_path / "again.tif")
    assert not (tmp_path / "again.tif").exists()
    denoise_file(d, out, tmp_path / "again.tif", force=True)
    with pytest.raises(OutputError): denoise_file(d, sample("satellite"), out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError): denoise_file(d, sample("satellite"), tmp_path / "file" / "out.tif")


# the shipped model

@needs_weights
def test_onnx_equals_keras():
    pytest.importorskip("keras")
    x = to_float(read_image(sample("field_camera")).data)[:200, :301]
    assert np.abs(Denoiser.load("fast")(x) - Denoiser.load("fast", engine="keras")(x)).max() <= 1e-4


@needs_weights
def test_no_seam_at_4_megapixels():
    x = np.tile(read_image(sample("field_camera")).data, (5, 4, 1))[:2000, :2000]
    x = to_float(x) + np.random.default_rng(0).normal(0, 25 / 255, x.shape).astype(np.float32)
    whole, tiled = (Denoiser.load("fast", tile=t)(x) for t in (2048, 512))
    assert np.abs(whole - tiled).max() <= 1e-4


@needs_weights
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("sigma", [0, 15, 25, 50])
def test_levels_are_kept(name, sigma):
    "The mean of each band of a sample stays: to a hundredth of a grey level of 255 for floats, to half a stored step (and what saturates) for integers."
    d, unit = Denoiser.load("fast"), SAMPLES[name].value_range
    x = to_float(read_image(sample(name)).data, unit)
    x = x + np.random.default_rng(0).normal(0, sigma / 255, x.shape).astype(np.float32)
    def shift(x, d=d): return np.abs(d(x).mean((0, 1), np.float64) - x.mean((0, 1), np.float64)).max()
    assert shift(x) * 255 < .05
    assert shift(from_float(x, np.uint8)) < .6
    if unit: assert shift(from_float(x, np.uint16, unit), Denoiser.load("fast", value_range=unit)) < 1


# formats: what comes in decides what comes out, not how good it is

@pytest.fixture(scope="module")
def photo():
    "A picture, the same with noise of sigma 25 clipped to [0, 1], and the gain of `fast` on it in 8 bits, decibel"
    clean = to_float(read_image(sample("field_camera")).data)[100:356, 100:420]
    noisy = np.clip(awgn(clean, 25, 0), 0, 1)
    return clean, noisy, gain(from_float(noisy, np.uint8), clean)


def gain(stored, clean): return psnr(to_float(Denoiser.load("fast")(stored)), clean) - psnr(to_float(stored), clean)


@needs_weights
@pytest.mark.parametrize("dtype", [np.uint16, np.float16, np.float32, np.float64])
def test_depth_makes_no_difference(photo, dtype):
    clean, noisy, rgb = photo
    assert rgb > 6 and gain(from_float(noisy, dtype), clean) == pytest.approx(rgb, abs=.1)


@needs_weights
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_alpha_makes_no_difference(photo, dtype):
    x, d = from_float(photo[1], dtype), Denoiser.load("fast")
    alpha = from_float(noise(*x.shape[:2]), dtype)
    for colours in (x, x[..., :1]):
        y = d(np.dstack([colours, alpha]))
        assert (y[..., -1] == alpha).all() and (y[..., :-1] == d(colours)).all()


@needs_weights
def test_grey_gains_too(photo):
    "Without the other bands to compare with there is less to go by: 2 dB of the colour picture's gain may go"
    clean = photo[0].mean(2); noisy = np.clip(awgn(clean, 25, 0), 0, 1)
    grey = gain(from_float(noisy, np.uint8), clean)
    assert grey > photo[2] - 2 and gain(from_float(noisy, np.uint16), clean) == pytest.approx(grey, abs=.1)
    d, x = Denoiser.load("fast"), from_float(noisy, np.uint8)
    assert (d(x[..., None])[..., 0] == d(x)).all()
    assert np.abs(Denoiser.load("fast", tile=200)(noisy) - d(noisy)).max() <= 1e-4       # the grain belongs to the place, not to the tile


@needs_weights
def test_a_strip_is_as_good_as_the_whole(photo):
    "4097 x 33 pixels: within 1 dB of the same strip in a wide picture, and of the picture"
    clean, noisy = (np.tile(a, (17, 1, 1))[:4097, :200] for a in photo[:2])
    strip, x = np.s_[:, 80:113], from_float(noisy, np.uint8)
    alone = gain(x[strip], clean[strip])
    within = psnr(to_float(Denoiser.load("fast")(x)[strip]), clean[strip]) - psnr(to_float(x[strip]), clean[strip])
    assert alone == pytest.approx(within, abs=1) and alone == pytest.approx(photo[2], abs=2)


@needs_weights
def test_a_few_pixels_gain_as_well(photo):
    clean, noisy, _ = photo; d = Denoiser.load("fast")
    cuts = [np.s_[i:i + 3, j:j + 7] for i in range(0, 250, 50) for j in range(0, 310, 60)]
    before, after = (np.mean([np.square(f(noisy[c]) - clean[c]).mean() for c in cuts]) for f in (lambda x: x, d))
    assert after < .5 * before
    one = from_float(noisy[:1, :1], np.uint8)
    assert (d(one) == one).all()        # the level of a single pixel is all there is, and levels are kept
