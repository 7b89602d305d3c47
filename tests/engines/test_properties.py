"Whatever a raster, its nodata value and its mask, and whatever the network gives: nothing is damaged."

import io

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings, strategies as st
from tiny_model import box_model

from agri_cae.serve import Denoiser, denoise_file

DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]
# networks that nobody would ship: upside down, far too bright, spikes at the ends, the same everywhere
NETWORKS = dict(
    inverted=lambda x: 1 - x,
    bright=lambda x: x + np.float32(0.3),
    spikes=lambda x: np.where(x > x.mean(), np.float32(9), np.float32(-9)),
    flat=lambda x: np.full_like(x, 0.5),
)
QUIET = settings(max_examples=60, deadline=None, derandomize=True, database=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    return Denoiser.load(box_model(tmp_path_factory.mktemp("model")))


@st.composite
def rasters(draw):
    "(array (H, W, bands), nodata of each band or None, mask (H, W) or (H, W, bands) or None)"
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(st.tuples(st.integers(9, 40), st.integers(9, 40), st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, high = (-1, 1) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    scale = draw(st.sampled_from([1e-3, 1, 1e4] if dtype.kind == "f" else [1]))
    middle, width = draw(st.floats(0.05, 0.95)), draw(st.sampled_from([0.002, 0.02, 0.2]))
    a = (low + (high - low) * np.clip(rng.normal(middle, width, shape), 0, 1)) * scale
    a = np.ascontiguousarray(a.astype(dtype))
    values = [None, 0, low, high, int(a.flat[0]) if dtype.kind != "f" else float(a.flat[0])]
    if dtype.kind == "f": values += [np.nan, -9999.0, -3.4028234663852886e38 if dtype.itemsize > 2 else -65504.0]
    nodata = draw(st.sampled_from(values))
    holes = draw(st.sampled_from(["none", "scattered", "border", "a band", "a whole band", "all but one"]))
    where = np.zeros(shape, bool)
    if holes == "scattered": where = np.repeat(rng.random(shape[:2])[..., None] < 0.3, shape[2], 2)
    if holes == "border": where[:, : shape[1] // 2] = True
    if holes == "a band": where[::2, ::3, 0] = True
    if holes == "a whole band": where[..., -1] = True
    if holes == "all but one":
        where[:] = True
        where[shape[0] // 2, shape[1] // 2] = False
    if nodata is not None: a[where] = nodata
    if dtype.kind == "f" and draw(st.booleans()): a[0, 0, 0], a[-1, -1, -1] = np.nan, np.inf
    mask = draw(st.sampled_from([None, 2, 3]))
    if mask: mask = rng.random(shape[:mask]) < 0.8
    if mask is not None and draw(st.booleans()): mask[..., -1] = False   # a column, or a whole band
    return a, nodata, mask


def bits(a):
    return np.ascontiguousarray(a).view(f"u{a.itemsize}")


def holds(a, nodata):
    "Where an array has its nodata value; NaN and infinities are no measurements either"
    odd = ~np.isfinite(a) if a.dtype.kind == "f" else np.zeros(a.shape, bool)
    if nodata is None or np.isnan(nodata): return odd
    return odd | (a == np.asarray(nodata).astype(a.dtype))


def check(before, after, invalid):
    "Nothing that is invalid has changed; what is valid is finite, no nodata, and within what was measured"
    assert (after.dtype, after.shape) == (before.dtype, before.shape)
    assert (bits(after)[invalid] == bits(before)[invalid]).all()
    for i in range(before.shape[2]):
        old, new = before[..., i][~invalid[..., i]], after[..., i][~invalid[..., i]]
        assert not old.size or (old.min() <= new.min() and new.max() <= old.max())


@given(raster=rasters(), network=st.sampled_from(sorted(NETWORKS)), strength=st.sampled_from([1.0, 0.4, "auto"]),
       value_range=st.sampled_from([None, (0, 1), (-5, 3000)]))
@QUIET
def test_any_array(box, raster, network, strength, value_range):
    a, nodata, mask = raster
    cfg = box.cfg.model_copy(update=dict(strength=strength, value_range=value_range))
    denoiser = Denoiser(NETWORKS[network], box.card, cfg)
    invalid = holds(a, nodata) | (False if mask is None else ~mask if mask.ndim == 3 else ~mask[..., None])
    each = None if nodata is None else (nodata,) * a.shape[2]
    after = denoiser(a, valid=mask, nodata=each, alpha=False, force=True)
    check(a, after, invalid)
    assert not holds(after, nodata)[~invalid].any()


def stored(f, apart, shape):
    "Pixels (H, W, bands) and private tags of a file, as tifffile reads them"
    f.seek(0)
    with tifffile.TiffFile(f) as t:
        tags = {tag.code: tag.value for tag in t.pages[0].tags if tag.code >= 42113}
        return (np.moveaxis(t.asarray(), 0, 2) if apart else t.asarray()).reshape(shape), tags


@given(raster=rasters(), network=st.sampled_from(sorted(NETWORKS)), planar=st.sampled_from(["contig", "separate"]),
       order=st.sampled_from("<>"), tile=st.sampled_from([None, (16, 16)]), codec=st.sampled_from([None, "zlib"]))
@QUIET
def test_any_file(box, raster, network, planar, order, tile, codec):
    a, nodata, _ = raster
    tags = [(65000 + i, "s", 0, f"kept {i}", True) for i in range(5)]
    if nodata is not None: tags.append((42113, "s", 0, repr(nodata), True))
    one, apart = a.shape[2] == 1, planar == "separate"
    pixels = a[..., 0] if one else np.moveaxis(a, 2, 0) if apart else a
    src, dst = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(src, pixels, byteorder=order, photometric="minisblack", planarconfig=None if one else planar,
                     tile=tile, compression=codec, extratags=tags, metadata=None)
    strong = box.cfg.model_copy(update=dict(strength=1.0))
    src.seek(0)
    denoise_file(Denoiser(NETWORKS[network], box.card, strong), src, dst, force=True)
    (before, meant), (after, kept) = (stored(f, apart and not one, a.shape) for f in (src, dst))
    assert meant == kept
    invalid = holds(before, nodata)
    check(before, after, invalid)
    assert not holds(after, nodata)[~invalid].any()
