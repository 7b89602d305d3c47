"Serving: tiles, data types, bands, levels, strength, memory, files, and what is imported."

import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_model import block_model, box_model

from agri_cae import serve
from agri_cae.config import ImageError, ModelError, OutputError, ServeConfig
from agri_cae.io.images import Picture, provenance_of, read_image, sample, write_image
from agri_cae.serve import DenoisedBefore, Denoiser, denoise_file

TYPES = [np.uint8, np.uint16, np.float32, np.float64, np.float16]


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    return box_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    return block_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def smooth(box):
    "The mean of 3 x 3 neighbours, also at the border"
    d = Denoiser.load(box)
    return Denoiser(lambda b: cv2.blur(b[0], (3, 3), borderType=cv2.BORDER_REFLECT)[None], d.card, d.cfg)


def is_integer(dtype):
    return np.issubdtype(dtype, np.integer)


def noise(*shape, dtype=np.float32):
    "Three bands are coloured: noise around grey would come back grey"
    x = np.random.default_rng(0).random(shape, np.float32)
    if len(shape) == 3 and shape[2] > 2: x[..., :3] *= np.float32([1, 0.8, 0.6])
    return (x * np.iinfo(dtype).max).astype(dtype) if is_integer(dtype) else x.astype(dtype)


def with_card(d, **changes):
    "The same model with another card"
    return d.card.model_copy(update=changes)


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
    blind = Denoiser(d.engine, with_card(d, receptive_field=0), d.cfg)
    assert np.abs(blind(x) - d(x)).max() > 0.01


def test_overlap_is_never_less_than_half_the_receptive_field(box):
    d = Denoiser.load(box)
    wide = Denoiser(d.engine, with_card(d, receptive_field=300), ServeConfig(tile=64, overlap=0))
    assert wide.overlap >= 150 and wide.overlap % 8 == 0
    assert wide.tile > 2 * wide.overlap and wide.tile % 8 == 0
    assert wide(noise(500, 500, 3)).shape == (500, 500, 3)


def test_the_card_says_at_which_pixels_tiles_begin(box):
    seen, d = [], Denoiser.load(box)

    def spy(batch):
        seen.append(batch.shape[1])
        return d.engine(batch)

    Denoiser(spy, with_card(d, step=32), ServeConfig(tile=96, overlap=32))(noise(200, 30, 3))
    assert len(seen) > 1 and {n % 32 for n in seen} == {0}


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 9, 3), (7, 8, 4), (8, 8, 1), (2, 2, 2)])
def test_tiny(box, block, shape):
    for path in (box, block):
        y = Denoiser.load(path)(noise(*shape, dtype=np.uint8))
        assert y.shape == shape and y.dtype == np.uint8


def test_progress(box):
    seen = []
    Denoiser.load(box, tile=64, overlap=8)(noise(100, 150, 3), lambda *a: seen.append(a))
    assert seen == [(i, 6) for i in range(1, 7)]


# data types, bands, strength


def mean_of_9(x):
    "Mean of the 3 x 3 neighbours of the first band"
    one = np.float64(x).reshape(*x.shape[:2], -1)[..., 0]
    return one, cv2.blur(one, (3, 3), borderType=cv2.BORDER_REFLECT)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 2), (40, 50, 3), (40, 50, 4)])
def test_same_shape_and_type_out(smooth, dtype, shape):
    x = noise(*shape, dtype=dtype)
    if shape[2:] in ((2,), (4,)): x[..., -1] = np.iinfo(dtype).max if is_integer(dtype) else 1  # opaque
    before = x.copy()
    y = smooth(x)
    assert y.shape == x.shape and y.dtype == x.dtype and (x == before).all()
    one, mean = mean_of_9(x)
    y1, unit = np.float64(y).reshape(40, 50, -1)[..., 0], np.iinfo(dtype).max if is_integer(dtype) else 1
    assert abs(y1.mean() - one.mean()) <= max(2e-3 * unit, .5)  # the level of the band is kept
    off = np.abs(y1 - mean)[1:-1, 1:-1].max()
    assert off <= max(1e-2 * unit, 1) and np.abs(y1 - one).max() > .3 * unit
    if x.ndim == 3 and x.shape[2] in (2, 4):
        assert (y[..., -1] == x[..., -1]).all()


def test_model_of_one_band_takes_any_picture(tmp_path):
    d = Denoiser.load(box_model(tmp_path, channels=1))
    x = noise(30, 30, 3)
    assert np.allclose(d(x)[..., 1], d(x[..., 1]), atol=1e-6)


def test_strength(smooth):
    x = noise(50, 60, 3, dtype=np.uint16)
    def at(s): return Denoiser(smooth.engine, smooth.card, smooth.cfg.model_copy(update={"strength": s}))
    none, half, full = (np.int64(at(s)(x)) for s in (0, 0.5, 1))
    assert (none == x).all()
    assert np.abs(half - (none + full) / 2).max() <= 1.5
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

    def spy(batch):
        seen.append(batch)
        return d.engine(batch)

    y = Denoiser(spy, d.card, d.cfg)(stored)
    assert np.abs(seen[0][0, :50, :50] - x).max() < 1e-3
    off = (np.float64(y) - 5000) / 5000 - (d(5000 + 5000 * x) / 5000 - 1)
    assert y.dtype == np.uint16 and np.abs(off)[1:-1, 1:-1].max() < 1e-3


@pytest.mark.parametrize("dtype", TYPES)
def test_no_value_leaves_the_range_that_came_in(box, dtype):
    d = Denoiser.load(box)
    hard = Denoiser(lambda b: 3 * b - 1, d.card, d.cfg)  # three times the contrast, about 0.5
    x = noise(40, 60, 3, dtype=dtype) // 2 + 9 if is_integer(dtype) else noise(40, 60, 3, dtype=dtype) / 2 + dtype(.1)
    y = hard(x)
    assert (y.min((0, 1)) >= x.min((0, 1))).all() and (y.max((0, 1)) <= x.max((0, 1))).all() and (y != x).any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("strength", [0.5, 1])
def test_a_shift_of_levels_is_taken_back_by_one_constant(box, dtype, strength):
    """A model that loses contrast and light gives the mean of each band back, in the whole as in tiles.

    Where there is only noise, it is one constant, but for what chance allows.

    It leaves alpha alone."""
    x = noise(150, 170, 4)
    x[..., 1] *= 0.3
    x[..., 3] = 0.5 + x[..., 3] / 2  # nothing is hidden under alpha 0
    x = (x * np.iinfo(dtype).max).astype(dtype) if is_integer(dtype) else x.astype(dtype)
    d = Denoiser.load(box, strength=strength)
    cfgs = [d.cfg.model_copy(update={"tile": t, "overlap": 8}) for t in (64, 512)]
    tiled, y = (Denoiser(lambda b: 0.9 * b - 0.03, d.card, cfg)(x, alpha=True) for cfg in cfgs)
    step = {np.uint8: 1, np.uint16: 16, np.float16: 2e-3}.get(dtype, 4e-4)
    assert np.abs(np.float64(y) - tiled).max() <= step
    assert np.abs(y.mean((0, 1), np.float64) - x.mean((0, 1), np.float64)).max() <= step / 2 * 1.001
    assert (y[..., 3] == x[..., 3]).all()
    constant = (np.float64(y) - (1 - 0.1 * strength) * np.float64(x))[..., 0]
    assert np.ptp(constant[x[..., 0] > x[..., 0].max() / 2]) <= 2 * step


def test_no_data_does_not_count_for_the_levels(box):
    d = Denoiser.load(box, value_range=(5000, 10000))
    loses = Denoiser(lambda b: np.where(b > 0.3, b, b + 0.4), d.card, d.cfg)
    scene = (6900 + 200 * noise(50, 50, 3)).astype(np.uint16)
    scene[:, :20] = 40
    assert (loses(scene, nodata=(40,) * 3) == scene).all()


BAD = [
    (np.zeros((20, 20), complex), "complex"),
    (np.zeros((20, 20), "datetime64[s]"), "datetime64"),
    (np.zeros((0, 20), np.uint8), "empty"),
    (np.zeros(20, np.uint8), "no picture"),
    (np.zeros((2, 20, 20, 3), np.uint8), "no picture"),
]


@pytest.mark.parametrize("bad, what", BAD)
@pytest.mark.parametrize("strength", [0, 1, "auto"])
def test_bad_arrays(box, strength, bad, what):
    with pytest.raises(ImageError, match=what):
        Denoiser.load(box, strength=strength)(bad)


# rasters: what is invalid, odd types and bands

ODD = [np.int8, np.int16, np.int32, np.uint32, np.int64, np.float16, np.float32, np.float64, ">u2", ">f4"]


@pytest.mark.parametrize("dtype", ODD)
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 7])
def test_any_type_and_number_of_bands(smooth, dtype, bands):
    "Noise goes in all bands, nodata stays and comes up nowhere else, no value leaves the range"
    rng = np.random.default_rng(bands)
    clean = np.add.outer(np.linspace(20, 60, 70), np.linspace(0, 40, 80))[..., None] + np.arange(bands)
    x = (clean + rng.normal(0, 4, (70, 80, bands))).astype(dtype)
    hole = np.zeros(x.shape[:2], bool)
    hole[:9], hole[40:50, 20:60] = True, True
    x[hole] = 7
    y = smooth(x, nodata=(7,) * bands, alpha=False)
    assert y.dtype == x.dtype and (y[hole] == 7).all()
    before, after = (np.square(a[~hole].astype(float) - clean[~hole]).mean(0) for a in (x, y))
    assert (after < .4 * before).all(), (before, after)
    lost = (y[~hole] == 7) & (x[~hole] != 7)
    assert not lost.any() and y[~hole].min() >= x[~hole].min() and y[~hole].max() <= x[~hole].max()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_no_valid_value_becomes_nodata(smooth, dtype):
    "Values on both sides of the nodata value, whose mean it is"
    x = np.where(np.random.default_rng(0).random((60, 70, 3)) < .5, 98, 102).astype(dtype)
    x[:20], x[30, 30] = 100, 100
    y = smooth(x, nodata=(100,) * 3)
    assert (y[:20] == 100).all() and (y[30, 30] == 100).all() and (y != x).any()
    assert (y == 100).sum() == (x == 100).sum()


def test_nan_masks_and_alpha_are_invalid(smooth):
    d, x = smooth, noise(60, 70, 3)
    hole = np.zeros((60, 70), bool)
    hole[10:20, 30:50] = True
    with_nan = np.where(hole[..., None], np.nan, x)
    by_mask = np.ma.array(np.where(hole[..., None], 9, x), mask=np.repeat(hole[..., None], 3, 2))
    cut_out = np.dstack([np.where(hole[..., None], 9, x), ~hole])
    results = d(with_nan), d(by_mask), d(cut_out)[..., :3], d(np.where(hole[..., None], -1e30, x), valid=~hole)
    assert np.isnan(results[0][hole]).all() and (results[1].mask == by_mask.mask).all()
    for y in results: assert np.abs(np.asarray(y)[~hole] - results[0][~hole]).max() < 1e-6
    assert np.abs(results[0][~hole] - d(x)[~hole]).max() < .6  # nothing of 9 or -1e30 was smeared inwards


def test_a_hot_pixel_and_a_wrong_declared_range_do_no_harm(smooth):
    x = noise(60, 70, 3)
    hot = x.copy()
    hot[30, 30] = 1e6
    d, far = smooth, np.ones((60, 70), bool)
    far[28:33, 28:33] = False
    assert np.abs(d(hot) - d(x))[far].max() < .02 and d(hot)[30, 30] == pytest.approx(1e6, rel=1e-5)
    unit = Denoiser(d.engine, d.card, d.cfg.model_copy(update={"value_range": (0, 1)}))
    declared = unit(np.where(np.arange(70)[:, None] < 9, -9999, x))
    assert np.abs(declared[:, 12:] - d(x)[:, 12:]).max() < .05 and (declared[:, :9] < -9990).all()


def test_maps_of_classes_are_left_alone(box):
    d, crops = Denoiser.load(box), np.repeat(np.repeat(noise(9, 9, dtype=np.uint8) % 12, 12, 0), 12, 1)
    for x in (crops, crops.astype(np.int16), crops > 5, np.dstack([crops] * 3) * 20, np.zeros((30, 30), np.uint16)):
        assert (d(x) == x).all() and d.diagnose(x).left
    assert "12 classes" in d.diagnose(crops).left and (d(crops, force=True) != crops).any()
    assert d.diagnose(noise(90, 90, dtype=np.uint8)).left is None


# memory, imports


def test_memory(box):
    "Beyond the result and the tile: twice the picture, and seven times where pixels are invalid"
    d = Denoiser.load(box, tile=512)
    d = Denoiser(lambda b: b, d.card, d.cfg)
    x = np.tile(noise(500, 500, 3, dtype=np.uint8), (8, 8, 1))

    def peak():
        tracemalloc.start()
        try:
            d(x)
            return tracemalloc.get_traced_memory()[1] - x.nbytes
        finally:
            tracemalloc.stop()

    tile = 12 * 512 * 512 * 3 * 4
    assert peak() < tile + 2 * x.nbytes
    x[:1000] = 0
    assert peak() < tile + 7 * x.nbytes


HEAVY = {"tensorflow", "keras", "mlflow", "matplotlib", "torch", "jax", "skimage", "pandas", "openvino"}


@pytest.mark.parametrize("module", ["agri_cae.serve", "agri_cae.cli.main", "agri_cae.io.images", "agri_cae.cli.demo"])
def test_light_imports(module):
    code = f"import sys, {module}; print(*sorted({{m.split('.')[0] for m in sys.modules}} & {HEAVY}))"
    root = Path(__file__).parents[1]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert (out.returncode, out.stdout.strip()) == (0, ""), out.stderr


# files


def test_file_keeps_depth_and_says_what_was_done(box, tmp_path):
    d, out = Denoiser.load(box), tmp_path / "sub" / "out.tif"
    denoise_file(d, sample("satellite"), out)
    before, after = read_image(sample("satellite")), read_image(out)
    assert after.data.dtype == np.uint16 and after.data.shape == before.data.shape
    assert provenance_of(after) == d.provenance_for(1) == f"agri_cae {serve.__version__} box@3 strength=1"
    with pytest.raises(DenoisedBefore, match=r"out.tif.*force=True"):
        denoise_file(d, out, tmp_path / "again.tif")
    assert not (tmp_path / "again.tif").exists()
    denoise_file(d, out, tmp_path / "again.tif", force=True)
    with pytest.raises(OutputError):
        denoise_file(d, sample("satellite"), out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        denoise_file(d, sample("satellite"), tmp_path / "file" / "out.tif")


def test_a_file_keeps_its_format_under_the_same_suffix(box, tmp_path):
    d = Denoiser.load(box)
    write_image(Picture(noise(30, 40, 3, dtype=np.uint8)), tmp_path / "a.jpg", "png")
    for name, format in (("b.jpg", "png"), ("c.tif", "tiff")):
        denoise_file(d, tmp_path / "a.jpg", tmp_path / name)
        assert read_image(tmp_path / name).format == format


def test_mlflow_uri(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("AGRI_CAE_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    before = mlflow.get_tracking_uri()
    try:
        with pytest.raises(ModelError, match="MLflow"):
            Denoiser.load("models:/nobody@champion")
        path = box_model(tmp_path / "m")
        experiment = mlflow.create_experiment("t", (tmp_path / "artifacts").as_uri())
        with mlflow.start_run(experiment_id=experiment) as run:
            for f in path.parent.iterdir():
                mlflow.log_artifact(f, "model")
        assert Denoiser.load(f"runs:/{run.info.run_id}/model").card.name == "box"
        client = mlflow.MlflowClient()
        client.create_registered_model("agri-cae")
        client.create_model_version("agri-cae", f"{run.info.artifact_uri}/model", run.info.run_id)
        client.set_registered_model_alias("agri-cae", "champion", 1)
        assert Denoiser.load("models:/agri-cae@champion").card.version == "3"
        with pytest.raises(ModelError, match="no weights"):
            Denoiser.load(f"runs:/{run.info.run_id}/model", engine="keras")
    finally:
        mlflow.set_tracking_uri(before)


def test_a_path_is_no_picture_and_no_model():
    fast = Denoiser.load("fast")
    for path in ("leaf.jpg", Path("leaf.jpg")):
        with pytest.raises(ImageError, match=r"leaf.jpg: is no array of pixels. Read it first"): fast(path)
    with pytest.raises(ModelError, match=r"leaf.jpg: is not loaded. Load a model"): Denoiser("leaf.jpg")


def test_an_error_in_a_notebook_is_three_lines():
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance()
    shown = []
    shell._showtraceback = lambda kind, error, lines: shown.append(lines)
    shell.run_cell("from agri_cae.serve import Denoiser\nDenoiser.load('fats')")
    assert len(shown[0]) == 3 and shown[0][0] == "ModelError: fats" and "shipped name" in shown[0][2]
