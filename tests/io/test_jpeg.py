"JPEG files as cameras, phones and odd programs write them: nothing true is lost, nothing false is said."

import hashlib
import io
import json
import shutil
import struct
import subprocess
import zlib
from base64 import b64encode

import numpy as np
import pytest
from photos import camera_exif
from PIL import Image

from agri_cae.config import ImageError
from agri_cae.io.images import Picture, inspect_image, provenance_of, read_image, sample, upright, write_image
from agri_cae.io.planes import encode_planes
from agri_cae.io.xmp import extended_xmp

PHOTO = read_image(sample("field_camera")).data[150:214, 250:350]
OTHER = 255 - PHOTO
MARK = "agri_cae 0.1.0 fast strength=1"
XAP = b"http://ns.adobe.com/xap/1.0/\0"


def jpeg(a=PHOTO, **kw):
    f = io.BytesIO()
    Image.fromarray(a).save(f, "JPEG", **dict(quality=95) | kw)
    return f.getvalue()


def segment(marker, data):
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def exif(block):
    return segment(0xE1, b"Exif\0\0" + block)


def xmp(body, spaces=""):
    text = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" {spaces}>{body}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    )
    return text.encode()


def with_segments(*segments, data=None):
    data = data or jpeg()
    return data[:2] + b"".join(segments) + data[2:]


def segments(data):
    "(marker, payload) up to the pixels, by a reader of its own"
    at, out = 2, []
    while True:
        marker, n = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        out.append((marker, data[at + 4 : at + 2 + n]))
        at += 2 + n
        if marker == 0xDA:
            return out


def again(data, change=True, format=None, provenance=MARK):
    "The file after its pixels were changed"
    p, f = read_image(data), io.BytesIO()
    write_image(p.with_data(p.data // 2 + 40) if change else p, f, format, provenance=provenance)
    return f.getvalue()


def exiftool(data, *options):
    if not shutil.which("exiftool"):
        pytest.skip("exiftool is absent")
    command = ["exiftool", "-json", "-a", "-G1", "-n", *options, "-"]
    out = subprocess.run(command, input=data, capture_output=True, check=False)
    return json.loads(out.stdout)[0]


# previews ------------------------------------------------------------------------------------------------------------

THUMB = jpeg(OTHER[::4, ::4], quality=60)


def resource(number, data):
    return b"8BIM" + struct.pack(">HHI", number, 0, len(data)) + data + bytes(len(data) % 2)


def old_previews(order):
    block = camera_exif(1, order)  # with a thumbnail of its own
    base64 = b64encode(THUMB).decode()
    thumbs = f"<xmp:Thumbnails><rdf:Alt><rdf:li>{base64}</rdf:li></rdf:Alt></xmp:Thumbnails><xmp:Rating>4</xmp:Rating>"
    return with_segments(
        segment(0xE0, b"JFIF\0\1\2\1\0\x48\0\x48\4\2" + OTHER[:2, :4].tobytes()),
        segment(0xE0, b"JFXX\0\x10" + THUMB),
        exif(block),
        segment(0xE1, XAP + xmp(thumbs)),
        segment(0xED, b"Photoshop 3.0\0" + resource(0x0404, b"caption") + resource(0x040C, bytes(28) + THUMB)),
        exif(b"II*\0\x08\0\0\0\0\0\0\0\0\0" + THUMB),
    ), block, base64


@pytest.mark.parametrize("order", "<>")
def test_previews_go(order):
    data, block, base64 = old_previews(order)
    out = again(data)
    thumb = block[block.index(b"\xff\xd8\xff") :]
    assert THUMB in data and thumb in data and base64.encode() in data
    assert THUMB[40:140] not in out and thumb[40:140] not in out and base64[100:200].encode() not in out
    assert OTHER[:2, :4].tobytes() not in out
    assert b"caption" in out and b"<xmp:Rating>4</xmp:Rating>" in out and b"FC6310" in out
    with Image.open(io.BytesIO(out)) as im:
        im.load()


def test_no_reader_finds_a_preview():
    data = old_previews("<")[0]
    names = ("-ThumbnailImage", "-PreviewImage", "-PhotoshopThumbnail", "-XMP-xmp:all", "-GPS:all")
    before, after = exiftool(data, *names), exiftool(again(data), *names)
    old = [k for k in before if "Thumbnail" in k]
    assert len(old) >= 3 and not [k for k in after if "Thumbnail" in k]
    assert len([k for k in before if k.startswith("GPS")]) > 3
    assert all(after[k] == v for k, v in before.items() if k.startswith("GPS"))


def test_preview_in_extended_xmp_goes():
    base64 = b64encode(jpeg(OTHER)).decode() * 12
    main, parts = extended_xmp(xmp(f"<xmp:Thumbnails>{base64}</xmp:Thumbnails><xmp:Label>wet</xmp:Label>"))
    assert len(parts) > 1
    data = with_segments(segment(0xE1, XAP + main), *(segment(0xE1, p) for p in parts))
    out = again(data)
    assert b"wet" in out and base64[300:400].encode() not in out
    extension = next(p for m, p in segments(out) if p.startswith(b"http://ns.adobe.com/xmp/extension/"))
    digest = extension[35:67]
    assert b'HasExtendedXMP="' + digest in out
    assert hashlib.md5(extension[75:]).hexdigest().upper().encode() == digest


# marks and blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [65_300, 65_440, 65_500, 65_520, 65_527])
def test_full_exif_keeps_position_and_mark(size):
    block = camera_exif(6, thumbnail=False).ljust(size, b"\7")
    out = again(with_segments(exif(block)))
    q = read_image(out)
    assert provenance_of(q) == MARK
    with Image.open(io.BytesIO(out)) as im:
        gps = im.getexif().get_ifd(0x8825)
        assert gps[2] and gps[4] and im.getexif()[0x0112] == 6
    twice = again(out, provenance="second run")
    assert provenance_of(read_image(twice)) == "second run"
    assert twice.count(b"ProcessingSoftware: ") == out.count(b"ProcessingSoftware: ") == (size > 65_300)


@pytest.mark.parametrize("block", [b"", b"II*\0", b"rubbish" * 9, b"II*\0\xff\xff\0\0", b"MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_stays_and_the_mark_is_found(block):
    out = again(with_segments(exif(block)))
    assert provenance_of(read_image(out)) == MARK
    assert not block or (0xE1, b"Exif\0\0" + block) in segments(out)


def test_second_blocks_are_kept():
    first, second = camera_exif(1, thumbnail=False), camera_exif(6, ">", thumbnail=False)
    band = xmp('<xmp:BandName>Red edge</xmp:BandName>')
    data = with_segments(exif(first), segment(0xE1, XAP + xmp("")), exif(second), segment(0xE1, XAP + band))
    found = segments(again(data, provenance=None))
    assert [p for m, p in found if m == 0xE1] == [b"Exif\0\0" + first, b"Exif\0\0" + second, XAP + xmp(""), XAP + band]
    assert inspect_image(data).orientation == 1  # the first counts


def test_long_xmp_of_a_png_is_split():
    text = xmp("<xmp:Label>" + "plot " * 30_000 + "</xmp:Label>")
    f = io.BytesIO()
    write_image(Picture(PHOTO), f)
    chunk = b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + text
    head, rest = f.getvalue()[:33], f.getvalue()[33:]
    png = head + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + rest
    out = again(png, format="jpeg")
    assert sum(p.startswith(b"http://ns.adobe.com/xmp/extension/") for _, p in segments(out)) == 3
    assert exiftool(out, "-XMP:Label")["XMP-xmp:Label"].strip() == ("plot " * 30_000).strip()


# behind the picture --------------------------------------------------------------------------------------------------

SPACES = (
    'xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" xmlns:C="http://ns.google.com/photos/1.0/container/" '
    'xmlns:I="http://ns.google.com/photos/1.0/container/item/" xmlns:GC="http://ns.google.com/photos/1.0/camera/"'
)


def mpf(order, pictures, first):
    "The segment of an index; pictures: (kind, size, offset from the header)"
    n = len(pictures) + 1
    head = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    entries = struct.pack(order + "HHI4s", 0xB000, 7, 4, b"0100") + struct.pack(order + "HHII", 0xB001, 4, 1, n)
    entries += struct.pack(order + "HHII", 0xB002, 7, 16 * n, 8 + 2 + 36 + 4)
    table = struct.pack(order + "4I", 0x20030000, first, 0, 0)
    table += b"".join(struct.pack(order + "4I", kind, size, at, 0) for kind, size, at in pictures)
    return segment(0xE2, b"MPF\0" + head + struct.pack(order + "H", 3) + entries + bytes(4) + table)


def phone(order, behind, packet=None, tail=b""):
    "behind: (kind, bytes) of pictures; tail: what follows them"
    before = exif(camera_exif(6, thumbnail=False)) + (segment(0xE1, XAP + packet) if packet else b"")
    length = len(mpf(order, [(kind, 0, 0) for kind, _ in behind], 0))
    first = len(jpeg()) + len(before) + length
    base, at, pictures = 2 + len(before) + 8, first, []
    for kind, data in behind:
        pictures.append((kind, len(data), at - base))
        at += len(data)
    return with_segments(before, mpf(order, pictures, first)) + b"".join(d for _, d in behind) + tail


def indexed(data):
    "The pictures that the index leads to, and the size that it gives for the first"
    at = data.index(b"MPF\0") + 4
    order = {b"II": "<", b"MM": ">"}[data[at : at + 2]]
    n, size = (struct.unpack_from(order + "I", data, at + k)[0] for k in (30, 54))
    table = [struct.unpack_from(order + "4I", data, at + 50 + 16 * k) for k in range(1, n)]
    return [data[at + off : at + off + length] for _, length, off, _ in table], size, at


GAIN, VIDEO = jpeg(OTHER[::8, ::8, 0]), b"\0\0\0\x1cftypisom" + bytes(range(256)) * 20


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tail", [b"", VIDEO])
def test_gain_map_and_video_stay(order, tail):
    items = '<C:Directory><rdf:Seq><rdf:li><C:Item I:Semantic="Primary" I:Length="777"/></rdf:li>'
    items += f'<rdf:li><C:Item I:Semantic="GainMap" I:Length="{len(GAIN)}"/></rdf:li></rdf:Seq></C:Directory>'
    data = phone(order, [(0, GAIN)], xmp(items, SPACES + ' hdrgm:Version="1.0"'), tail)
    assert indexed(data)[0] == [GAIN]
    out = again(data)
    pictures, size, _ = indexed(out)
    assert pictures == [GAIN] and out.endswith(GAIN + tail)
    assert out[size - 2 : size] == b"\xff\xd9" and out[size:].startswith(GAIN)
    assert b'hdrgm:Version="1.0"' in out and f'I:Length="{len(GAIN)}"'.encode() in out and b'"777"' not in out
    assert read_image(data).meta.warnings == ()


@pytest.mark.parametrize("order", "<>")
def test_previews_behind_go_and_the_rest_stays(order):
    preview = jpeg(OTHER[::2, ::2])
    data = phone(order, [(0x10001, preview), (0, GAIN), (0x10002, preview + bytes(3))], tail=VIDEO)
    out = again(data)
    assert indexed(out)[0] == [GAIN] and out.endswith(GAIN + VIDEO) and preview[40:200] not in out
    bare = again(phone(order, [(0x10001, preview)]))
    assert b"MPF\0" not in bare and preview[40:200] not in bare


def test_stereo_pair_is_said():
    p = read_image(phone("<", [(0x20002, jpeg(OTHER))]))
    assert "1 more view" in " ".join(p.meta.warnings)
    with Image.open(io.BytesIO(again(phone(">", [(0x20002, jpeg(OTHER))])))) as im:
        assert (im.format, im.n_frames) == ("MPO", 2)
        im.seek(1)
        assert np.array_equal(np.asarray(im), np.asarray(Image.open(io.BytesIO(jpeg(OTHER)))))


def test_promises_that_do_not_hold_go():
    claim = xmp("<xmp:Rating>4</xmp:Rating>", SPACES + ' hdrgm:Version="1.0" GC:MicroVideoOffset="5000"')
    whole = phone("<", [(0, GAIN)], claim, VIDEO)
    assert read_image(whole).meta.warnings == ()
    cut = whole[: -len(GAIN + VIDEO)]
    p, out = read_image(cut), again(cut)
    assert len(p.meta.warnings) == 1 and "not there" in p.meta.warnings[0]
    assert b"MPF\0" not in out and b"hdrgm:Version" not in out and b"MicroVideo" not in out and b"<xmp:Rating>4" in out


@pytest.mark.parametrize("format", ["png", "webp", "tiff"])
def test_another_format_promises_nothing(format, caplog):
    claim = xmp("<xmp:Rating>4</xmp:Rating>", SPACES + ' hdrgm:Version="1.0" GC:MotionPhoto="1"')
    out = again(phone("<", [(0, GAIN)], claim, VIDEO), format=format)
    q = read_image(out)
    assert b"<xmp:Rating>4" in q.meta.xmp and b"hdrgm:Version" not in q.meta.xmp and b"MotionPhoto" not in q.meta.xmp
    assert "cannot hold" in caplog.text
    turned = upright(read_image(phone("<", [(0, GAIN)], claim, VIDEO)))
    assert b"hdrgm:Version" not in turned.meta.xmp and not turned.meta.style.behind.data


def test_thermal_data_and_trailer_stay():
    raw = [segment(0xE3 + k % 4, np.random.default_rng(k).bytes(3000)) for k in range(6)]
    flir = [segment(0xE1, b"FLIR\0\1" + bytes([k, 1]) + np.random.default_rng(k).bytes(500)) for k in range(2)]
    data = with_segments(*flir, *raw) + b"vendor" * 99
    out = again(data, provenance=None)
    assert b"".join(flir + raw) in out and out.endswith(b"vendor" * 99)


def test_credentials_go_with_a_warning():
    box = b"\0\0\2\x86jumb\0\0\0\x1ejumdc2pa\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71\3c2pa\0"
    other = b"\0\0\0\x30jumb\0\0\0\x1ejumdjson" + bytes(20)
    head = b"JP\0\1" + struct.pack(">I", 1)
    data = with_segments(
        segment(0xEB, head + box), segment(0xEB, b"JP\0\1" + struct.pack(">I", 2) + b"signature"),
        segment(0xEB, b"JP\0\2" + struct.pack(">I", 1) + other),
    )
    out = again(data)
    assert b"c2pa" not in out and b"signature" not in out and b"jumdjson" in out
    assert "C2PA" in " ".join(read_image(data).meta.warnings)


# how it is built -----------------------------------------------------------------------------------------------------


def test_stray_bytes_anywhere_between_segments():
    data, at = jpeg(progressive=False), 20  # behind JFIF
    want = read_image(data)
    while data[at + 1] != 0xDA:
        for junk in (b"\xff\0", b"\0", b"junk", b"\xff\xff\xff\0\0"):
            p = read_image(data[:at] + junk + data[at:])
            assert np.array_equal(p.data, want.data) and "stray" in p.meta.warnings[0]
        assert read_image(data[:at] + b"\xff\xff" + data[at:]).meta.warnings == ()  # fill bytes are legal
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]


@pytest.mark.parametrize("how", [{}, dict(progressive=True), dict(subsampling=2), dict(restart_marker_blocks=3)])
@pytest.mark.parametrize("grey", [False, True])
def test_without_end_marker(how, grey):
    data = jpeg(PHOTO[..., 0] if grey else PHOTO, **how)
    p = read_image(data[:-2])
    assert np.array_equal(p.data, read_image(data).data) and p.meta.warnings == ("the end marker is missing",)
    assert read_image(again(data[:-2])).meta.warnings == ()
    for cut in range(3, 30):  # one byte of the pixels is enough to notice
        with pytest.raises(ImageError):
            read_image(data[:-cut])
    for at in [k for k in range(len(data)) if data[k : k + 2] in (b"\xff\xda", b"\xff\xc4")][-6:]:
        with pytest.raises(ImageError):
            read_image(data[:at])


TABLES = [[3 + (k // 8 + k % 8) * step // 2 for k in range(64)] for step in (1, 3, 5)]
WAYS = {
    "4:4:4": [(1, 1)] * 3, "4:2:2": [(2, 1), (1, 1), (1, 1)], "4:2:0": [(2, 2), (1, 1), (1, 1)],
    "4:4:0": [(1, 2), (1, 1), (1, 1)], "4:1:1": [(4, 1), (1, 1), (1, 1)], "4:1:0": [(4, 2), (1, 1), (1, 1)],
    "1x4": [(1, 4), (1, 1), (1, 1)], "unlike": [(2, 2), (2, 1), (1, 1)],
}  # fmt: skip


def built(data):
    "(sampling factors, tables of the components, progressive) by Pillow"
    with Image.open(io.BytesIO(data)) as im:
        return [c[1:3] for c in im.layer], [im.quantization[c[3]] for c in im.layer], bool(im.info.get("progressive"))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_sampling_and_tables_stay(way, progressive):
    for tables in (TABLES, [TABLES[0], TABLES[1], TABLES[1]]):
        data = b"\xff\xd8" + encode_planes(PHOTO[:61, :83], tables, WAYS[way], progressive)
        out = again(data)
        assert built(out) == built(data) == (WAYS[way], tables, progressive)
        got = np.asarray(Image.open(io.BytesIO(out))).astype(int)
        assert np.abs(got - (read_image(data).data // 2 + 40)).mean() < 4
        assert len(out) < 1.3 * len(data) + 300


def test_tables_in_another_order():
    data = jpeg(quality=90, subsampling=2)
    found = [(m, bytearray(p)) for m, p in segments(data)]
    for marker, payload in found:  # luma by table 3, colour by table 0, which stands first
        if marker == 0xDB:
            payload[0] = {0: 3, 1: 0}[payload[0]]
        if marker == 0xC0:
            payload[8], payload[11], payload[14] = 3, 0, 0
    found.sort(key=lambda s: (s[0] != 0xE0, s[0] != 0xDB, s[1][0] if s[0] == 0xDB else 0))
    scan = data[data.index(b"\xff\xda") :]
    odd = b"\xff\xd8" + b"".join(segment(*s) for s in found if s[0] != 0xDA) + scan
    assert np.array_equal(read_image(odd).data, read_image(data).data)
    assert built(again(odd))[:2] == built(data)[:2]


@pytest.mark.parametrize("adobe", [True, False])
def test_rgb_stays_rgb(adobe):
    data = b"\xff\xd8" + encode_planes(PHOTO, TABLES, [(1, 1)] * 3, rgb=True)
    if not adobe:  # told by the components' names alone
        at = data.index(b"\xff\xee")
        data = data[:at] + data[at + 16 :]
    p = read_image(data)
    assert np.abs(p.data.astype(int) - PHOTO).mean() < 4
    out = again(data, change=False)
    for seen in (np.asarray(Image.open(io.BytesIO(out))), read_image(out).data):
        assert np.abs(seen.astype(int) - p.data).mean() < 2
    assert built(out)[1] == TABLES


def test_four_components_are_refused():
    f = io.BytesIO()
    Image.fromarray(PHOTO).convert("CMYK").save(f, "JPEG")
    with pytest.raises(ImageError, match="CMYK"):
        read_image(f.getvalue())


# damage --------------------------------------------------------------------------------------------------------------


def test_damaged_metadata_are_no_reason_to_refuse():
    "Payloads of metadata changed at random, with the segments whole: the picture is read and written all the same"
    rng = np.random.default_rng(7)
    items = f'<C:Directory><rdf:Seq><rdf:li><C:Item I:Length="{len(GAIN)}"/></rdf:li></rdf:Seq></C:Directory>'
    seeds = [old_previews("<")[0], phone(">", [(0x10001, THUMB), (0, GAIN)], xmp(items, SPACES), VIDEO)]
    for data in seeds:
        found = segments(data)
        rest = data[2 + sum(len(p) + 4 for _, p in found) :]
        for _ in range(100):
            parts = [(m, bytearray(p)) for m, p in found]
            for k in rng.integers(0, len(parts), 3):
                marker, payload = parts[k]
                for at in rng.integers(0, len(payload) if rng.random() < 0.5 else 60, rng.integers(1, 9)):
                    if 0xE0 <= marker < 0xEE and at < len(payload):
                        payload[at] = rng.integers(256)
            p = read_image(b"\xff\xd8" + b"".join(segment(*s) for s in parts) + rest)
            for format in rng.choice(["jpeg", "png", "tiff", "webp"], 2, replace=False):
                f = io.BytesIO()
                write_image(upright(p) if rng.random() < 0.3 else p, f, format, provenance=MARK)
                assert provenance_of(read_image(f.getvalue())) == MARK
