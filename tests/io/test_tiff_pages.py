"Masks, tiles that were never written, nodata, overviews, tags: what a TIFF holds beside its first page's pixels"

import io
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from agri_cae.io.formats import Meta
from agri_cae.io.images import read_image, write_image
from agri_cae.io.tags import Entry, FieldType, GeoTag, LayoutTag, Tag, Tags, number_entry, read_ifd, text_entry, values
from agri_cae.io.tiff import decode_tiff, decode_validity, encode_tiff
from agri_cae.io.tiffheader import TiffStyle, nodata_of, scan_tiff

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
DTYPES = ["uint8", "uint16", "uint32", "int16", "int32", "float32", "float64"]


def picture(dtype, shape, rng):
    "Smooth values with noise, between 100 and 200"
    y = np.linspace(100, 180, shape[0])[:, None, None]
    return (y + rng.random(shape) * 20).astype(dtype)


def scan(f):
    facts, meta = scan_tiff(f)
    assert facts.problem is None, facts.problem
    return facts, meta


def again(f, change=lambda a: a):
    "Facts, pixels, validity; the file written again"
    facts, meta = scan(f)
    a, valid, out = decode_tiff(f, meta.style), decode_validity(f, meta.style), io.BytesIO()
    encode_tiff(out, change(a), meta, facts.bands)
    return facts, meta, a, valid, out


def tiff(f):
    "The file as tifffile reads it"
    f.seek(0)
    return tifffile.TiffFile(f)


def pages(f):
    with tiff(f) as t:
        return [(int(p.subfiletype), p.shape, int(p.compression), int(p.photometric), p.is_tiled) for p in t.pages]


def masked(rng, shape=(120, 90), n=3, dtype="uint8", order="<", big=False, tile=(32, 32), codec=8, bits=1, **more):
    "A file with a mask, made by the library; and its mask"
    a, valid = picture(dtype, (*shape, n), rng), rng.random(shape) < 0.6
    size = shape[::-1]
    mask = TiffStyle(
        size, 1, 1, "bool" if bits else "uint8", bits=bits, photometric=4, tile=tile, subfile=4, rows=11, order=order
    )
    style = TiffStyle(
        size,
        n,
        n,
        dtype,
        photometric=2 if n == 3 else 1,
        compression=codec,
        tile=tile,
        rows=11,
        extra_samples=() if n in (1, 3) else (0,) * (n - 1),
        order=order,
        big=big,
        mask=mask,
        **more,
    )
    out = io.BytesIO()
    encode_tiff(out, a, Meta(tags=Tags(order), style=style), n, valid)
    return out, a, valid


@pytest.mark.parametrize("bits", [1, 0])
@pytest.mark.parametrize("order, big, tile", [("<", False, (32, 32)), (">", True, (0, 0)), (">", False, (16, 48))])
def test_masks(bits, order, big, tile):
    rng = np.random.default_rng(bits)
    f, a, valid = masked(rng, order=order, big=big, tile=tile, bits=bits)
    before = pages(f)
    assert [p[0] for p in before] == [0, 4]
    with tiff(f) as t:
        assert np.array_equal(t.pages[1].asarray() > 0, valid)
    facts, _, got, found, out = again(f, lambda a: a + 1)
    assert facts.mask and np.array_equal(got, a) and np.array_equal(found, valid)
    assert pages(out) == before
    facts, meta, got, found, _ = again(out)
    assert np.array_equal(got, a + 1) and np.array_equal(found, valid)
    assert meta.style.mask.stored == scan(f)[1].style.mask.stored


@pytest.mark.parametrize("codec", ["LZW", "DEFLATE", "ZSTD", "JPEG"])
@pytest.mark.parametrize("shape", [(120, 90), (121, 67)])
def test_masks_and_overviews_of_gdal(codec, shape, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.enums import Resampling

    rng, path, copy = np.random.default_rng(shape[1]), tmp_path / "a.tif", tmp_path / "b.tif"
    a = picture("uint8", (*shape, 3), rng)
    mask = np.where(rng.random((-(-shape[0] // 8), -(-shape[1] // 8))) < 0.6, 255, 0).repeat(8, 0).repeat(8, 1)
    mask = mask[: shape[0], : shape[1]].astype("uint8")
    how = dict(driver="GTiff", width=shape[1], height=shape[0], count=3, dtype="uint8", COMPRESS=codec)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(path, "w", **how, TILED=True, BLOCKXSIZE=32, BLOCKYSIZE=32) as d:
            d.write(np.moveaxis(a, 2, 0))
            d.write_mask(mask)
        with rasterio.open(path, "r+") as d:
            d.build_overviews([2, 4], Resampling.average)
    with open(path, "rb") as f:
        before, (facts, _, _, valid, out) = pages(f), again(f)
    assert sorted(pages(out)) == sorted(before)
    assert facts.overviews == 2 and np.array_equal(valid, mask > 0)
    copy.write_bytes(out.getvalue())
    with rasterio.open(path) as d, rasterio.open(copy) as e:
        assert np.array_equal(d.read_masks(), e.read_masks()) and d.overviews(1) == e.overviews(1) == [2, 4]
        for k in (2, 4):
            small = dict(out_shape=(3, -(-shape[0] // k), -(-shape[1] // k)))
            x, y, known = d.read(**small), e.read(**small), d.read_masks(**small) > 0
            assert np.array_equal(d.read_masks(**small), e.read_masks(**small))
            off = np.abs(x.astype(int) - y)[known]
            whole = shape[0] % k == shape[1] % k == 0
            assert off.mean() < (8 if codec == "JPEG" else 2)
            if whole and codec != "JPEG":
                assert off.max() <= 1  # elsewhere GDAL weighs parts of pixels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nodata", ["0", "120", "nan", None])
@pytest.mark.parametrize("planar", [1, 2])
def test_tiles_that_were_never_written(dtype, nodata, planar):
    rng = np.random.default_rng(len(dtype))
    a = picture(dtype, (50, 70, 3), rng)
    tags = Tags("<", {GeoTag.GDAL_NODATA: text_entry(nodata)} if nodata else {})
    value = nodata_of(nodata, dtype)
    a[:16, 16:32] = a[48:, 64:] = 0 if value is None else value
    a[16:32, :16, 1] = 0 if value is None else value
    counts = np.ones((3, 4, 5), int)
    counts[:, 0, 1] = counts[:, 3, 4] = counts[1, 1, 0] = 0
    counts = counts if planar == 2 else counts.min(0)
    counts = tuple(counts.ravel().tolist())
    style = TiffStyle((70, 50), 3, 3, dtype, tile=(16, 16), planar=planar, counts=counts, nodata=value)
    f = io.BytesIO()
    encode_tiff(f, a, Meta(tags=tags, style=style), 3)
    style = scan(f)[1].style
    holes = np.array(style.counts) == 0
    assert holes.sum() == (7 if planar == 2 else 2)  # the hole in the middle is one of band 2 alone
    _, _, got, valid, out = again(f)
    assert np.array_equal(got, a, equal_nan=dtype[0] == "f")
    want = np.ones(a.shape, bool)
    want[:16, 16:32] = want[48:, 64:] = False
    if planar == 2:
        want[16:32, :16, 1] = False
    assert np.array_equal(valid, want if planar == 2 else want[..., 0])
    assert ((np.array(scan(out)[1].style.counts) == 0) == holes).all()
    out = again(f, lambda a: a + 1)[-1]  # what was written into a hole is kept
    assert all(scan(out)[1].style.counts) or (value is not None and np.isnan(value))
    if not (value is not None and np.isnan(value)):
        assert np.array_equal(decode_tiff(out, scan(out)[1].style), a + 1)


def test_sparse_files_of_gdal(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.windows import Window

    for i, (dtype, nodata) in enumerate([("uint8", 255), ("int16", -9999), ("float32", np.nan), ("uint16", None)]):
        path, copy = tmp_path / f"{i}.tif", tmp_path / f"{i}b.tif"
        how = dict(driver="GTiff", width=90, height=70, count=2, dtype=dtype, nodata=nodata, TILED=True)
        with rasterio.open(path, "w", **how, BLOCKXSIZE=32, BLOCKYSIZE=32, SPARSE_OK=True, COMPRESS="ZSTD") as d:
            part = picture(dtype, (32, 32, 2), np.random.default_rng(i))
            d.write(np.moveaxis(part, 2, 0), window=Window(32, 32, 32, 32))
        with open(path, "rb") as f:
            _, meta, a, valid, out = again(f)
        copy.write_bytes(out.getvalue())
        with rasterio.open(path) as d, rasterio.open(copy) as e:
            assert np.array_equal(np.moveaxis(a, 2, 0), d.read(), equal_nan=dtype[0] == "f")
            assert np.array_equal(d.read(), e.read(), equal_nan=dtype[0] == "f")
            assert e.read_masks().tolist() == d.read_masks().tolist()
            if nodata is not None:
                assert np.array_equal(valid, d.dataset_mask() > 0)
        assert valid.sum() == 32 * 32
        assert [n > 0 for n in scan(out)[1].style.counts] == [n > 0 for n in meta.style.counts]


@pytest.mark.parametrize(
    "text, dtype, value",
    [
        ("0", "uint8", 0),
        (" 255 ", "uint8", 255),
        ("-9999", "uint8", None),
        ("256", "uint8", None),
        ("-9999.0", "int16", -9999),
        ("1.5", "int16", None),
        ("nan", "int16", None),
        ("4294967295", "uint32", 2**32 - 1),
        ("-1", "uint32", None),
        ("-3.4028e+38", "float32", -3.4028e38),
        ("-3.40282346638528898e+38", "float32", float(np.finfo("f4").min)),
        ("-1.7976931348623157e+308", "float32", None),
        ("-1.7976931348623157e+308", "float64", float(np.finfo("f8").min)),
        ("1e+20", "float16", None),
        ("inf", "float32", np.inf),
        ("none", "float32", None),
        ("", "uint8", None),
        ("1", "bool", 1),
        ("2", "bool", None),
    ],
)
def test_nodata(text, dtype, value):
    assert nodata_of(text, dtype) == value
    a = np.zeros((4, 5, 1), dtype)
    f, raw = io.BytesIO(), text.encode() + b"\0"
    encode_tiff(f, a, Meta(tags=Tags("<", {GeoTag.GDAL_NODATA: Entry(FieldType.ASCII, len(raw), raw)})), 1)
    _, meta, _, _, out = again(f)
    assert meta.style.nodata == value
    assert scan(out)[1].tags[GeoTag.GDAL_NODATA].raw == raw  # byte by byte


def test_nodata_of_nan():
    assert np.isnan(nodata_of("NaN", "float16")) and nodata_of(None, "uint8") is None


@pytest.mark.parametrize("dtype, bits", [("bool", 1), ("uint8", 3), ("uint8", 8), ("uint16", 12), ("uint16", 16)])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("planar", [1, 2])
def test_white_is_zero(dtype, bits, alpha, planar):
    "Grey is turned, nodata with it; alpha stays"
    n, rng, top = 1 + alpha, np.random.default_rng(bits), (1 << bits) - 1
    stored = rng.integers(0, top, (20, 30, n), endpoint=True).astype(dtype)
    extra = (2,) if alpha else ()
    small = bits if bits % 8 else 0
    style = TiffStyle((30, 20), n, 1, dtype, small, 1, extra_samples=extra, planar=planar, present=frozenset([338]))
    f = io.BytesIO()
    meta = Meta(tags=Tags("<", {GeoTag.GDAL_NODATA: text_entry("1")}), style=style)
    encode_tiff(f, stored, meta, 1)
    tags = scan(f)[1]
    raw = decode_tiff(f, tags.style)
    white = decode_tiff(f, replace(tags.style, photometric=0))
    assert np.array_equal(raw, stored)
    assert np.array_equal(white[..., 0], ~stored[..., 0] if dtype == "bool" else top - stored[..., 0])
    assert np.array_equal(white[..., 1:], stored[..., 1:])
    out = io.BytesIO()
    encode_tiff(out, white, Meta(tags=meta.tags, style=replace(tags.style, photometric=0)), 1)
    _, again_ = scan(out)
    assert again_.style.nodata == top - 1
    assert np.array_equal(decode_tiff(out, again_.style), white)
    assert np.array_equal(decode_tiff(out, replace(again_.style, photometric=1)), stored)


@pytest.mark.parametrize(
    "extra, bands, order",
    [
        ((2, 0), 4, [0, 1, 2, 4, 3]),
        ((0, 1), 4, [0, 1, 2, 3, 4]),
        ((0, 0), 5, [0, 1, 2, 3, 4]),
        ((1, 2), 4, [0, 1, 2, 4, 3]),
    ],
)
@pytest.mark.parametrize("planar", [1, 2])
def test_alpha_and_other_bands(extra, bands, order, planar):
    "Alpha is the last band of the array, wherever it lies in the file"
    stored = picture("uint16", (30, 40, 5), np.random.default_rng(bands))
    f = io.BytesIO()
    kind = "separate" if planar == 2 else "contig"
    data = np.moveaxis(stored, 2, 0) if planar == 2 else stored
    tifffile.imwrite(f, data, photometric="rgb", planarconfig=kind, extrasamples=extra, metadata=None)
    facts, _, a, _, out = again(f)
    assert (facts.bands, facts.alpha, facts.premultiplied) == (bands, bands == 4, extra in ((0, 1), (1, 2)))
    assert np.array_equal(a, stored[..., order])
    with tiff(out) as t:
        assert tuple(map(int, t.pages[0].extrasamples)) == extra
        assert np.array_equal(t.asarray(), data)


@pytest.mark.parametrize("bits", [*range(1, 8), *range(9, 16)])
def test_packed_bits(bits, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    dtype, rng = "uint8" if bits < 8 else "uint16", np.random.default_rng(bits)
    a = rng.integers(0, (1 << bits) - 1, (2, 21, 33), dtype, endpoint=True)
    path, copy = tmp_path / "a.tif", tmp_path / "b.tif"
    how = dict(
        TILED=bool(bits % 2),
        COMPRESS=str(rng.choice(["NONE", "LZW", "DEFLATE"])),
        INTERLEAVE=str(rng.choice(["BAND", "PIXEL"])),
    )
    with rasterio.open(path, "w", driver="GTiff", width=33, height=21, count=2, dtype=dtype, NBITS=bits, **how) as d:
        d.write(a)
    with open(path, "rb") as f:
        facts, _, got, _, out = again(f)
    assert facts.bits == bits and np.array_equal(np.moveaxis(got, 2, 0), a)
    copy.write_bytes(out.getvalue())
    with rasterio.open(copy) as e:
        assert np.array_equal(e.read(), a) and e.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == str(bits)


def test_bits_in_reverse():
    "FillOrder 2"
    a = np.random.default_rng(0).random((9, 21, 1)) < 0.5
    packed = np.packbits(a[..., 0], axis=1, bitorder="little")
    f = io.BytesIO()
    encode_tiff(f, a, Meta(), 1)
    style = replace(scan(f)[1].style, reverse=True, compression=1, offsets=(0,), counts=(packed.size,), rows=9)
    assert np.array_equal(decode_tiff(io.BytesIO(packed.tobytes()), style), a)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_palettes(dtype):
    a = np.random.default_rng(1).integers(0, 5, (20, 30)).astype(dtype)
    table = np.random.default_rng(2).integers(0, 65535, (3, 256 if dtype == "uint8" else 65536), "uint16")
    f = io.BytesIO()
    tifffile.imwrite(f, a, photometric="palette", colormap=table, metadata=None)
    facts, _, got, _, out = again(f)
    assert facts.palette and facts.bands == 1 and np.array_equal(got[..., 0], a)
    with tiff(out) as t:
        assert np.array_equal(t.pages[0].colormap, table) and np.array_equal(t.pages[0].asarray(), a)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("below", [False, True])
def test_overviews(dtype, below):
    "Averages of valid pixels, in the layout of the old ones, behind the first page or below it"
    rng = np.random.default_rng(7)
    a = picture(dtype, (48, 64, 1), rng)
    f, old = io.BytesIO(), [np.zeros((48 // k, 64 // k), dtype) for k in (2, 4)]
    with tifffile.TiffWriter(f) as t:
        how = dict(photometric="minisblack", metadata=None, tile=(16, 16))
        nodata = (42113, "s", 0, "150", True)
        t.write(a[..., 0], subifds=2 if below else 0, extratags=[nodata], **how)
        for o in old:
            t.write(o, subfiletype=1, compression="zlib", **how)
    a[:16, :30] = 150
    facts, meta, _, _, out = again(f, lambda _: a)
    assert facts.overviews == 2 and meta.style.below == below
    with tiff(out) as t:
        small = [*t.pages[0].pages] if below else t.pages[1:]
        assert [(int(p.subfiletype), p.is_tiled, int(p.compression)) for p in small] == [(1, True, 8)] * 2
        for k, p in zip((2, 4), small, strict=True):
            blocks = a[..., 0].astype(float).reshape(48 // k, k, 64 // k, k)
            known = blocks != 150
            want = (blocks * known).sum((1, 3)) / np.maximum(known.sum((1, 3)), 1)
            got = p.asarray().astype(float)
            inside = known.any((1, 3))
            assert np.abs(got - want)[inside].max() <= (1e-3 if dtype[0] == "f" else 1)
            assert (got[~inside] == 150).all() and (got[inside] != 150).all()
    assert scan(out)[0].overviews == 2


def test_overviews_of_names_are_not_averaged():
    a = np.random.default_rng(1).choice([0, 9], (32, 32)).astype("uint8")
    f = io.BytesIO()
    with tifffile.TiffWriter(f) as t:
        how = dict(photometric="palette", colormap=np.zeros((3, 256), "uint16"), metadata=None)
        t.write(a, **how)
        t.write(a[::2, ::2], subfiletype=1, **how)
    out = again(f)[-1]
    with tiff(out) as t:
        assert set(np.unique(t.pages[1].asarray())) == {0, 9}


def test_previews_of_another_kind_go_with_a_warning():
    f = io.BytesIO()
    with tifffile.TiffWriter(f) as t:
        t.write(np.zeros((40, 60), "uint16"), photometric="minisblack", metadata=None)
        t.write(np.zeros((8, 12, 3), "uint8"), photometric="rgb", subfiletype=1, metadata=None)
    _, meta, _, _, out = again(f)
    assert meta.warnings == ("pages of another kind inside the file are left out (1)",)
    assert len(pages(out)) == 1


def raw(**how):
    f = io.BytesIO()
    with tifffile.TiffWriter(f) as t:
        t.write(np.zeros((20, 30, 3), "uint8"), photometric="rgb", metadata=None, **how)
    return f


def test_camera_raw_is_refused():
    "By its version tag, by a mosaic below, by a preview in front, by Canon's mark"
    dng = raw(extratags=[(50706, "B", 4, (1, 4, 0, 0), True)])
    nef, arw = io.BytesIO(), io.BytesIO()
    for f, kind in ((nef, 0), (arw, 1)):
        with tifffile.TiffWriter(f) as t:
            t.write(np.zeros((9, 9, 3), "uint8"), photometric="rgb", subifds=1, subfiletype=kind, metadata=None)
            t.write(np.zeros((50, 50), "uint16"), photometric="minisblack" if kind else 32803, metadata=None)
    data = raw().getvalue()
    at = struct.unpack_from("<I", data, 4)[0]
    size = 2 + 12 * struct.unpack_from("<H", data, at)[0] + 4
    cr2 = data[:4] + struct.pack("<I", len(data)) + b"CR\2\0" + data[12:] + data[at : at + size]
    for f in (dng, nef, arw, io.BytesIO(cr2)):
        assert scan_tiff(f)[0].problem[0] == "is a camera raw file"


def test_what_is_refused_by_name():
    two = io.BytesIO()
    with tifffile.TiffWriter(two) as t:
        for _ in range(2):
            t.write(np.zeros((20, 30), "uint8"), photometric="minisblack", metadata=None)
    below = io.BytesIO()
    with tifffile.TiffWriter(below) as t:
        t.write(np.zeros((20, 30), "uint8"), subifds=1, photometric="minisblack", metadata=None)
        t.write(np.zeros((20, 30), "uint8"), photometric="minisblack", metadata=None)
    found = {}
    for what in ("complex64", "complex128", "int64", "uint64"):
        f = io.BytesIO()
        tifffile.imwrite(f, np.zeros((20, 30), what), photometric="minisblack", metadata=None)
        found[what] = scan_tiff(f)[0].problem[0]
    f = io.BytesIO()
    tifffile.imwrite(f, np.zeros((20, 30, 17), "uint8"), photometric="minisblack", planarconfig="contig", metadata=None)
    found["bands"] = scan_tiff(f)[0].problem[0]
    assert found == dict(
        complex64="holds complex numbers, as radar does",
        complex128="holds complex numbers, as radar does",
        int64="has 64 bits per band of a kind that is not read",
        uint64="has 64 bits per band of a kind that is not read",
        bands="is a raster of 17 bands, more than 16",
    )
    assert scan_tiff(two)[0].problem[0].startswith("holds several pictures")
    assert scan_tiff(below)[0].problem[0] == "holds other pictures in directories below the first"


ITEMS = """<GDALMetadata>
  <Item name="AREA_OR_POINT">Point</Item>
  <Item name="STATISTICS_MAXIMUM" sample="0">255</Item>
  <Item sample="1" name='STATISTICS_VALID_PERCENT'>100</Item>
  <Item name="STATISTICS_NOTHING" sample="0"/>
  <Item name="OFFSET" sample="0" role="offset">-0.2</Item>
  <Item name="DESCRIPTION" sample="0" role="description">STATISTICS_MEAN of red &amp; green</Item>
  <Item name="MY_STATISTICS_NOTE">kept</Item>
</GDALMetadata>
"""


@pytest.mark.parametrize("order, big", [("<", False), (">", False), ("<", True), (">", True)])
def test_tags(order, big):
    "40 private tags of all types, GeoTIFF keys, Exif, GPS, XMP, ICC: none is lost; statistics go"
    rng = np.random.default_rng(4)
    kinds = [k for k in FieldType if k not in (FieldType.ASCII, FieldType.IFD, FieldType.IFD8) and (big or k < 14)]
    tags = Tags(order)
    for i in range(40):
        kind = kinds[i % len(kinds)]
        size = len(number_entry(kind, *([0] * (2 if "RATIONAL" in kind.name else 1))).raw)
        count = int(rng.integers(1, 9))
        tags[65000 + i] = Entry(kind, count, rng.bytes(size * count))
    tags[34264] = number_entry(FieldType.DOUBLE, *range(16), order=order)
    tags[50844] = number_entry(FieldType.DOUBLE, *range(92), order=order)  # RPC
    tags[Tag.Orientation] = number_entry(FieldType.SHORT, 6, order=order)
    tags[GeoTag.GDAL_METADATA] = Entry(FieldType.ASCII, len(ITEMS) + 1, ITEMS.encode() + b"\0")
    tags[LayoutTag.MinSampleValue] = number_entry(FieldType.SHORT, 3, order=order)
    tags[Tag.ExifIFD] = Tags(order, {Tag.LensModel: text_entry("f/2.8"), Tag.MakerNote: Entry(7, 900, rng.bytes(900))})
    tags[Tag.GPSIFD] = Tags(order, {2: number_entry(FieldType.RATIONAL, 52, 1, 3, 1, 7, 2, order=order)})
    style = TiffStyle((30, 20), 1, 1, "int16", photometric=1, order=order, big=big)
    f, meta = io.BytesIO(), Meta(tags=tags, xmp=b"<x:xmpmeta/>" * 9, icc=rng.bytes(300), style=style)
    encode_tiff(f, np.zeros((20, 30, 1), "int16"), meta, 1)
    kept, after = scan(f)[1], scan(again(f)[-1])[1]
    assert after.tags == kept.tags and (after.xmp, after.icc) == (meta.xmp, meta.icc)
    assert {c: t for c, t in after.tags.items() if c != GeoTag.GDAL_METADATA} == {
        c: t for c, t in tags.items() if c not in (GeoTag.GDAL_METADATA, LayoutTag.MinSampleValue)
    }
    text = values(after.tags, GeoTag.GDAL_METADATA)[0]
    lines = [line for line in ITEMS.splitlines() if 'name="STATISTICS' not in line and "'STATISTICS" not in line]
    assert text.splitlines() == lines


def test_a_header_alone_does_not_take_memory():
    "Many pages that all point at the same values; huge counts"
    entry = struct.pack("<HHII", 65000, 7, 200_000, 8)
    page = struct.pack("<H", 2) + struct.pack("<HHII", 254, 4, 1, 1) + entry
    data, at = b"II*\0" + struct.pack("<I", 8), 8
    data += struct.pack("<H", 3) + struct.pack("<HHIIHHII", 256, 4, 1, 8, 257, 4, 1, 8) + entry
    for _ in range(200):
        at = len(data) + 4
        data += struct.pack("<I", at) + page
    data += bytes(4) + bytes(200_000)
    tracemalloc.start()
    scan_tiff(io.BytesIO(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_small_files_that_ask_for_much():
    "Directories that overlap, many tiles made of one block, tiles of one pixel, a width that is no number"
    page = struct.pack("<H", 50) + struct.pack("<HHII", 65000, 3, 1, 0) * 50 + bytes(4)
    budget = [len(page)]
    read_ifd(io.BytesIO(page), 0, "<", budget=budget)
    with pytest.raises(ValueError, match="overlap"):
        read_ifd(io.BytesIO(page), 0, "<", budget=budget)
    block = zlib.compress(bytes(4096 * 4096))
    style = TiffStyle((1, 204_800), 1, 1, "uint8", tile=(4096, 4096), offsets=(0,) * 50, counts=(len(block),) * 50)
    with pytest.raises(ValueError, match="larger than the picture"):
        decode_tiff(io.BytesIO(block), style)
    with pytest.raises(ValueError, match="parts of the image are missing"):
        decode_tiff(io.BytesIO(block), replace(style, size=(30_000, 30_000), tile=(1, 1)))
    nan = struct.pack("<H", 1) + struct.pack("<HHIf", 256, 11, 1, np.nan) + bytes(4)
    with pytest.raises(ValueError, match="holds no number"):
        scan_tiff(io.BytesIO(b"II*\0\x08\0\0\0" + nan))


def test_overviews_with_impossible_tiles_take_the_layout_of_the_picture():
    f = io.BytesIO()
    with tifffile.TiffWriter(f) as t:
        how = dict(photometric="minisblack", metadata=None, tile=(16, 16))
        t.write(np.zeros((32, 32), "uint8"), **how)
        t.write(np.zeros((16, 16), "uint8"), subfiletype=1, **how)
    with tiff(f) as t:
        at = t.pages[1].tags[322].offset
    data = bytearray(f.getvalue())
    data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, 1 << 28)  # the tile's width
    _, meta, _, _, out = again(io.BytesIO(data))
    assert meta.style.overviews[0].tile == (16, 16)
    assert [p[:2] for p in pages(out)] == [(0, (32, 32)), (1, (16, 16))]


@pytest.mark.parametrize("nodata", [0, 255, None])
def test_nodata_in_jpeg_stays(tmp_path, nodata):
    "JPEG would change the values at the edge: then the result is compressed without loss, overviews too, and says so"
    rasterio = pytest.importorskip("rasterio")
    a = np.random.default_rng(0).integers(20, 230, (3, 128, 160), np.uint8)
    a[:, :50] = nodata or 0
    how = dict(driver="GTiff", width=160, height=128, count=3, dtype="uint8", nodata=nodata, compress="jpeg",
               photometric="ycbcr", tiled=True, blockxsize=64, blockysize=64)
    with rasterio.open(tmp_path / "a.tif", "w", transform=rasterio.transform.from_origin(0, 0, 1, 1), **how) as f:
        f.write(a)
        f.build_overviews([2])
    before = read_image(tmp_path / "a.tif")
    write_image(before.with_data(np.where(before.data == (nodata or 0), before.data, 100)), tmp_path / "b.tif")
    after = read_image(tmp_path / "b.tif")
    with rasterio.open(tmp_path / "b.tif") as f: kind = f.profile["compress"], f.overviews(1)
    assert kind == ("jpeg" if nodata is None else "deflate", [2])
    assert any("JPEG would change" in w for w in before.warnings) == (nodata is not None)
    if nodata is not None:
        assert ((after.data == nodata) == (before.data == nodata)).all() and not after.warnings
