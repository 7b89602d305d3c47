"""TIFFs that only GDAL decodes: read with rasterio, refused by name without it."""

import io
import sys

import numpy as np
import pytest

from agri_cae.config import ConfigError
from agri_cae.io import geo
from agri_cae.io.geo import BY_GDAL, decode_by_gdal, gdal_problem
from agri_cae.io.tiffheader import scan_tiff


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
    assert scan_tiff(f)[1].style.compression in BY_GDAL
    got = decode_by_gdal(f)
    assert got.dtype == dtype and np.array_equal(got, a)


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
