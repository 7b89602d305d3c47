"Photos as cameras write them: Exif blocks, orientation, formats."

import io
import struct

import exifread
import numpy as np
from PIL import Image

from agri_cae.io.exif import pack_exif
from agri_cae.io.formats import Meta
from agri_cae.io.images import Picture, write_image
from agri_cae.io.tags import Tag, Tags

FORMATS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tif"}
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" '
    b'drone-dji:FlightYawDegree="+12.30"/></x:xmpmeta>'
)
NOTE = b"MAKER\0\1\2" * 9
GRADIENT = np.stack(
    [
        np.tile(np.linspace(0, 250, 80), (48, 1)),
        np.tile(np.linspace(250, 0, 48)[:, None], (1, 80)),
        np.full((48, 80), 60),
    ],
    -1,
).astype(np.uint8)


def ascii_tag(text):
    return 2, len(text) + 1, text.encode() + b"\0"


def camera_exif(orientation, order="<", thumbnail=True):
    "An Exif block as a drone writes it"

    def short(v):
        return 3, 1, struct.pack(order + "H", v)

    def ratio(*v):
        return 5, len(v) // 2, struct.pack(f"{order}{len(v)}I", *v)

    block = pack_exif(
        Tags(
            order,
            {
                0x010F: ascii_tag("DJI"),
                0x0110: ascii_tag("FC6310"),
                0x0112: short(orientation),
                0x0132: ascii_tag("2026:05:01 10:11:12"),
                Tag.ExifIFD: {
                    0x829A: ratio(1, 500),
                    0x8827: short(1600),
                    0x9003: ascii_tag("2026:05:01 10:11:12"),
                    0x927C: (7, len(NOTE), NOTE),
                    0xA002: short(80),
                    0xA003: short(48),
                    0xA434: ascii_tag("24.0 mm f/2.8"),
                    0xA005: {1: ascii_tag("R98")},
                },
                Tag.GPSIFD: {
                    1: ascii_tag("N"),
                    2: ratio(48, 1, 8, 1, 1234, 100),
                    3: ascii_tag("E"),
                    4: ratio(11, 1, 34, 1, 5678, 100),
                    6: ratio(12345, 100),
                },
            },
        )
    )
    if not thumbnail:
        return block
    thumb = io.BytesIO()
    Image.fromarray(GRADIENT).resize((20, 12)).save(thumb, "JPEG")
    at = len(block) + len(block) % 2
    (n,) = struct.unpack_from(order + "H", block, 8)
    head = bytearray(block.ljust(at, b"\0"))
    struct.pack_into(order + "I", head, 10 + 12 * n, at)
    return (
        bytes(head)
        + struct.pack(order + "H", 2)
        + struct.pack(order + "HHII", 0x0201, 4, 1, at + 30)
        + struct.pack(order + "HHII", 0x0202, 4, 1, len(thumb.getvalue()))
        + bytes(4)
        + thumb.getvalue()
    )


def store(upright, orientation):
    "Stored pixels that a viewer turns upright: the opposite of the Exif table"
    im = Image.fromarray(upright)
    back = {
        1: None,
        2: Image.FLIP_LEFT_RIGHT,
        3: Image.ROTATE_180,
        4: Image.FLIP_TOP_BOTTOM,
        5: Image.TRANSPOSE,
        6: Image.ROTATE_90,
        7: Image.TRANSVERSE,
        8: Image.ROTATE_270,
    }[orientation]
    return im if back is None else im.transpose(back)


def photo(folder, format, orientation, order="<"):
    "A file as a camera makes it, with the Exif block written by others than the library (Pillow; tifffile for TIFF)"
    im, path, exif = store(GRADIENT, orientation), folder / f"photo{FORMATS[format]}", camera_exif(orientation, order)
    if format != "tiff":
        im.save(
            path,
            format,
            exif=(b"Exif\0\0" if format == "jpeg" else b"") + exif,
            **(
                dict(lossless=True) if format == "webp" else dict(quality=98, subsampling=0) if format == "jpeg" else {}
            ),
        )
    else:
        f = io.BytesIO()
        pic = Picture(np.asarray(im), format="tiff", meta=Meta(exif=camera_exif(orientation, order, thumbnail=False)))
        write_image(pic, f)
        path.write_bytes(f.getvalue())
    return path


def seen(path):
    "The Exif tags as `exifread` sees them. Of a WebP it gets the chunk alone: it wants a prefix unknown to RFC 9649."
    data = path.read_bytes()
    if data[8:12] == b"WEBP":
        at = data.index(b"EXIF")
        data = data[at + 8 :]
    return {k: str(v) for k, v in exifread.process_file(io.BytesIO(data), details=False).items()}
