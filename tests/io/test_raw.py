"Camera raw: which files are raw, what is said without the extra, and with it how a drawn DNG is developed."
import io
import json
import struct

import numpy as np
import pytest
from commands import call
from tiny_model import box_model

from agri_cae.config import ImageError
from agri_cae.io import raw
from agri_cae.io.images import inspect_image, read_image, write_image
from agri_cae.io.tags import GEO, FieldType, LayoutTag, Tag, Tags, number_entry, pack_ifd, text_entry, values

HEIGHT, WIDTH = 40, 56
MATRIX = [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.204, 1.057]]  # XYZ to linear sRGB


def scene():
    "Light, (H, W, 3) in [0, 1]: a grey ramp and a coloured half"
    a = np.empty((HEIGHT, WIDTH, 3))
    a[:] = np.linspace(0.1, 0.8, WIDTH)[None, :, None]
    a[HEIGHT // 2 :] *= (0.9, 0.6, 0.3)
    return a


def dng(orientation=1, preview=False, order="<", **tags):
    "A DNG of the scene; with a preview its first directory is a small RGB picture, and the mosaic a sub-directory"
    light = scene()
    mosaic = light[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = light[::2, ::2, 0], light[1::2, 1::2, 2]
    data = np.rint(mosaic * 65535).astype(order + "u2").tobytes()
    short, long, byte, ratio = FieldType.SHORT, FieldType.LONG, FieldType.BYTE, FieldType.SRATIONAL

    def packed(entries, at):
        return pack_ifd(Tags(order, entries), at)

    def number(kind, *v):
        return number_entry(kind, *v, order=order)

    image = {254: number(long, 0), 256: number(long, WIDTH), 257: number(long, HEIGHT), 258: number(short, 16),
             259: number(short, 1), 262: number(short, 32803), 273: number(long, 8), 277: number(short, 1),
             278: number(long, HEIGHT), 279: number(long, len(data)), 33421: number(short, 2, 2),
             33422: number(byte, 0, 1, 1, 2), 50717: number(long, 65535)}
    matrix = [n for v in np.ravel(MATRIX) for n in (round(v * 10000), 10000)]
    gps = Tags(order, {1: text_entry("N"), 2: number(FieldType.RATIONAL, 47, 1, 30, 1, 0, 1)})
    exif = Tags(order, {0x829A: number(FieldType.RATIONAL, 1, 500), int(Tag.LensModel): text_entry("Field 24 mm")})
    main = {271: text_entry("Field"), 272: text_entry("Cam 1"), 274: number(short, orientation),
            700: (FieldType.BYTE, 4, b"<x/>"), 34665: exif, 34853: gps, 50706: number(byte, 1, 4, 0, 0),
            50708: text_entry("Field Cam 1"), 50735: text_entry("SN 12345"), 50721: number(ratio, *matrix),
            50728: number(FieldType.RATIONAL, 1, 1, 1, 1, 1, 1), 50778: number(short, 21), **tags}
    start, blob = 8 + len(data), data
    if preview:
        sub = packed(image, start)
        small = bytes(16 * 12 * 3)
        blob += sub + small
        main |= {254: number(long, 1), 256: number(long, 16), 257: number(long, 12), 258: number(short, 8, 8, 8),
                 259: number(short, 1), 262: number(short, 2), 273: number(long, start + len(sub)),
                 277: number(short, 3), 278: number(long, 12), 279: number(long, len(small)),
                 int(LayoutTag.SubIFDs): number(long, start)}
    else: main |= image
    at = 8 + len(blob)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", at)
    return head + blob + packed(main, at)


def without_rawpy(monkeypatch):
    monkeypatch.setattr(raw, "find_spec", lambda name: None)


@pytest.mark.parametrize("more", [{}, dict(preview=True), dict(order=">"), dict(preview=True, order=">")])
def test_a_dng_is_raw_and_refused_without_the_extra(monkeypatch, more):
    without_rawpy(monkeypatch)
    file = dng(**more)
    assert raw.is_raw(io.BytesIO(file)) and inspect_image(file).format == "raw"
    with pytest.raises(ImageError, match=r"is a camera raw file.*agri-cae\[raw\]"): read_image(file)


def test_raw_in_a_folder_without_the_extra(monkeypatch, tmp_path):
    "Named in one line, counted, in the records; the picture beside it is done"
    without_rawpy(monkeypatch)
    model = box_model(tmp_path)
    folder = tmp_path / "flight"
    folder.mkdir()
    (folder / "a.DNG").write_bytes(dng(preview=True))
    (folder / "b").write_bytes(b"IIU\0" + bytes(60))  # a Panasonic file without an ending
    (folder / "c.cr3").write_bytes(b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(60))
    write_image(read_image(_png()), folder / "d.png")
    done = call("denoise", folder, tmp_path / "out", "--model", model, "--json", rc=1)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["status"] for r in records] == ["failed"] * 3 + ["done"]
    assert all("camera raw" in r["error"] and "agri-cae[raw]" in r["error"] for r in records[:3])
    assert "1 denoised (1 of them left as they are), 0 skipped, 3 failed; 0 other" in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["d.png"]
    before = (folder / "a.DNG").read_bytes()
    done = call("denoise", folder, "--in-place", "--model", model, rc=1)
    assert "cannot be replaced" in done.stderr and (folder / "a.DNG").read_bytes() == before


def _png():
    from agri_cae.io.images import Picture

    out = io.BytesIO()
    write_image(Picture(np.zeros((20, 20, 3), "u1")), out)
    return out.getvalue()


def test_names_of_results(tmp_path):
    file = tmp_path / "a.NEF"
    file.write_bytes(dng())
    assert "Name it x.tif" in call("denoise", file, tmp_path / "x.dng", rc=2).stderr
    assert "not written" in call("denoise", file, "--in-place", rc=2).stderr



@pytest.mark.parametrize("more", [{}, dict(preview=True), dict(order=">"), dict(preview=True, order=">")])
def test_a_dng_is_developed(monkeypatch, more):
    "The mosaic, not the preview; linear values are proportional to the light, sRGB follows its curve"
    pytest.importorskip("rawpy")
    facts = inspect_image(dng(**more))
    assert (facts.format, facts.width, facts.height, facts.dtype) == ("raw", WIDTH, HEIGHT, "uint16")
    monkeypatch.setenv("AGRI_CAE_RAW", "linear")
    linear = read_image(dng(**more)).data / 65535
    inner = np.s_[4 : HEIGHT // 2 - 4, 4:-4]
    assert linear.shape == (HEIGHT, WIDTH, 3) and np.ptp(linear[inner] / scene()[inner]) < 0.02
    monkeypatch.setenv("AGRI_CAE_RAW", "srgb")
    shown = read_image(dng(**more)).data / 65535
    want = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(shown - want)[inner].max() < 0.005


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_tags_of_a_dng_are_carried(tmp_path, orientation):
    pytest.importorskip("rawpy")
    picture = read_image(dng(orientation))
    write_image(picture, tmp_path / "a.tif", provenance="a test")
    out = read_image(tmp_path / "a.tif")
    tags = out.meta.tags
    assert np.array_equal(out.data, picture.data) and out.data.dtype == "uint16" and out.meta.xmp == b"<x/>"
    assert values(tags, Tag.Make) == ("Field",) and values(tags, 50735) == ("SN 12345",)
    assert values(tags[Tag.ExifIFD], Tag.LensModel) == ("Field 24 mm",)
    assert values(tags[Tag.GPSIFD], 2) == (47, 1, 30, 1, 0, 1)
    assert Tag.DNGVersion not in tags and 50721 not in tags and not set(tags) & GEO
    side = picture.data.shape[:2]
    turned = orientation > 4
    stored = values(tags, Tag.Orientation, (1,))[0] == orientation  # the raster as it lies, or upright
    assert side == ((HEIGHT, WIDTH) if stored or not turned else (WIDTH, HEIGHT))


def test_a_folder_of_raw_files(tmp_path):
    pytest.importorskip("rawpy")
    folder = tmp_path / "flight"
    folder.mkdir()
    (folder / "a.dng").write_bytes(dng(preview=True))
    (folder / "b.dng").write_bytes(dng()[:900])
    done = call("denoise", folder, tmp_path / "out", "--model", box_model(tmp_path), rc=1)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.tif"] and "b.dng" in done.stderr
    assert read_image(tmp_path / "out" / "a.tif").data.dtype == "uint16"
    again = call("denoise", tmp_path / "out" / "a.tif", "--model", box_model(tmp_path), rc=1)
    assert "denoised" in again.stderr
