"TIFF of all types and layouts: read right, written again in the same layout, as independent readers see it"

import io

import numpy as np
import pytest
import tifffile

from agri_cae.io.formats import Meta
from agri_cae.io.tags import Tags
from agri_cae.io.tiff import decode_tiff, encode_tiff
from agri_cae.io.tiffheader import TiffStyle, scan_tiff

DTYPES = ["uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64"]
CODECS = dict(NONE=1, LZW=5, DEFLATE=8, PACKBITS=32773, LZMA=34925, ZSTD=50000)


def values(dtype, shape, rng, bits=0):
    "Values of the whole range of a type, with smooth parts; floats with NaN and infinities"
    if dtype == "bool":
        return rng.random(shape) < 0.3
    kind = np.dtype(dtype)
    if kind.kind == "f":
        a = rng.normal(0, 100, shape).astype(dtype)
        a.flat[:4] = np.nan, np.inf, -np.inf, -0.0
        return a
    high = (1 << bits) - 1 if bits else np.iinfo(dtype).max
    a = rng.integers(0 if bits else np.iinfo(dtype).min, high, shape, dtype, endpoint=True)
    a[: shape[0] // 2] = np.arange(shape[1], dtype=dtype)[None, :, None] % high
    return a


def bits_of(a):
    "The array as unsigned integers, so that NaN and -0 count"
    return np.ascontiguousarray(a).view(f"u{a.itemsize}")


def read(f):
    facts, meta = scan_tiff(f)
    assert facts.problem is None, facts.problem
    return facts, meta, decode_tiff(f, meta.style)


def again(f, valid=None):
    "The file, read and written without a change"
    facts, meta, a = read(f)
    out = io.BytesIO()
    encode_tiff(out, a, meta, facts.bands, valid)
    return out


def layout(f):
    "What of a file says how it is laid out, as tifffile reads it"
    f.seek(0)
    with tifffile.TiffFile(f) as t:
        p = t.pages[0]
        return dict(
            compression=int(p.compression),
            predictor=int(p.predictor),
            planar=int(p.planarconfig),
            photometric=int(p.photometric),
            tile=(p.tilewidth, p.tilelength) if p.is_tiled else p.rowsperstrip,
            extra=tuple(map(int, p.extrasamples)),
            bits=p.bitspersample,
            form=int(p.sampleformat),
            order=t.byteorder,
            big=t.is_bigtiff,
            pages=[(q.subfiletype, q.shape[:2]) for q in t.pages],
        )


def drawn(count, seed):
    "Seeded combinations of type, layout and coding"
    rng = np.random.default_rng(seed)
    pick = rng.choice
    for i in range(count):
        dtype = DTYPES[i % len(DTYPES)]
        codec = str(pick(list(CODECS)))
        pred = [1] if codec in ("NONE", "PACKBITS") else [1, 2, 3] if dtype[0] == "f" else [1, 2]
        if dtype == "float16":
            pred = [p for p in pred if p != 2]
        yield dict(
            dtype=dtype,
            order=str(pick(["<", ">"])),
            big=bool(pick([0, 1])),
            planar=int(pick([1, 2])),
            tile=bool(pick([0, 1])),
            codec=codec,
            predictor=int(pick(pred)),
            samples=int(pick([1, 2, 3, 4, 5, 7, 16])),
            seed=i,
        )


def name(v):
    return "-".join(str(x) for x in v.values())


def style_of(v, a):
    n = a.shape[2]
    return TiffStyle(
        a.shape[1::-1],
        n,
        n,
        a.dtype.name,
        photometric=2 if n == 3 else 1,
        compression=CODECS[v["codec"]],
        predictor=v["predictor"],
        planar=v["planar"] if n > 1 else 1,
        tile=(32, 16) if v["tile"] else (0, 0),
        rows=0 if v["tile"] else 7,
        extra_samples=() if n in (1, 3) else (0,) * (n - 1),
        order=v["order"],
        big=v["big"],
    )


@pytest.mark.parametrize("v", list(drawn(72, 0)), ids=name)
@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_gdal_writes_and_reads(v, tmp_path):
    "GDAL's file is read right; what is written from it GDAL reads right, in the same layout"
    rasterio = pytest.importorskip("rasterio")
    rng = np.random.default_rng(v["seed"])
    a = values(v["dtype"], (37, 53, v["samples"]), rng)
    kind = "float32" if v["dtype"] == "float16" else v["dtype"]
    how = dict(
        driver="GTiff",
        width=53,
        height=37,
        count=v["samples"],
        dtype=kind,
        COMPRESS=v["codec"],
        BIGTIFF="YES" if v["big"] else "NO",
        ENDIANNESS="BIG" if v["order"] == ">" else "LITTLE",
        INTERLEAVE="BAND" if v["planar"] == 2 else "PIXEL",
    )
    if v["tile"]:
        how |= dict(TILED="YES", BLOCKXSIZE=32, BLOCKYSIZE=16)
    else:
        how["BLOCKYSIZE"] = 7
    if v["predictor"] > 1:
        how["PREDICTOR"] = v["predictor"]
    if v["dtype"] == "float16":
        how["NBITS"] = 16
    path, copy = tmp_path / "a.tif", tmp_path / "b.tif"
    with rasterio.open(path, "w", **how) as d:
        d.write(np.moveaxis(a, 2, 0).astype(kind))
    with open(path, "rb") as f:
        facts, _, got = read(f)
        assert (got.dtype.name, facts.dtype) == (v["dtype"],) * 2
        assert np.array_equal(bits_of(got), bits_of(a))
        out = again(f)
        before = layout(f)
    assert layout(out) == before
    copy.write_bytes(out.getvalue())
    with rasterio.open(path) as d, rasterio.open(copy) as e:
        assert np.array_equal(bits_of(d.read()), bits_of(e.read()))
        assert e.profile == d.profile


@pytest.mark.parametrize("v", list(drawn(36, 1)), ids=name)
def test_tifffile_reads(v):
    "What is written in any layout tifffile reads right, as far as it can without further packages"
    v |= dict(codec="DEFLATE" if v["codec"] != "NONE" else "NONE")
    a = values(v["dtype"], (37, 53, v["samples"]), np.random.default_rng(v["seed"]))
    style, out = style_of(v, a), io.BytesIO()
    meta = Meta(tags=Tags(v["order"]), style=style)
    encode_tiff(out, a, meta, a.shape[2])
    got = decode_tiff(out, scan_tiff(out)[1].style)
    assert np.array_equal(bits_of(got), bits_of(a))
    if v["predictor"] == 1:
        out.seek(0)
        b = tifffile.imread(out).reshape((a.shape[2], 37, 53) if style.planar == 2 else a.shape)
        assert np.array_equal(bits_of(np.moveaxis(b, 0, 2) if style.planar == 2 else b), bits_of(a))
