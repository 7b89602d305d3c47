"AVIF, BMP, GIF, PNM and JPEG 2000: kinds of each that other programs write, through read and write; what is refused."
import io
import itertools
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from agri_cae.config import AgriCaeError, ImageError, OutputError
from agri_cae.io.exif import note_exif, pack_exif, read_exif
from agri_cae.io.formats import PICTURE_SUFFIXES, SUCCESSORS, SUFFIXES, Meta, sniff
from agri_cae.io.images import CODECS, Picture, inspect_image, provenance_of, read_image, write_image
from agri_cae.io.more_formats import note_of
from agri_cae.io.tags import FieldType, Tag, Tags, number_entry, text_entry, values

Y, X = np.mgrid[:45, :61]
RGB = np.stack([3 * X + Y, 4 * Y, 2 * X + 2 * Y], -1).astype(np.uint8)
EXIF = pack_exif(Tags("<", {
    Tag.Make: text_entry("Field"), Tag.MakerNote: text_entry("note " * 40),
    Tag.GPSIFD: Tags("<", {1: text_entry("N"), 2: number_entry(FieldType.RATIONAL, 47, 1, 30, 1, 0, 1)})}))
XMP, ICC = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", bytes(range(256)) * 2


def pillow(a, format, **kw):
    f = io.BytesIO()
    (a if isinstance(a, Image.Image) else Image.fromarray(a)).save(f, format, **kw)
    return f.getvalue()


def written(picture, format=None, **kw):
    f = io.BytesIO()
    write_image(picture, f, format, **kw)
    return f.getvalue()


def shown(file): # what Pillow makes of it
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGBA"))


# BMP

BMPS = {
    "24 bits": pillow(RGB, "BMP"),
    "grey": pillow(RGB[..., 0], "BMP"),
    "palette": pillow(Image.fromarray(RGB).quantize(200), "BMP"),
    "16 colours": pillow(Image.fromarray(RGB).quantize(16), "BMP"),
    "32 bits, alpha": cv2.imencode(".bmp", np.dstack([RGB, RGB[..., :1]]))[1].tobytes(),
    "top-down": None,
    "OS/2": None,
    "16 bits": None,
}
rows = [row.tobytes() + bytes(-3 * 61 % 4) for row in RGB[..., ::-1]]
BMPS["top-down"] = BMPS["24 bits"][:22] + struct.pack("<i", -45) + BMPS["24 bits"][26:54] + b"".join(rows)
body = b"".join(reversed(rows))
BMPS["OS/2"] = b"BM" + struct.pack("<IIIIHHHH", 26 + len(body), 0, 26, 12, 61, 45, 1, 24) + body
five = (RGB >> 3).astype("<u2")
packed = [(r[:, 0] << 10 | r[:, 1] << 5 | r[:, 2]).astype("<u2").tobytes() + bytes(2) for r in five[::-1]]
BMPS["16 bits"] = (b"BM" + struct.pack("<IIIIiiHHIIiiII", 54 + 45 * 124, 0, 54, 40, 61, 45, 1, 16, 0, 45 * 124,
                                       2835, 2835, 0, 0) + b"".join(packed))


@pytest.mark.parametrize("kind", BMPS)
def test_bmp(kind):
    file = BMPS[kind]
    assert sniff(file[:64]).format == "bmp"
    p = read_image(file)
    again = written(p, provenance="a test")
    q = read_image(again)
    whole = p.data if p.alpha is None else np.dstack([p.data, p.alpha])
    assert np.array_equal(shown(again), shown(file)) and np.array_equal(q.data, p.data)
    other = cv2.imdecode(np.frombuffer(again, np.uint8), cv2.IMREAD_UNCHANGED)  # OpenCV agrees, in spite of the note
    assert np.array_equal(np.atleast_3d(other)[..., :3][..., ::-1], p.data) or p.data.shape[2] == 1
    assert provenance_of(q) == "a test" and whole.shape[:2] == (45, 61)
    assert q.meta.dpi is None or [round(v) for v in q.meta.dpi] == [round(v) for v in p.meta.dpi]


def test_rare_bmp_is_refused_by_name():
    file = bytearray(BMPS["24 bits"])
    file[30] = 6  # masks with alpha, as Windows CE wrote them
    with pytest.raises(ImageError, match=r"rare kind.*Save it as PNG"): read_image(bytes(file))


# PNM

@pytest.mark.parametrize("kind,maximum", [*itertools.product((2, 3, 5, 6), (1, 15, 255, 256, 1023, 16383, 65535))])
def test_pnm(kind, maximum):
    "White is white, and the same bytes come back"
    bands, wide = 3 if kind in (3, 6) else 1, maximum > 255
    a = np.random.default_rng(maximum).integers(0, maximum + 1, (7, 5, bands))
    a[0, 0], a[0, 1] = maximum, 0
    rows = "\n".join(" ".join(map(str, row.ravel())) for row in a) + "\n"
    pixels = a.astype(">u2" if wide else "u1").tobytes() if kind > 4 else rows.encode()
    file = f"P{kind}\n# plot 7\n5 7\n{maximum}\n".encode() + pixels
    p = read_image(file)
    top = np.iinfo(p.data.dtype).max
    assert p.data.dtype == ("uint16" if wide else "uint8") and p.data[0, 0, 0] == top and p.data[0, 1, 0] == 0
    assert np.abs(p.data / top - a / maximum).max() <= 0.5 / top + 1e-12
    assert written(p) == file
    noted = written(p, provenance="a test")
    assert provenance_of(read_image(noted)) == "a test" and b"# plot 7\n" in noted
    assert written(read_image(noted), provenance="twice").count(b"ProcessingSoftware") == 1


def test_pnm_is_what_others_read():
    for a in (RGB, RGB[..., :1], RGB.astype("u2") * 257, RGB[..., :1].astype("u2") * 200):
        file = written(Picture(a), "pnm")
        other = np.atleast_3d(cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED))
        assert np.array_equal(other[..., ::-1] if a.shape[2] == 3 else other, a)


@pytest.mark.parametrize("file,text", [
    (b"P5 4 4 255\n" + bytes(15), "truncated"), (b"P6 4 4 70000\n" + bytes(99), "white"),
    (b"P5 0 4 255\n", "size"), (b"P2 2 1 7\n3 8\n", "larger"), (b"P5 # only a comment\n1", "header is damaged"),
    (b"P5 99999 99999 255\n", "limit"), (b"P3 2 2 255\n1 2 x", "truncated"), (b"P7\nWIDTH 3\n", "PAM"),
    (b"P4 9 2\n\xff", "truncated")])
def test_bad_pnm(file, text):
    with pytest.raises(ImageError, match=text): read_image(file)


# GIF

def test_gif_becomes_png(tmp_path):
    for im in (Image.fromarray(RGB).quantize(256), Image.fromarray(RGB[..., 0])):
        file = pillow(im, "GIF")
        p = read_image(file)
        assert np.array_equal(shown(written(p)), shown(file)) and inspect_image(written(p)).format == "png"
    clear = pillow(Image.fromarray(np.dstack([RGB, np.where(X < 9, 0, 255).astype("u1")])), "GIF")
    p = read_image(clear)
    assert np.array_equal(p.alpha, np.where(X < 9, 0, 255)) and inspect_image(clear).palette
    two = pillow(RGB, "GIF", save_all=True, append_images=[Image.fromarray(RGB[::-1])])
    with pytest.raises(ImageError, match="several pictures"): read_image(two)
    with pytest.raises(OutputError, match=r"Name it \*.png"): write_image(p, tmp_path / "a.gif")
    with pytest.raises(ImageError): read_image(clear[: len(clear) // 2])


# JPEG 2000

@pytest.mark.parametrize("bands,bare,lossless", [*itertools.product((1, 2, 3, 4), (False, True), (False, True))])
def test_jp2(bands, bare, lossless):
    a = np.dstack([RGB, RGB[..., 0]])[..., {1: [0], 2: [0, 1]}.get(bands, list(range(bands)))]
    how = {} if lossless else dict(irreversible=True, quality_mode="rates", quality_layers=[4])
    file = pillow(a if bands > 1 else a[..., 0], "JPEG2000", no_jp2=bare, **how)
    p = read_image(file)
    again = written(p, provenance="a test")
    q = read_image(again)
    assert np.array_equal(shown(file), shown(pillow(np.asarray(Image.open(io.BytesIO(file))), "PNG")))
    whole = p.data if p.alpha is None else np.dstack([p.data, p.alpha])
    assert np.array_equal(whole, a) == lossless and (again[:4] == b"\xff\x4f\xff\x51") == bare
    assert inspect_image(again).lossless == lossless and provenance_of(q) == "a test"
    assert np.abs(q.data.astype(int) - p.data).mean() <= (0 if lossless else 3)
    assert abs(len(again) - len(file)) < 300
    for reader in (Image.open(io.BytesIO(again)), cv2.imdecode(np.frombuffer(again, np.uint8), -1)):
        if bands == 2 and isinstance(reader, type(None)): continue  # OpenCV does not read grey with alpha
        other = np.asarray(reader)[..., :3] if bands > 2 else np.atleast_3d(np.asarray(reader))[..., :1]
        assert np.array_equal(other if isinstance(reader, Image.Image) else other[..., ::-1], q.data)


def test_jp2_keeps_its_boxes():
    extra = struct.pack(">I4s", 8 + 5, b"xml ") + b"<a/>\n" + struct.pack(">I4s", 8 + 20, b"uuid") + bytes(range(20))
    file = written(Picture(RGB, meta=Meta(exif=EXIF, xmp=XMP, icc=ICC, dpi=(300, 200))), "jp2") + extra
    for _ in range(2): file = written(read_image(file))
    meta = read_image(file).meta
    assert np.array_equal(cv2.imdecode(np.frombuffer(file, np.uint8), -1)[..., ::-1], RGB)
    assert extra[:13] in file and extra[13:] in file and (meta.exif, meta.xmp, meta.icc) == (EXIF, XMP, ICC)
    assert [round(v) for v in meta.dpi] == [300, 200] and file.count(b"JpgTiffExif->JP2") == 1


def test_jp2_of_16_bits():
    grey = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)
    p = read_image(pillow(grey, "JPEG2000"))
    assert p.data.dtype == "uint16" and np.array_equal(read_image(written(p)).data, p.data)
    colour = cv2.imencode(".jp2", RGB.astype(np.uint16) * 257)[1].tobytes()
    with pytest.raises(ImageError, match="3 components of 16 bits"): read_image(colour)
    twelve = bytearray(pillow(grey, "JPEG2000"))
    at = twelve.index(b"\xff\x51") + 40
    twelve[at] = 11
    with pytest.raises(ImageError, match="1 components of 12 bits"): read_image(bytes(twelve))


@pytest.mark.parametrize("kind", ["geojp2", "gmljp2"])
def test_jp2_with_coordinates_is_refused_by_name(kind):
    uuid = b"uuid" + bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03") + b"II*\0\x08\0\0\0"
    gml = b"asoc" + struct.pack(">I4s", 8 + 13, b"lbl ") + b"gml.data\0\0\0\0\0"
    box = dict(geojp2=uuid, gmljp2=gml)[kind]
    file = written(Picture(RGB), "jp2") + struct.pack(">I", len(box) + 4) + box
    with pytest.raises(ImageError, match=r"map coordinates.*agri-cae\[geo\]"): read_image(file)


# AVIF

@pytest.mark.parametrize("sampling,quality", [*itertools.product(("4:2:0", "4:2:2", "4:4:4"), (20, 60, 90, 100))])
def test_avif_keeps_quality(sampling, quality):
    file = pillow(np.tile(RGB, (3, 3, 1)), "AVIF", quality=quality, subsampling=sampling)
    p = read_image(file)
    again = written(p)
    style = read_image(again).meta.style
    assert style.sampling == sampling and abs(style.quality - quality) <= 1
    assert 0.7 < len(again) / len(file) < 1.3


@pytest.mark.parametrize("how", [dict(speed=10), dict(tile_rows=1, tile_cols=1), dict(range="limited"), dict(speed=0)])
def test_avif_of_other_settings(how):
    "The search for the quality finds it, or falls back to a high one; it never fails"
    p = read_image(pillow(np.tile(RGB, (12, 9, 1)), "AVIF", quality=60, **how))
    assert p.meta.style.quality in (59, 60, 61, 90)
    read_image(written(p))


def test_avif_metadata():
    "Exif comes back byte by byte, with maker notes; alpha, grey; other readers see all"
    p = read_image(pillow(np.dstack([RGB, RGB[..., 0]]), "AVIF", exif=EXIF, xmp=XMP, icc_profile=ICC))
    for _ in range(2): p = read_image(written(p))
    assert (read_exif(p.meta.exif)[Tag.MakerNote], p.meta.xmp, p.meta.icc) == (read_exif(EXIF)[Tag.MakerNote], XMP, ICC)
    assert values(read_exif(p.meta.exif)[Tag.GPSIFD], 2) == (47, 1, 30, 1, 0, 1) and p.alpha is not None
    file = written(p, provenance="a test")
    im = Image.open(io.BytesIO(file))
    assert im.getexif()[Tag.ProcessingSoftware] == "a test" and im.getexif()[Tag.Make].strip("\0") == "Field"
    assert im.info["icc_profile"] == ICC and im.info["xmp"] == XMP
    grey = read_image(pillow(RGB[..., 0], "AVIF", quality=100))
    assert np.array_equal(grey.data[..., 0], RGB[..., 0]) and np.array_equal(read_image(written(grey)).data, grey.data)


@pytest.mark.parametrize("turn", range(1, 9))
def test_avif_that_states_a_turn(turn):
    exif = pack_exif(Tags("<", {Tag.Orientation: number_entry(FieldType.SHORT, turn), Tag.Make: text_entry("Field")}))
    file = pillow(RGB, "AVIF", quality=95, subsampling="4:4:4", exif=exif)
    from PIL import ImageOps

    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB"))
    facts, p = inspect_image(file), read_image(file)
    assert p.data.shape == want.shape == (facts.height, facts.width, 3) and np.array_equal(p.data, want)
    again = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(written(p)))).convert("RGB"))
    assert again.shape == want.shape and np.abs(again.astype(int) - want).mean() < 2


@pytest.mark.parametrize("depth", [10, 12])
def test_deep_avif_is_refused_by_name(depth):
    done, file = cv2.imencode(".avif", RGB.astype(np.uint16) << depth - 8, [cv2.IMWRITE_AVIF_DEPTH, depth])
    if not done: pytest.skip("this OpenCV does not write it")
    with pytest.raises(ImageError, match=f"{depth} bits"): read_image(file.tobytes())


# all

FILES = dict(
    avif=pillow(RGB, "AVIF"), bmp=BMPS["24 bits"], gif=pillow(RGB, "GIF"), jp2=pillow(RGB, "JPEG2000"),
    pnm=pillow(RGB, "PPM"))


@pytest.mark.parametrize("format", FILES)
def test_damaged_files_give_one_clear_error(format):
    "Cut anywhere or with bytes changed: a picture or an `ImageError`, never anything else"
    file, rng = FILES[format], np.random.default_rng(0)
    for at in sorted({*range(0, 64, 7), *rng.integers(64, len(file), 25)}):
        broken = bytearray(file)
        broken[at : at + 4] = rng.bytes(4)
        for bad in (file[:at], bytes(broken)):
            try: read_image(bad, 10**7)
            except ImageError as e: assert e.what and "unexpected" not in e.what


@pytest.mark.parametrize("format", ["bmp", "pnm", "jp2", "avif"])
def test_what_is_lost_is_said(format, caplog):
    "From a JPEG with everything; a mark of ours alone is nothing that could be lost"
    meta = Meta(exif=EXIF, xmp=XMP, icc=ICC, dpi=(300, 300))
    written(Picture(RGB, format="jpeg", meta=meta), format)
    said = caplog.text
    kept = dict(bmp="", pnm="", jp2="Exif XMP", avif="Exif XMP")[format].split()
    assert all((name in said) != (name in kept) for name in ("Exif", "XMP"))
    caplog.clear()
    written(Picture(RGB, format="jpeg"), format, provenance="a test")
    written(read_image(FILES[format]), format, provenance="a test")
    assert "left out" not in caplog.text


def test_names_and_formats_fit():
    assert set(SUFFIXES.values()) <= set(CODECS) and set(SUFFIXES) <= PICTURE_SUFFIXES
    assert not set(SUFFIXES) & set(SUCCESSORS) and set(SUCCESSORS.values()) <= set(SUFFIXES)
    assert note_of(Meta(exif=note_exif(None, "x"))) == "ProcessingSoftware: x"
    for a, format in ((RGB.astype("u2"), "bmp"), (RGB.astype("u2"), "avif"), (RGB.astype("u2"), "jp2")):
        with pytest.raises(AgriCaeError): written(Picture(a), format)
