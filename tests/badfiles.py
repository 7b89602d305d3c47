"Bad and odd image files, made from nothing: `make(folder)` writes them and yields (name, 'error' or 'ok', why)."

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

Y, X = np.mgrid[:48, :64]
RGB = np.clip(
    np.stack([3 * X, 4 * Y, 2 * X + 2 * Y], -1) + np.random.default_rng(0).integers(0, 20, (48, 64, 3)), 0, 255
).astype(np.uint8)
IM = Image.fromarray(RGB)


def save(im, format, **kw):
    f = io.BytesIO()
    im.save(f, format, **kw)
    return f.getvalue()


def chunk(kind, data, crc=None):
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def png(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def ihdr(w, h, bits=8, colour=2):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, bits, colour, 0, 0, 0))


def idat(a, bits=8):
    return chunk(
        b"IDAT", zlib.compress(b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in a))
    )


def ifd(*tags, after=0):
    "A TIFF directory at offset 8 with values that fit into their entries"
    return struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + struct.pack("<I", after)


def tiff(w=8, h=8, bits=8, photometric=1, compression=1, samples=1, data=None, more=(), after=0):
    tags = {256: w, 257: h, 258: bits, 259: compression, 262: photometric, 277: samples, 278: h, **dict(more)}
    data = bytes(w * h * samples * bits // 8) if data is None else data
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    tags |= {273: start, 279: len(data)}
    return b"II*\0\x08\0\0\0" + ifd(*((k, 4, 1, v) for k, v in sorted(tags.items())), after=after) + data


def tif(a, **kw):
    import tifffile

    f = io.BytesIO()
    tifffile.imwrite(f, a, metadata=None, **kw)
    return f.getvalue()


def files():
    "(name, bytes, expected, why), the same at every call"
    rng = np.random.default_rng(0)
    jpeg, png8, webp = save(IM, "JPEG", quality=90), save(IM, "PNG"), save(IM, "WEBP", quality=90)
    tif8 = save(IM, "TIFF", compression="tiff_lzw")
    n = len(jpeg)
    yield "empty.png", b"", "error", "zero bytes"
    yield "zeros.jpg", bytes(5000), "error", "nothing but zeros"
    yield "page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", "error", "a web page"
    yield "notes.tif", b"Feld 7, Reihe 3\n", "error", "text"
    yield "noise.webp", rng.bytes(3000), "error", "random bytes"
    yield "report.png", b"%PDF-1.7\n" + bytes(500), "error", "a PDF"
    yield "flight.jpg", b"PK\x03\x04" + bytes(500), "error", "a ZIP archive"
    yield "clip.jpg", b"\0\0\0\x18ftypmp42" + bytes(500), "error", "a video"
    yield "phone.jpg", b"\0\0\0\x18ftypheic" + bytes(500), "error", "HEIC"
    yield "icon.png", save(IM, "GIF"), "ok", "a GIF, which becomes the PNG that its name promises"
    # JPEG
    yield "jpeg_2_bytes.jpg", jpeg[:2], "error", "only the first two bytes"
    yield "jpeg_header_only.jpg", jpeg[: jpeg.index(b"\xff\xda")], "error", "cut before the pixels"
    yield "jpeg_half.jpg", jpeg[: n // 2], "error", "cut in the middle"
    yield "jpeg_no_end.jpg", jpeg[:-2], "ok", "end marker missing, all pixels there"
    yield "jpeg_stray.jpg", jpeg[:20] + b"\xff\0junk" + jpeg[20:], "ok", "bytes between segments that are no marker"
    yield (
        "jpeg_zero_tail.jpg",
        jpeg[: n // 2] + bytes(n - n // 2),
        "error",
        "second half is zeros, as after a card failure",
    )
    yield "jpeg_early_end.jpg", jpeg[: n // 2] + b"\xff\xd9", "error", "end marker in the middle"
    yield (
        "jpeg_overwritten.jpg",
        jpeg[: n // 2] + b"\xff\xc4\0\x04ab" + jpeg[n // 2 + 6 :],
        "error",
        "a foreign marker inside the pixels",
    )
    yield (
        "jpeg_no_size.jpg",
        (i := jpeg.index(b"\xff\xc0")) and jpeg[: i + 5] + bytes(4) + jpeg[i + 9 :],
        "error",
        "0 x 0 pixels",
    )
    yield "jpeg_12bit.jpg", jpeg[: i + 4] + b"\x0c" + jpeg[i + 5 :], "error", "12 bits"
    yield "cmyk.jpg", save(IM.convert("CMYK"), "JPEG"), "error", "CMYK"
    yield "grey.jpg", save(IM.convert("L"), "JPEG"), "ok", "one band"
    yield "progressive.jpg", save(IM, "JPEG", progressive=True), "ok", "progressive"
    yield "trailing.jpg", jpeg + rng.bytes(2000), "ok", "junk behind the end, as phones write"
    yield (
        "exif_junk.jpg",
        jpeg[:2] + b"\xff\xe1\0\x16Exif\0\0" + b"\xde\xad" * 7 + jpeg[2:],
        "ok",
        "Exif block is rubbish",
    )
    loop = b"II*\0\x08\0\0\0" + ifd((0x0112, 3, 1, 99), (0x8769, 4, 1, 8), (0x8825, 4, 1, 10**9), after=8)
    yield (
        "exif_loop.jpg",
        jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(loop) + 8) + b"Exif\0\0" + loop + jpeg[2:],
        "ok",
        "Exif directories point to themselves; orientation 99",
    )
    # PNG
    yield "png_signature.png", png8[:8], "error", "only the signature"
    yield "png_cut_header.png", png8[:20], "error", "cut in the header"
    yield "png_half.png", png8[: len(png8) // 2], "error", "cut in the middle"
    yield "png_no_end.png", png8[:-12], "error", "end chunk missing"
    yield (
        "png_checksum.png",
        png(ihdr(64, 48), chunk(b"IDAT", zlib.compress(bytes(48 * 193)), crc=1)),
        "error",
        "wrong checksum",
    )
    yield "png_short.png", png(ihdr(64, 48), idat(RGB[:30])), "error", "30 of 48 rows"
    yield "png_no_pixels.png", png(ihdr(64, 48)), "error", "no pixel chunk"
    yield "png_bomb.png", png(ihdr(60000, 60000), idat(RGB)), "error", "header says 60000 x 60000"
    yield "png_bomb_1bit.png", png(ihdr(100000, 100000, 1, 0), idat(RGB)), "error", "header says 100000 x 100000"
    yield "png_no_size.png", png(ihdr(0, 48), idat(RGB)), "error", "0 pixels wide"
    yield "png_bits.png", png(ihdr(64, 48, 7), idat(RGB)), "error", "7 bits"
    yield "png_garbage.png", png(ihdr(64, 48), chunk(b"IDAT", rng.bytes(3000))), "error", "pixels are no zlib stream"
    yield (
        "png_text_bomb.png",
        png(ihdr(64, 48), chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**8), 9)), idat(RGB)),
        "ok",
        "a text that unpacks to 100 MB is not unpacked",
    )
    yield (
        "png_profile_bomb.png",
        png(ihdr(64, 48), chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(10**8), 9)), idat(RGB)),
        "ok",
        "a colour profile that unpacks to 100 MB is left out",
    )
    yield "animated.png", save(IM, "PNG", save_all=True, append_images=[IM.transpose(0)]), "error", "an animation"
    yield "palette.png", save(IM.quantize(32), "PNG"), "ok", "palette"
    yield "palette_alpha.png", save(IM.quantize(32), "PNG", transparency=3), "ok", "palette with a transparent colour"
    yield "bilevel.png", save(IM.convert("1"), "PNG"), "ok", "1 bit"
    yield "grey_alpha.png", save(IM.convert("LA"), "PNG"), "ok", "grey with alpha"
    yield "grey16.png", png(ihdr(64, 48, 16, 0), idat(RGB[..., 0].astype(np.uint16) * 257, 16)), "ok", "16-bit grey"
    yield "rgb16.png", png(ihdr(64, 48, 16, 2), idat(RGB.astype(np.uint16) * 257, 16)), "ok", "16-bit RGB"
    yield (
        "rgba16.png",
        png(ihdr(64, 48, 16, 6), idat(np.dstack([RGB, RGB[..., :1]]).astype(np.uint16) * 257, 16)),
        "ok",
        "16-bit RGBA",
    )
    yield "one_pixel.png", save(IM.crop((0, 0, 1, 1)), "PNG"), "ok", "1 x 1"
    yield "thread.png", save(IM.resize((3000, 1)), "PNG"), "ok", "3000 x 1"
    # WebP
    yield "webp_half.webp", webp[: len(webp) // 2], "error", "cut in the middle"
    yield "webp_header.webp", webp[:16], "error", "cut in the header"
    yield "webp_garbage.webp", webp[:20] + rng.bytes(len(webp) - 20), "error", "frame overwritten"
    yield "animated.webp", save(IM, "WEBP", save_all=True, append_images=[IM.transpose(0)]), "error", "an animation"
    yield "lossless.webp", save(IM, "WEBP", lossless=True), "ok", "lossless"
    yield "alpha.webp", save(Image.fromarray(np.dstack([RGB, RGB[..., :1]])), "WEBP"), "ok", "with alpha"
    # TIFF
    yield "tif_header.tif", tif8[:8], "error", "only the header"
    yield "tif_half.tif", tif8[: len(tif8) // 2], "error", "cut in the middle"
    yield "tif_last_byte.tif", tiff()[:-1], "error", "the last byte is missing"
    yield "tif_bomb.tif", tiff(60000, 60000, data=b"x"), "error", "header says 60000 x 60000"
    yield (
        "tif_strip_bomb.tif",
        tiff(compression=8, data=zlib.compress(bytes(10**8), 9)),
        "error",
        "a strip that unpacks to 100 MB",
    )
    yield (
        "tif_tile_bomb.tif",
        tiff(more={322: 2**20, 323: 2**20, 324: 200, 325: 8}),
        "error",
        "a tile larger than the picture",
    )
    yield "tif_entries.tif", b"II*\0\x08\0\0\0" + b"\xff\xff" + bytes(100), "error", "65535 tags announced"
    yield "tif_no_tags.tif", b"II*\0\x08\0\0\0" + bytes(100), "error", "no tags"
    yield "tif_lzw_garbage.tif", tiff(64, 64, compression=5, data=rng.bytes(500)), "error", "LZW data are random"
    yield (
        "tif_deflate_garbage.tif",
        tiff(64, 64, compression=8, data=rng.bytes(500)),
        "error",
        "Deflate data are random",
    )
    yield "tif_lerc.tif", tiff(compression=34887), "error", "LERC compression"
    yield "tif_int32.tif", tiff(bits=32), "ok", "32-bit integers"
    yield "tif_1bit.tif", save(IM.convert("1"), "TIFF"), "ok", "1 bit"
    yield "tif_palette.tif", save(IM.quantize(16), "TIFF"), "ok", "palette"
    yield "tif_cmyk.tif", save(IM.convert("CMYK"), "TIFF"), "error", "CMYK"
    yield "raw.tif", tiff(photometric=32803), "error", "camera raw"
    yield "pages.tif", save(IM, "TIFF", save_all=True, append_images=[IM]), "error", "two pages"
    yield "tif_loop.tif", tiff(after=8), "ok", "the next page is the same page"
    f4 = RGB.astype(np.float32) / 255
    nan, inf, plus = f4.copy(), f4.copy(), f4.copy()
    nan[3, 4, 1], inf[5, :7], plus[0, 0, 0] = np.nan, -np.inf, np.inf
    yield "float.tif", tif(f4, photometric="rgb"), "ok", "float32"
    yield "nan.tif", tif(nan, photometric="rgb"), "ok", "a NaN"
    yield "inf.tif", tif(inf, photometric="rgb"), "ok", "infinite values"
    yield "plus_inf.tif", tif(plus, photometric="rgb"), "ok", "one infinite value"
    yield (
        "five_bands.tif",
        tif(np.dstack([RGB, RGB[..., :2]]), photometric="minisblack", planarconfig="contig"),
        "ok",
        "five bands",
    )
    yield "big.tif", tif(RGB, photometric="rgb", bigtiff=True, byteorder=">"), "ok", "BigTIFF, big-endian"
    yield (
        "planar16.tif",
        tif(np.moveaxis(RGB, -1, 0).astype(np.uint16) * 200, photometric="rgb", planarconfig="separate"),
        "ok",
        "bands apart, 16 bits",
    )
    # names
    yield "png_named.jpg", png8, "ok", "a PNG named .jpg"
    yield "jpeg_named.tif", jpeg, "ok", "a JPEG named .tif"
    yield "Feld \u00e4\u00f6\u00fc.png", png8, "ok", "name in composed Unicode"
    yield "Feld a\u0308o\u0308.png", png8, "ok", "name in decomposed Unicode"
    yield "\u7530 \U0001f33e.jpg", jpeg, "ok", "Japanese and emoji in the name"
    yield "-x --y %s {0}.jpg", jpeg, "ok", "dashes, percent and braces in the name"
    yield "two\nlines.png", png8, "ok", "a line break in the name"
    yield "n" * 251 + ".png", png8, "ok", "the longest name that most file systems take"
    yield os.fsdecode(b"caf\xe9.png"), png8, "ok", "name that is not UTF-8"
    yield "plot.jpg", jpeg, "ok", "same stem as the next"
    yield "plot.png", png8, "ok", "same stem as the one before"
    yield "UPPER.JPG", jpeg, "ok", "upper-case extension"


def special(folder):
    "What is not a file: (name, expected, why); left out where the system cannot make it"

    def attempt(name, make, expected, why):
        try:
            make(folder / name)
        except (OSError, AttributeError, NotImplementedError):
            return
        yield name, expected, why

    yield from attempt("folder.png", lambda p: p.mkdir(), "error", "a folder with the name of an image")
    yield from attempt("dangling.png", lambda p: p.symlink_to("nowhere.png"), "error", "a link to nothing")
    yield from attempt("circle.png", lambda p: p.symlink_to("circle.png"), "error", "a link to itself")
    yield from attempt("pipe.png", lambda p: os.mkfifo(p), "error", "a pipe: opening it would wait for ever")
    yield from attempt("link.png", lambda p: p.symlink_to("plot.png"), "ok", "a link to an image")
    locked = folder / "locked.png"
    locked.write_bytes(save(IM, "PNG"))
    locked.chmod(0)
    if os.access(locked, os.R_OK):
        locked.unlink()  # a user who may read everything
    else:
        yield locked.name, "error", "no permission to read"


def make(folder):
    "Write all of them into `folder`, yielding (name, 'error' or 'ok', why)."
    folder = Path(folder)
    for name, data, expected, why in files():
        try:
            (folder / name).write_bytes(data)
        except (OSError, UnicodeError):
            continue  # a file system that does not take the name
        yield name, expected, why
    yield from special(folder)


if __name__ == "__main__":
    import sys

    for name, expected, why in make(sys.argv[1]):
        print(f"{expected:6}{name!a:40}{why}")
