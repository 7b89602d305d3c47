"Hostile and broken uploads, always the same: `files()` yields (name, bytes)."
import random
import struct
import zlib

import badfiles
import numpy as np
from badfiles import IM, chunk, idat, ihdr, png, save, tiff
from PIL import Image


def seeds():
    "Sound files to spoil"
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8825)[1] = "N"
    yield "jpeg", save(IM, "JPEG", quality=90, exif=exif)
    yield "progressive", save(IM, "JPEG", quality=80, progressive=True)
    yield "png", save(IM, "PNG")
    yield "palette", save(IM.quantize(16), "PNG")
    yield "webp", save(IM, "WEBP", quality=80, exif=exif)
    yield "lossless", save(IM, "WEBP", lossless=True)
    yield "lzw", save(IM, "TIFF", compression="tiff_lzw")
    yield "deflate", save(IM, "TIFF", compression="tiff_adobe_deflate")


def spoil(data, r):
    "One of the things that happen to files, by accident or with intent"
    b, n = bytearray(data), len(data)
    match r.randrange(7):
        case 0:                                                        # bits flipped anywhere
            for _ in range(r.randint(1, 40)): b[r.randrange(n)] ^= 1 << r.randrange(8)
        case 1: del b[r.randrange(1, n):]                              # cut off
        case 2:
            i = r.randrange(n)
            del b[i:i + r.randint(1, 64)]      # a hole
        case 3:
            i = r.randrange(n)
            b[i:i] = r.randbytes(r.randint(1, 64))
        case 4:                                                        # a number in the header becomes extreme
            i = r.randrange(min(n - 4, 400))
            b[i : i + 4] = r.choice(
                [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\x7f"]
            )
        case 5:
            i, j = sorted(r.randrange(n) for _ in "ab")
            b += b[i:j] * r.randint(1, 20)
        case 6:
            i = r.randrange(n)
            b[i:] = r.randbytes(n - i)         # noise from somewhere on
    return bytes(b)


def _bombs():
    "Much more than they seem"
    yield "bomb_png_header", png(ihdr(60000, 60000), idat(np.zeros((1, 3), np.uint8)))
    yield "bomb_png_sizes", png(ihdr(2**31 - 1, 2**31 - 1), chunk(b"IDAT", b"x"))
    yield "bomb_png_stream", png(ihdr(8, 8), chunk(b"IDAT", zlib.compress(bytes(1 << 26), 9)))
    for kind in (b"iCCP", b"zTXt", b"iTXt"):
        head = {b"iCCP": b"p\0\0", b"zTXt": b"Raw profile type exif\0\0", b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0"}[kind]
        yield (
            f"bomb_{kind.decode()}",
            png(ihdr(8, 8), chunk(kind, head + zlib.compress(bytes(1 << 26), 9)), idat(np.zeros((8, 24), np.uint8))),
        )
    yield "bomb_png_flat", png(ihdr(9000, 9000, 8, 0), chunk(b"IDAT", zlib.compress(bytes(9001 * 9000), 9)))
    yield "bomb_tiff_size", tiff(65000, 65000, data=b"x")
    yield "bomb_tiff_deflate", tiff(8, 8, compression=8, data=zlib.compress(bytes(1 << 26), 9))
    yield "bomb_tiff_count", tiff(8, 8, more={279: 2**32 - 1})
    yield "bomb_tiff_rows", tiff(8, 8, more={278: 0})
    yield "bomb_webp", (w := save(IM, "WEBP")) and w[:26] + b"\xff\x3f\xff\x3f" + w[30:]
    yield (
        "bomb_jpeg",
        (j := save(IM, "JPEG")) and (i := j.index(b"\xff\xc0")) and j[: i + 5] + b"\xff\xff\xff\xff" + j[i + 9 :],
    )
    yield (
        "bomb_progressive",
        (p := save(IM, "JPEG", progressive=True)) and p[:-2] + p[p.index(b"\xff\xda") : -2] * 500 + b"\xff\xd9",
    )


def _headers():
    "Headers that are huge, deep or go in circles"
    def exif(block):
        return (j := save(IM, "JPEG")) and j[:2] + b"\xff\xe1" + struct.pack(
            ">H", len(block) + 8
        ) + b"Exif\0\0" + block + j[2:]

    circle = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    yield "exif_circle", exif(circle)
    yield "exif_65535_tags", exif(b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + bytes(60000))
    yield (
        "exif_4_GiB_value",
        exif(b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 0x010F, 2, 2**32 - 1, 26) + bytes(4)),
    )
    deep = b"".join(
        struct.pack("<H", 1) + struct.pack("<HHII", (0x8769, 0xA005)[k % 2], 4, 1, 8 + 18 * (k + 1)) + bytes(4)
        for k in range(3000)
    )
    yield "exif_deep", exif((b"II*\0\x08\0\0\0" + deep)[:65000])
    yield (
        "tiff_pages_in_a_circle",
        b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 8) + struct.pack("<I", 8),
    )
    pages = b"".join(
        struct.pack("<H", 1) + struct.pack("<HHII", 256, 4, 1, 8) + struct.pack("<I", 8 + 18 * (k + 1))
        for k in range(50000)
    )
    yield "tiff_50000_pages", b"II*\0\x08\0\0\0" + pages
    yield "tiff_65535_tags", b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + struct.pack("<HHII", 256, 4, 1, 8) * 65535
    yield "png_100000_chunks", png(ihdr(8, 8), *[chunk(b"tEXt", b"a\0b")] * 100_000, idat(np.zeros((8, 24), np.uint8)))
    yield "jpeg_20000_comments", (j := save(IM, "JPEG")) and j[:2] + b"\xff\xfe\0\4ab" * 20000 + j[2:]
    yield (
        "jpeg_xmp_10_MB",
        (j := save(IM, "JPEG"))
        and j[:2] + (b"\xff\xe1\xff\xff" + b"http://ns.adobe.com/xap/1.0/\0".ljust(65533, b"<")) * 150 + j[2:],
    )
    yield "webp_100000_chunks", (w := b"WEBP" + b"junk\0\0\0\0" * 100_000) and b"RIFF" + struct.pack("<I", len(w)) + w


def _polyglots():
    "Two things at once, or something else altogether"
    sound = dict(seeds())
    for a in ("jpeg", "png", "webp", "lzw"):
        yield f"{a}_then_zip", sound[a] + b"PK\x03\x04" + bytes(200)
        yield f"{a}_then_html", sound[a] + b"<script>alert(1)</script>"
        yield f"html_then_{a}", b"<html>" + sound[a]
        yield f"{a}_as_other", sound[a][:12] + sound["png" if a != "png" else "jpeg"][12:]
    yield "elf", b"\x7fELF" + bytes(3000)
    yield "pickle", b"\x80\x04\x95" + bytes(300)
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "postscript", b"%!PS\n(%pipe%id) (r) file"
    yield "mvg", b"push graphic-context\nimage over 0,0 0,0 'https://127.0.0.1/x'\n"
    yield "url", b"http://127.0.0.1:22/"


def files(mutants:int=40): # mutants of each seed
    "About 40 * 8 mutants and 150 more"
    for name, data in seeds():
        r = random.Random(name)
        for i in range(mutants): yield f"{name}_{i}", spoil(data, r)
    for part in (_bombs, _headers, _polyglots): yield from part()
    for name, data, *_ in badfiles.files(): yield f"bad_{name}", data
