"""TIFFs that only GDAL decodes: read with rasterio, refused by name without it."""

import io
import sys

import numpy as np
import pytest

from agri_cae.config import ConfigError
from agri_cae.io import geo
from agri_cae.io.geo import BY_GDAL, decode_by_gdal, decode_map, encode_map, gdal_problem, scan_map
from agri_cae.io.tiffpixels import decode_validity


def written(rasterio, a, **how):
    "The bytes of a TIFF that GDAL wrote"
    shape = dict(driver="GTiff", width=a.shape[1], height=a.shape[0], count=a.shape[2], dtype=a.dtype.name)
    with rasterio.MemoryFile() as memory:
        with memory.open(**shape, **how) as d:
            d.write(np.moveaxis(a, -1, 0))
        return io.BytesIO(memory.read())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype, bands, how", [
    ("uint8", 3, dict(compress="lerc")),
    ("uint16", 5, dict(compress="lerc_zstd", tiled=True, blockxsize=64, blockysize=64, interleave="band")),
    ("float64", 1, dict(compress="lerc_deflate", bigtiff="YES")),
    ("uint8", 4, dict(compress="webp", webp_lossless=True)),
    ("uint8", 1, dict(compress="ccittfax4", nbits=1)),
])  # fmt: skip
def test_what_gdal_wrote_is_read(dtype, bands, how):
    rasterio = pytest.importorskip("rasterio")
    top = 2 if "nbits" in how else 255
    a = np.random.default_rng(bands).integers(0, top, (70, 90, bands)).astype(dtype)
    f = written(rasterio, a, **how)
    facts, meta = scan_map(f)
    got = decode_map(f, meta.style)
    assert got.dtype == meta.style.dtype == ("bool" if "nbits" in how else dtype) and np.array_equal(got, a)
    assert facts.problem is None and "is written with deflate" in meta.warnings[0]
    out = io.BytesIO()
    encode_map(out, got, meta, facts.bands)
    facts, meta = scan_map(out)
    assert facts.compression == "deflate" and np.array_equal(decode_map(out, meta.style), a)


@pytest.mark.filterwarnings("ignore")
def test_what_is_white_where_zero_is_stored():
    rasterio = pytest.importorskip("rasterio")
    a = np.random.default_rng(0).integers(0, 2, (33, 50, 1)).astype("uint8")
    f = written(rasterio, a, compress="ccittfax4", nbits=1, photometric="miniswhite")
    assert np.array_equal(decode_map(f, scan_map(f)[1].style), a == 0)


@pytest.mark.filterwarnings("ignore")
def test_tags_masks_and_overviews_of_a_lerc_file_survive(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    a = np.random.default_rng(0).integers(1, 255, (70, 90, 3)).astype("uint8")
    mask = np.where(np.hypot(*np.mgrid[-35:35, -45:45]) < 30, np.uint8(255), np.uint8(0))
    path, place = tmp_path / "a.tif", rasterio.Affine(2, 0, 600_000, 0, -2, 5_000_000)
    how = dict(driver="GTiff", width=90, height=70, count=3, dtype="uint8", crs="EPSG:32633", transform=place)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", compress="lerc", tiled=True, blockxsize=32, blockysize=32, nodata=0, **how) as d,
    ):
        d.write(np.moveaxis(a, -1, 0))
        d.write_mask(mask)
        d.update_tags(note="kept")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as d:
        d.build_overviews([2], rasterio.enums.Resampling.average)
    with open(path, "rb") as f, open(tmp_path / "b.tif", "wb") as g:
        facts, meta = scan_map(f)
        assert np.array_equal(decode_validity(f, meta.style), mask > 0)
        encode_map(g, decode_map(f, meta.style) // 2, meta, facts.bands)
    with rasterio.open(path) as x, rasterio.open(tmp_path / "b.tif") as y:
        assert np.array_equal(y.read(), x.read() // 2) and np.array_equal(x.dataset_mask(), y.dataset_mask())
        assert (x.crs, x.transform, x.nodata) == (y.crs, y.transform, y.nodata) and y.tags() == x.tags()
        assert x.overviews(1) == y.overviews(1) == [2] and y.block_shapes == x.block_shapes


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_in_one_sentence():
    rasterio = pytest.importorskip("rasterio")
    a = np.random.default_rng(0).integers(0, 255, (70, 90, 3)).astype("uint8")
    whole = written(rasterio, a, compress="lerc").getvalue()
    for wrong in (whole[:-500], whole[:300], b"GIF89a" + whole[6:], b""):
        with pytest.raises(ValueError, match="the pixels cannot be decoded by GDAL"):
            decode_by_gdal(io.BytesIO(wrong))


def test_without_rasterio_the_compression_and_the_remedy_are_named(monkeypatch):
    monkeypatch.setattr(geo, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "rasterio", None)  # an import fails
    for code, name in BY_GDAL.items():
        what, do = gdal_problem(code)
        assert name in what and "pip install 'agri-cae[geo]'" in do
    with pytest.raises(ConfigError, match=r"agri-cae\[geo\]"):
        decode_by_gdal(io.BytesIO())
    monkeypatch.setattr(geo, "find_spec", lambda name: object())
    assert gdal_problem(34887) is None
