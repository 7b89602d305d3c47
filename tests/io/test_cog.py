"""Overviews are made from the new pixels, a COG stays a COG, and no tag is lost on the way."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest

from agri_cae.io.formats import Meta
from agri_cae.io.jpeg import jpeg_style
from agri_cae.io.overviews import (
    encode_pyramid,
    read_pages,
    reduced,
    remake_overviews,
    scan_pyramid,
    write_pages,
)
from agri_cae.io.sidecars import tags_without_statistics
from agri_cae.io.tags import FieldType, GeoTag, LayoutTag, Tag, Tags, number_entry, text_entry, values
from agri_cae.io.tiff import decode_tiff, encode_tiff, new_style
from agri_cae.io.tiffheader import Compression, scan_tiff

DTYPES = ["uint8", "uint16", "float32"]


def drawn(height, width, bands, dtype, seed=0):
    "A smooth picture with values from 20 to 220"
    y, x = np.mgrid[:height, :width] / 9
    phase = np.random.default_rng(seed).uniform(0, 6, (bands, 2))
    waves = [np.sin(y + p) + np.sin(x / 2 + q) for p, q in phase]
    return (120 + 50 * np.stack(waves, -1)).astype(dtype)


# ---- smaller pictures
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("size, factor", [((37, 20), 1), ((20, 10), 2), ((10, 6), 4)])
def test_a_pixel_is_the_mean_of_valid_ones(dtype, size, factor):
    rng = np.random.default_rng(factor)
    a = (rng.random((size[1] * factor, size[0] * factor, 2)) * 200 - 50 * (dtype == "int16")).astype(dtype)
    valid = rng.random(a.shape) > 0.4
    small = reduced(a, size, valid)
    blocks = [o.reshape(size[1], factor, size[0], factor, 2).astype(float) for o in (a, valid)]
    n = blocks[1].sum((1, 3))
    mean = (blocks[0] * blocks[1]).sum((1, 3))[n > 0] / n[n > 0]
    if dtype == "bool":
        clear = abs(mean - 0.5) > 1e-3
        assert (small[n > 0][clear] == (mean[clear] > 0.5)).all()
    else:
        assert abs(small[n > 0] - mean).max() <= (0.51 if small.dtype.kind in "iu" else 0.1)
    assert small.dtype == a.dtype and np.isin(small[n == 0], a).all()


@pytest.mark.parametrize("dtype, nodata", [("uint8", 255), ("uint8", 0), ("uint8", 128), ("float32", 128.0)])
def test_no_mean_becomes_nodata_and_nodata_stays(dtype, nodata):
    a = np.full((8, 8, 1), nodata, dtype)
    a[:, 4::2], a[:, 5::2] = (254, 255) if nodata == 255 else (0, 1) if nodata == 0 else (127, 129)
    valid = a != nodata if nodata == 128 else np.arange(8)[None, :, None] >= 4
    small = reduced(a, (4, 4), np.broadcast_to(valid, a.shape), (nodata,))
    assert (small[:, :2] == nodata).all() and (small[:, 2:] != nodata).all()


def test_nan_spreads_to_nothing_and_alpha_counts_everywhere():
    a = np.ones((4, 4, 2), np.float32)
    a[0, 0, 0], a[:2, :2, 1] = np.nan, 0
    small = reduced(a, (2, 2), valid=a[..., 1:] > 0)
    assert np.isfinite(small[..., 1]).all() and small[0, 0, 1] == 0
    small = reduced(a, (2, 2))
    assert np.isfinite(small).all() and (small[..., 0] == 1).all()


# ---- a file of our own: every layout, and tags
def source(a, order="<", cog=True, levels=(2, 4), **style):
    "A file with overviews of zeros, and its `Meta`"
    tags = Tags(order, {code: text_entry(f"tag {code}") for code in range(65000, 65040)})
    tags[Tag.Make] = text_entry("a camera")
    tags[48020] = tags[50714] = number_entry(FieldType.SHORT, 1, 2, 3, order=order)
    tags[Tag.ExifIFD] = Tags(order, {36867: text_entry("2026:05:01 10:00:00")})
    tags[Tag.GPSIFD] = Tags(order, {1: text_entry("S")})
    tags[GeoTag.GDAL_METADATA] = text_entry('<GDALMetadata><Item name="note">x</Item></GDALMetadata>')
    meta = Meta(tags=tags, style=replace(new_style(a, a.shape[2], None), order=order, **style), xmp=b"<x/>", icc=b"icc")
    main = io.BytesIO()
    encode_tiff(main, a, meta)
    pages = read_pages(main)
    for n in levels:
        small = io.BytesIO()
        zeros = np.zeros((-(-a.shape[0] // n), -(-a.shape[1] // n), a.shape[2]), a.dtype)
        encode_tiff(small, zeros, replace(meta, tags=Tags(order), xmp=None, icc=None))
        (page,) = read_pages(small)
        page.tags[LayoutTag.NewSubfileType] = number_entry(FieldType.LONG, 1, order=order)
        pages.append(page)
    f = io.BytesIO()
    write_pages(f, pages, cog)
    return f, scan_tiff(f)[1]


def shown(f, n):
    one = io.BytesIO()
    write_pages(one, read_pages(f)[n : n + 1])
    return decode_tiff(one, scan_tiff(one)[1].style)


def follows_the_rules(f):
    "What readers of a COG rely on"
    raw, pages = f.getvalue(), read_pages(f)
    found = []
    for p in pages:
        offsets, sizes = (values(p.tags, c) for c in (LayoutTag.TileOffsets, LayoutTag.TileByteCounts))
        for at, n in zip(offsets, sizes, strict=True):
            assert (
                int.from_bytes(raw[at - 4 : at], "little") == n and raw[at + n : at + n + 4] == raw[at + n - 4 : at + n]
            )
        assert list(offsets) == sorted(offsets)
        found.append((min(offsets), math.prod(p.size)))
    areas = [area for _, area in sorted(found)]
    assert areas == sorted(areas)  # the smallest first, the picture last
    assert not {p.kind for p in pages[1:]} - {1, 5, 4}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "style",
    [
        dict(tile=(64, 64)),
        dict(tile=(32, 64), compression=Compression.LZW, big=True),
        dict(tile=(64, 32), compression=Compression.ZSTD, planar=2),
        dict(rows=7, compression=Compression.NONE, predictor=1),
    ],
    ids=["deflate", "lzw-big", "zstd-planar", "strips"],
)
def test_any_layout_keeps_its_overviews_and_all_tags(dtype, order, style):
    a = drawn(101, 147, 3, dtype)
    cog = "tile" in style
    f, meta = source(a, order, cog=cog, **style)
    new, out = (a * 0.5).astype(dtype), io.BytesIO()
    encode_pyramid(out, new, meta, scan_pyramid(f))
    assert np.array_equal(shown(out, 0), new)
    for n, size in enumerate([(74, 51), (37, 26)], 1):
        assert np.array_equal(shown(out, n), reduced(new, size))
    if cog:
        follows_the_rules(out)
    after = scan_tiff(out)[1]
    assert after.tags == meta.tags and (after.xmp, after.icc) == (meta.xmp, meta.icc) and len(after.tags) >= 45
    same = ("size", "dtype", "compression", "predictor", "planar", "tile", "rows", "order", "big", "photometric")
    assert [getattr(after.style, k) for k in same] == [getattr(meta.style, k) for k in same]
    assert scan_pyramid(out).cog == cog


@pytest.mark.parametrize("order", "<>")
def test_masks_stay_byte_for_byte(order):
    a = drawn(64, 64, 1, "uint8")
    f, meta = source(a, order, tile=(32, 32))
    pages = read_pages(f)
    for p, kind in ((pages[0], 4), (pages[1], 5)):
        tags = Tags(order, {c: t for c, t in p.tags.items() if c < 34665})
        tags[LayoutTag.NewSubfileType] = number_entry(FieldType.LONG, kind, order=order)
        pages.append(p._replace(tags=tags))
    f = io.BytesIO()
    write_pages(f, pages, cog=True)
    out = io.BytesIO()
    encode_pyramid(out, a // 2, meta, scan_pyramid(f))
    follows_the_rules(out)
    assert [p.kind for p in read_pages(out)] == [0, 1, 1, 4, 5]
    assert [p.segments for p in read_pages(out)[3:]] == [p.segments for p in pages[3:]]


def test_overviews_of_a_picture_of_another_size_keep_their_factor():
    f, meta = source(drawn(100, 60, 1, "uint8"), tile=(32, 32))
    out = io.BytesIO()
    encode_pyramid(out, drawn(60, 100, 1, "uint8"), meta, scan_pyramid(f))
    assert [p.size for p in read_pages(out)] == [(100, 60), (50, 30), (25, 15)]


def test_a_file_without_overviews_stays_plain():
    a = drawn(50, 50, 1, "uint8")
    f, meta = source(a, cog=False, levels=(), tile=(16, 16))
    assert scan_pyramid(f) is None
    plain, out = io.BytesIO(), io.BytesIO()
    encode_tiff(plain, a, meta, 1)
    encode_pyramid(out, a, meta, None)
    assert out.getvalue() == plain.getvalue()


def test_a_broken_announcement_is_not_repeated():
    f, _ = source(drawn(64, 64, 1, "uint8"), tile=(32, 32))
    broken = io.BytesIO(f.getvalue().replace(b"EDITION=NO\n ", b"EDITION=YES\n"))
    assert scan_pyramid(f).cog and not scan_pyramid(broken).cog


def test_cut_files_are_refused():
    f, _ = source(drawn(64, 64, 1, "uint8"), tile=(32, 32))
    for n in (len(f.getvalue()) - 40, 400, 9):
        with pytest.raises(ValueError, match=r"truncated|directory|header"):
            read_pages(io.BytesIO(f.getvalue()[:n]))


def test_statistics_in_the_tags_go():
    xml = '<GDALMetadata><Item name="STATISTICS_MEAN" sample="0">4</Item><Item name="a">b</Item></GDALMetadata>'
    for text, left in ((xml, b'<GDALMetadata><Item name="a">b</Item></GDALMetadata>\0'), ("<broken", b"<broken\0")):
        tags = Tags("<", {GeoTag.GDAL_METADATA: text_entry(text)})
        assert tags_without_statistics(tags)[GeoTag.GDAL_METADATA].raw == left
    assert tags_without_statistics(Tags(">")) == {} and tags_without_statistics(Tags(">")).order == ">"


@pytest.mark.parametrize("planar, bands", [(1, 3), (2, 3), (1, 1)])
def test_overviews_beside(planar, bands):
    a = drawn(90, 70, bands, "uint16")
    f, _ = source(a, tile=(32, 32), planar=planar)
    old = io.BytesIO()
    write_pages(old, read_pages(f)[1:])
    new = io.BytesIO(remake_overviews(old.getvalue(), a))
    assert np.array_equal(shown(new, 0), reduced(a, (35, 45))) and np.array_equal(shown(new, 1), reduced(a, (18, 23)))
    assert all(p.kind == 1 for p in read_pages(new)) and scan_tiff(new)[1].style.planar == planar
    for wrong in (a[..., :1].repeat(2, -1), a.astype("uint8")):
        with pytest.raises(ValueError, match="another kind"):
            remake_overviews(old.getvalue(), wrong)


# ---- as map software sees them
COGS = [
    ("uint8", 3, "DEFLATE", dict(predictor=2), dict()),
    ("uint16", 1, "ZSTD", dict(predictor=2), dict(nodata=0)),
    ("float32", 1, "LZW", dict(), dict(nodata=-9999)),
    ("uint8", 3, "JPEG", dict(quality=85), dict(photometric="rgb")),
    ("uint8", 1, "PACKBITS", dict(bigtiff="YES"), dict()),
]


@pytest.fixture
def rasterio():
    return pytest.importorskip("rasterio")


@pytest.mark.parametrize("dtype, bands, compress, how, more", COGS)
@pytest.mark.filterwarnings("ignore")
def test_map_software_sees_a_cog_with_the_new_pixels(rasterio, tmp_path, dtype, bands, compress, how, more):
    from rasterio.shutil import copy

    a = drawn(230, 301, bands, dtype)
    new = (a * 0.5 + 30).astype(dtype)
    valid = None if "nodata" not in more else np.hypot(*np.mgrid[-100:130, -90:211]) > 60
    if valid is not None:
        a[~valid] = new[~valid] = more["nodata"]
    shape = dict(driver="GTiff", width=301, height=230, count=bands, dtype=dtype, crs="EPSG:32633", **more)
    place = rasterio.Affine(2, 0, 600_000, 0, -2, 5_000_000)

    def cog(name, pixels):
        with rasterio.open(tmp_path / "plain.tif", "w", transform=place, **shape) as d:
            d.write(np.moveaxis(pixels, -1, 0))
            d.update_tags(1, note="kept")
            d.descriptions = [f"band {n}" for n in range(bands)]
        creation = dict(blocksize=128, compress=compress, overview_resampling="average", overview_count=2, **how)
        copy(tmp_path / "plain.tif", tmp_path / name, driver="COG", **creation)
        return tmp_path / name

    old, wanted = cog("old.tif", a), cog("wanted.tif", new)
    with open(old, "rb") as f, open(tmp_path / "new.tif", "w+b") as g:
        pyramid, meta = scan_pyramid(f), scan_tiff(f)[1]
        encode_pyramid(g, new, meta, pyramid, valid=valid, nodata=(more.get("nodata"),) * bands)
        g.seek(0)
        follows_the_rules(io.BytesIO(g.read()))
    for k in (None, 0, 1):
        opened = dict(overview_level=k) if k is not None else {}
        with rasterio.open(tmp_path / "new.tif", **opened) as x, rasterio.open(wanted, **opened) as y:
            assert x.shape == y.shape and (k is not None or np.array_equal(x.read_masks(), y.read_masks()))
            both = ((x.read_masks() > 0) & (y.read_masks() > 0)).astype(bool)
            off = abs(x.read().astype(float) - y.read())[both]
            assert off.mean() < 1 and off.max() <= (12 if compress == "JPEG" else 2 if k is None else 6)
    with rasterio.open(tmp_path / "new.tif") as x, rasterio.open(old) as y:
        structure = y.tags(ns="IMAGE_STRUCTURE")
        left = {k: v for k, v in structure.items() if not k.startswith("JPEG")}  # where tables lie; see below
        assert x.tags(ns="IMAGE_STRUCTURE") == left
        assert x.profile == y.profile and x.overviews(1) == y.overviews(1) == [2, 4]
        assert x.tags(1) == y.tags(1) and x.descriptions == y.descriptions and x.transform == place
    with open(tmp_path / "new.tif", "rb") as f:
        assert compress != "JPEG" or jpeg_style(scan_tiff(f)[1].style.jpeg_start) == jpeg_style(meta.style.jpeg_start)


@pytest.mark.parametrize("dtype, bands", [("uint8", 3), ("float32", 1)])
@pytest.mark.filterwarnings("ignore")
def test_map_software_sees_new_overviews_beside(rasterio, tmp_path, dtype, bands):
    a, path = drawn(200, 150, bands, dtype), tmp_path / "a.tif"
    shape = dict(driver="GTiff", width=150, height=200, count=bands, dtype=dtype)
    with rasterio.open(path, "w", **shape) as d:
        d.write(np.moveaxis(a, -1, 0))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as d:
        d.build_overviews([2, 4, 8], rasterio.enums.Resampling.average)
    ovr, new = tmp_path / "a.tif.ovr", (a * 0.7).astype(dtype)
    ovr.write_bytes(remake_overviews(ovr.read_bytes(), new))
    with rasterio.open(path) as d:
        assert d.overviews(1) == [2, 4, 8]
        for k, factor in enumerate((2, 4)):
            with rasterio.open(path, overview_level=k) as small:
                expected = new.reshape(200 // factor, factor, -1, factor, bands) if 150 % factor == 0 else None
                got = np.moveaxis(small.read(), 0, -1)
                assert got.shape[:2] == (math.ceil(200 / factor), math.ceil(150 / factor))
                if expected is not None:
                    assert abs(got - expected.astype(float).mean((1, 3))).max() <= 0.51
