"""A COG stays a COG with overviews of the new pixels, and no tag is lost on the way."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest

from agri_cae.io.cog import is_cog, read_pages, write_pages
from agri_cae.io.formats import Meta
from agri_cae.io.geo import decode_map, encode_map, scan_map
from agri_cae.io.jpeg import jpeg_style
from agri_cae.io.overviews import shrink
from agri_cae.io.tags import FieldType, GeoTag, LayoutTag, Tag, Tags, number_entry, text_entry, values
from agri_cae.io.tiff import encode_tiff, new_style
from agri_cae.io.tifflayout import Compression
from agri_cae.io.tiffpixels import decode_validity

DTYPES = ["uint8", "uint16", "float32"]


def drawn(height, width, bands, dtype, seed=0):
    "A smooth picture with values from 20 to 220"
    y, x = np.mgrid[:height, :width] / 9
    phase = np.random.default_rng(seed).uniform(0, 6, (bands, 2))
    waves = [np.sin(y + p) + np.sin(x / 2 + q) for p, q in phase]
    return (120 + 50 * np.stack(waves, -1)).astype(dtype)


# ---- a file of our own: every layout, and tags
def source(a, order="<", cog=True, levels=(2, 4), **style):
    "A file with overviews, and its `Meta`"
    tags = Tags(order, {code: text_entry(f"tag {code}") for code in range(65000, 65040)})
    tags[Tag.Make] = text_entry("a camera")
    tags[48020] = tags[50714] = number_entry(FieldType.SHORT, 1, 2, 3, order=order)
    tags[Tag.ExifIFD] = Tags(order, {36867: text_entry("2026:05:01 10:00:00")})
    tags[Tag.GPSIFD] = Tags(order, {1: text_entry("S")})
    tags[GeoTag.GDAL_METADATA] = text_entry('<GDALMetadata><Item name="note">x</Item></GDALMetadata>')
    main = replace(new_style(a, a.shape[2], None), order=order, **style)
    small = replace(main, subfile=1, tags=Tags(order), mask=None)
    sizes = [(-(-a.shape[1] // n), -(-a.shape[0] // n)) for n in levels]
    meta = Meta(
        tags=tags, style=replace(main, overviews=tuple(replace(small, size=o) for o in sizes)), xmp=b"<x/>", icc=b"icc"
    )
    plain, f = io.BytesIO(), io.BytesIO()
    encode_tiff(plain, np.ones_like(a), meta)
    write_pages(f, read_pages(plain), cog)
    return f, scan_map(f)[1]


def shown(f, n):
    one = io.BytesIO()
    write_pages(one, read_pages(f)[n : n + 1])
    return decode_map(one, scan_map(one)[1].style)


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
    _, meta = source(a, order, cog=cog, **style)
    new, out = (a * 0.5).astype(dtype), io.BytesIO()
    encode_map(out, new, meta)
    assert np.array_equal(shown(out, 0), new)
    for n, size in enumerate([(74, 51), (37, 26)], 1):
        assert np.array_equal(shown(out, n), shrink(new, size)[0])
    if cog:
        follows_the_rules(out)
    after = scan_map(out)[1]
    assert after.tags == meta.tags and (after.xmp, after.icc) == (meta.xmp, meta.icc) and len(after.tags) >= 45
    same = ("size", "dtype", "compression", "predictor", "planar", "tile", "rows", "order", "big", "photometric", "cog")
    assert [getattr(after.style, k) for k in same] == [getattr(meta.style, k) for k in same]
    assert is_cog(out) == cog


@pytest.mark.parametrize("order", "<>")
def test_masks_stay(order):
    a, mask = drawn(64, 80, 1, "uint8"), np.hypot(*np.mgrid[-30:34, -40:40]) < 25
    sheet = replace(
        new_style(a, 1, None), order=order, tile=(32, 32), subfile=4, photometric=4, predictor=1, tags=Tags(order)
    )
    plain = io.BytesIO()
    f, meta = source(a, order, tile=(32, 32), mask=sheet)
    small = tuple(replace(o, mask=replace(sheet, size=o.size, subfile=5)) for o in meta.style.overviews)
    encode_tiff(plain, a, replace(meta, style=replace(meta.style, mask=sheet, overviews=small)), 1, mask)
    f = io.BytesIO()
    write_pages(f, read_pages(plain), cog=True)
    out = io.BytesIO()
    encode_map(out, a // 2, scan_map(f)[1])
    follows_the_rules(out)
    assert np.array_equal(decode_validity(out, scan_map(out)[1].style), mask)
    assert [p.kind for p in read_pages(out)] == [p.kind for p in read_pages(f)] and len(read_pages(out)) == 6
    assert [p.segments for p in read_pages(out) if p.kind & 4] == [p.segments for p in read_pages(f) if p.kind & 4]


def test_a_plain_file_stays_plain():
    a = drawn(50, 50, 1, "uint8")
    _, meta = source(a, cog=False, levels=(), tile=(16, 16))
    plain, out = io.BytesIO(), io.BytesIO()
    encode_tiff(plain, a, meta, 1)
    encode_map(out, a, meta)
    assert out.getvalue() == plain.getvalue() and not is_cog(out)
    encode_map(out := io.BytesIO(), a, Meta())
    assert np.array_equal(shown(out, 0), a)


def test_a_broken_announcement_is_not_repeated():
    f, _ = source(drawn(64, 64, 1, "uint8"), tile=(32, 32))
    broken = io.BytesIO(f.getvalue().replace(b"EDITION=NO\n ", b"EDITION=YES\n"))
    assert is_cog(f) and not is_cog(broken)


def test_cut_files_are_refused():
    f, _ = source(drawn(64, 64, 1, "uint8"), tile=(32, 32))
    for n in (len(f.getvalue()) - 40, 400, 9):
        with pytest.raises(ValueError, match=r"truncated|directory|header"):
            read_pages(io.BytesIO(f.getvalue()[:n]))


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
        meta = scan_map(f)[1]
        encode_map(g, new, meta, bands, valid)
        g.seek(0)
        follows_the_rules(io.BytesIO(g.read()))
    for k in (None, 0, 1):
        opened = dict(overview_level=k) if k is not None else {}
        with rasterio.open(tmp_path / "new.tif", **opened) as x, rasterio.open(wanted, **opened) as y:
            assert x.shape == y.shape and (k is not None or np.array_equal(x.read_masks(), y.read_masks()))
            both = ((x.read_masks() > 0) & (y.read_masks() > 0)).astype(bool)
            off = abs(x.read().astype(float) - y.read())[both]
            assert off.mean() < 2 and off.max() <= (12 if compress == "JPEG" else 2 if k is None else 6)
    with rasterio.open(tmp_path / "new.tif") as x, rasterio.open(old) as y:
        structure = y.tags(ns="IMAGE_STRUCTURE")
        left = {k: v for k, v in structure.items() if not k.startswith("JPEG")}  # where tables lie; see below
        assert x.tags(ns="IMAGE_STRUCTURE") == left
        assert x.profile == y.profile and x.overviews(1) == y.overviews(1) == [2, 4]
        assert x.tags(1) == y.tags(1) and x.descriptions == y.descriptions and x.transform == place
    with open(tmp_path / "new.tif", "rb") as f:
        assert compress != "JPEG" or jpeg_style(scan_map(f)[1].style.jpeg_start) == jpeg_style(meta.style.jpeg_start)
