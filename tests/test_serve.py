"Serving: tiles, data types, bands, levels, strength, memory, files, and what is imported."

import subprocess
import sys
import tracemalloc
from pathlib import Path

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


def is_integer(dtype):
    return np.issubdtype(dtype, np.integer)


def noise(*shape, dtype=np.float32):
    x = np.random.default_rng(0).random(shape, np.float32)
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


def box_mean(x):
    "Mean of the 3 x 3 neighbours of the first band"
    one = np.float64(x).reshape(*x.shape[:2], -1)[..., 0]
    return one, sum(np.roll(one, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 1), (40, 50, 2), (40, 50, 3), (40, 50, 4)])
def test_same_shape_and_type_out(box, dtype, shape):
    x = noise(*shape, dtype=dtype)
    before = x.copy()
    y = Denoiser.load(box)(x)
    assert y.shape == x.shape and y.dtype == x.dtype and (x == before).all()
    one, mean = box_mean(x)
    y1 = np.float64(y).reshape(40, 50, -1)[..., 0]
    # the level of the band is kept: the model, dark at the border, would lower it
    assert abs(y1.mean() - one.mean()) <= (0.5 if is_integer(dtype) else 1e-3)
    shift = np.median(y1 - mean)  # by a constant
    off = np.abs(y1 - mean - shift)[1:-1, 1:-1].max()
    assert shift > 0 and off <= (1 if is_integer(dtype) else 2e-3)
    if x.ndim == 3 and x.shape[2] in (2, 4):
        assert (y[..., -1] == x[..., -1]).all()


def test_model_of_one_band_takes_any_picture(tmp_path):
    d = Denoiser.load(box_model(tmp_path, channels=1))
    x = noise(30, 30, 3)
    assert np.allclose(d(x)[..., 1], d(x[..., 1]), atol=1e-6)


def test_strength(box):
    x = noise(50, 60, 3, dtype=np.uint16)
    none, half, full = (np.int64(Denoiser.load(box, strength=s)(x)) for s in (0, 0.5, 1))
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

    def spy(batch):
        seen.append(batch)
        return d.engine(batch)

    y = Denoiser(spy, d.card, d.cfg)(stored)
    assert np.abs(seen[0][0, :50, :50] - x).max() < 1e-3
    off = (np.float64(y) - 5000) / 5000 - (d(5000 + 5000 * x) / 5000 - 1)
    assert y.dtype == np.uint16 and np.abs(off)[1:-1, 1:-1].max() < 1e-3


def test_floats_are_not_clipped_integers_are(box):
    d = Denoiser.load(box)
    hard = Denoiser(lambda b: 3 * b - 1, d.card, d.cfg)  # three times the contrast, about 0.5
    x = np.tile(np.float32([0.25, 0.75]), (8, 4))
    assert np.allclose(hard(x), 3 * x - 1)
    assert np.unique(hard((x * 255).round().astype(np.uint8))).tolist() == [0, 255]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("strength", [0.5, 1])
def test_a_shift_of_levels_is_taken_back_by_one_constant(box, dtype, strength):
    """A model that loses contrast and light gives the mean of each band back, in the whole as in tiles.

    It leaves alpha and no-data values alone."""
    x = noise(150, 170, 4)
    x[..., 1] *= 0.3
    x = (x * np.iinfo(dtype).max).astype(dtype) if is_integer(dtype) else x.astype(dtype)
    d = Denoiser.load(box, strength=strength)
    cfgs = [d.cfg.model_copy(update={"tile": t, "overlap": 8}) for t in (64, 512)]
    tiled, y = (Denoiser(lambda b: 0.9 * b - 0.03, d.card, cfg)(x) for cfg in cfgs)
    step = 1 if is_integer(dtype) else 2e-3 if dtype == np.float16 else 1e-6
    assert np.abs(np.float64(y) - tiled).max() <= step
    assert np.abs(y.mean((0, 1), np.float64) - x.mean((0, 1), np.float64)).max() <= step / 2 * 1.001
    assert (y[..., 3] == x[..., 3]).all()
    constant = (np.float64(y) - (1 - 0.1 * strength) * np.float64(x))[..., 0]
    assert np.ptp(constant[x[..., 0] > x[..., 0].max() / 2]) <= 2 * step


def test_no_data_does_not_count_for_the_levels(box):
    d = Denoiser.load(box, value_range=(5000, 10000))
    loses = Denoiser(lambda b: np.where(b < -0.5, b + 0.4, b), d.card, d.cfg)
    scene = np.full((50, 50, 3), 7000, np.uint16)
    scene[:, :20] = 0
    assert (loses(scene)[:, 20:] == 7000).all()


BAD = [
    (np.full((20, 20), np.nan, np.float32), "NaN"),
    (np.full((20, 20), np.inf), "NaN or infinite"),
    (np.full((20, 20), -np.inf, np.float16), "NaN or infinite"),
    (np.full((20, 20, 3), 255.0), "from 255"),
    (np.zeros((20, 20), np.int32), "int32"),
    (np.zeros((20, 20), bool), "bool"),
    (np.zeros((0, 20), np.uint8), "empty"),
    (np.zeros((20, 20, 7), np.uint8), "7"),
    (np.zeros(20, np.uint8), "no picture"),
    (np.zeros((2, 20, 20, 3), np.uint8), "no picture"),
]


@pytest.mark.parametrize("bad, what", BAD)
@pytest.mark.parametrize("strength", [0, 1, "auto"])
def test_bad_arrays(box, strength, bad, what):
    with pytest.raises(ImageError, match=what):
        Denoiser.load(box, strength=strength)(bad)


# memory, imports


def test_memory_follows_the_tile(box):
    "Beyond the result, an array of 25 MP takes no more than one of 6 MP."
    d = Denoiser.load(box, tile=512)
    d = Denoiser(lambda b: b, d.card, d.cfg)

    def peak(side):
        x = np.zeros((side, side, 3), np.uint8)
        tracemalloc.start()
        try:
            d(x)
            return tracemalloc.get_traced_memory()[1] - x.nbytes
        finally:
            tracemalloc.stop()

    small, large = peak(2500), peak(5000)
    assert large < 1.1 * small and large < 12 * 512 * 512 * 3 * 4


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
    assert provenance_of(after) == d.provenance == f"agri_cae {serve.__version__} box@3 strength=1"
    with pytest.raises(DenoisedBefore, match=r"out.tif.*--force"):
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
