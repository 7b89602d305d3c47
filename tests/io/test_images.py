"Image files in and out: metadata seen by independent readers, bad input, failing disks, memory."
import dataclasses
import errno
import io
import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path

import badfiles
import exifread
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from agri_cae.config import ConfigError, ImageError, OutputError
from agri_cae.io import images
from agri_cae.io.exif import EXIF_IFD, GPS_IFD, pack_exif, read_exif, values
from agri_cae.io.images import Picture, find_images, inspect_image, provenance_of, read_image, sample, write_image

RASTERS = Path(__file__).parents[3]/"shared"/"data"/"rasters"
FORMATS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tif"}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" drone-dji:FlightYawDegree="+12.30"/></x:xmpmeta>'
NOTE = b"MAKER\0\1\2" * 9
GRADIENT = np.stack([np.tile(np.linspace(0, 250, 80), (48, 1)), np.tile(np.linspace(250, 0, 48)[:, None], (1, 80)), np.full((48, 80), 60)], -1).astype(np.uint8)


def ascii_tag(text): return 2, len(text) + 1, text.encode() + b"\0"


def camera_exif(orientation, order="<", thumbnail=True):
    "An Exif block as a drone writes it"
    def short(v): return 3, 1, struct.pack(order + "H", v)
    def ratio(*v): return 5, len(v) // 2, struct.pack(f"{order}{len(v)}I", *v)
    block = pack_exif({0x010F: ascii_tag("DJI"), 0x0110: ascii_tag("FC6310"), 0x0112: short(orientation), 0x0132: ascii_tag("2026:05:01 10:11:12"),
        EXIF_IFD: {0x829A: ratio(1, 500), 0x8827: short(1600), 0x9003: ascii_tag("2026:05:01 10:11:12"), 0x927C: (7, len(NOTE), NOTE), 0xA002: short(80), 0xA003: short(48),
                   0xA434: ascii_tag("24.0 mm f/2.8"), 0xA005: {1: ascii_tag("R98")}},
        GPS_IFD: {1: ascii_tag("N"), 2: ratio(48, 1, 8, 1, 1234, 100), 3: ascii_tag("E"), 4: ratio(11, 1, 34, 1, 5678, 100), 6: ratio(12345, 100)}}, order)
    if not thumbnail: return block
    thumb = io.BytesIO()
    Image.fromarray(GRADIENT).resize((20, 12)).save(thumb, "JPEG")
    at = len(block) + len(block) % 2
    n, = struct.unpack_from(order + "H", block, 8)
    head = bytearray(block.ljust(at, b"\0"))
    struct.pack_into(order + "I", head, 10 + 12 * n, at)
    return bytes(head) + struct.pack(order + "H", 2) + struct.pack(order + "HHII", 0x0201, 4, 1, at + 30) + struct.pack(order + "HHII", 0x0202, 4, 1, len(thumb.getvalue())) + bytes(4) + thumb.getvalue()


def store(upright, orientation):
    "Stored pixels that a viewer turns upright: the opposite of the Exif table"
    im = Image.fromarray(upright)
    back = {1: None, 2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE, 6: Image.ROTATE_90, 7: Image.TRANSVERSE, 8: Image.ROTATE_270}[orientation]
    return im if back is None else im.transpose(back)


def photo(folder, format, orientation, order="<"):
    "A file as a camera makes it, with the Exif block written by others than the library (Pillow; tifffile for TIFF)"
    im, path, exif = store(GRADIENT, orientation), folder/f"photo{FORMATS[format]}", camera_exif(orientation, order)
    if format != "tiff": im.save(path, format, exif=(b"Exif\0\0" if format == "jpeg" else b"") + exif, **(dict(lossless=True) if format == "webp" else dict(quality=98, subsampling=0) if format == "jpeg" else {}))
    else:
        f = io.BytesIO()
        pic = Picture(np.asarray(im), format="tiff", exif=camera_exif(orientation, order, thumbnail=False))
        write_image(pic, f)
        path.write_bytes(f.getvalue())
    return path


def seen(path):
    "The Exif tags as `exifread` sees them; it wants a prefix in WebP that RFC 9649 does not know, so there it gets the chunk alone"
    data = path.read_bytes()
    if data[8:12] == b"WEBP": at = data.index(b"EXIF"); data = data[at + 8:]
    return {k: str(v) for k, v in exifread.process_file(io.BytesIO(data), details=False).items()}


@pytest.mark.parametrize("format,orientation,order", [(f, o, "<>"[o % 2]) for f in FORMATS for o in range(1, 9)])
def test_upright_and_tags_kept(tmp_path, format, orientation, order):
    path, out = photo(tmp_path, format, orientation, order), tmp_path/f"out{FORMATS[format]}"
    before = seen(path)
    assert "Orientation" in "".join(before) and before["Image Make"] == "DJI"
    assert inspect_image(path) | dict(width=80, height=48, orientation=orientation, gps=True, exif=True) == inspect_image(path)
    picture = read_image(path)
    assert np.abs(picture.data.astype(int) - GRADIENT).max() <= (20 if format == "jpeg" else 0)
    write_image(picture.with_data(picture.data.copy()), out, provenance="agri_cae 0.1.0 fast strength=1")
    after = seen(out)
    assert after["Image Orientation"] == "Horizontal (normal)"
    assert after["Image Tag 0x000B"] == "agri_cae 0.1.0 fast strength=1"
    sizes = {"EXIF ExifImageWidth", "EXIF ExifImageLength", "Image ExifOffset", "Image GPSInfo", "EXIF InteroperabilityOffset", "Image Orientation", "Image Tag 0x000B"}
    kept = {k for k in before if k.startswith(("GPS ", "EXIF ", "Image Ma", "Image Mo", "Image Da", "Interop"))} - sizes
    assert len(kept) > 10 and {k: after.get(k) for k in kept} == {k: before[k] for k in kept}
    assert not any(k.startswith("Thumbnail") or k == "JPEGThumbnail" for k in after)
    if format != "tiff": assert (after["EXIF ExifImageWidth"], after["EXIF ExifImageLength"]) == ("80", "48")
    again = read_image(out)                                  # a second reading does not turn again
    assert again.data.shape == GRADIENT.shape and NOTE in again.exif and provenance_of(again) == "agri_cae 0.1.0 fast strength=1"
    assert np.asarray(ImageOps.exif_transpose(Image.open(out))).shape == GRADIENT.shape


def test_maker_note_stays_in_place(tmp_path):
    path, out = photo(tmp_path, "jpeg", 6), tmp_path/"out.jpg"
    write_image(read_image(path), out, provenance="x" * 40)
    before, after = (p.read_bytes() for p in (path, out))
    assert before.index(NOTE) - before.index(b"Exif\0\0") == after.index(NOTE) - after.index(b"Exif\0\0")


@pytest.mark.parametrize("source,target", list(itertools.product(FORMATS, FORMATS)))
def test_metadata_across_formats(tmp_path, source, target):
    icc = images.read_image(sample("field_camera")).icc
    picture = Picture(GRADIENT, format=source, exif=camera_exif(1, thumbnail=False), xmp=XMP.replace(b"6", b"1"), icc=icc)
    write_image(picture, tmp_path/f"a{FORMATS[source]}")
    write_image(read_image(tmp_path/f"a{FORMATS[source]}"), tmp_path/f"b{FORMATS[target]}")
    b = read_image(tmp_path/f"b{FORMATS[target]}")
    assert b.format == target and b.icc == icc and b.xmp == picture.xmp
    tags = seen(tmp_path/f"b{FORMATS[target]}")
    assert (tags["Image Make"], tags["EXIF LensModel"], tags["GPS GPSLatitude"]) == ("DJI", "24.0 mm f/2.8", "[48, 8, 617/50]")
    with Image.open(tmp_path/f"b{FORMATS[target]}") as im: assert im.info.get("icc_profile") == icc     # another reader finds them too
    assert np.abs(b.data.astype(int) - GRADIENT).max() < 40


def test_xmp_orientation(tmp_path):
    im = store(GRADIENT, 6); im.save(tmp_path/"a.jpg", quality=98, subsampling=0, xmp=XMP)
    p = read_image(tmp_path/"a.jpg")
    assert p.data.shape == GRADIENT.shape and p.xmp == XMP.replace(b'"6"', b'"1"')


@pytest.mark.parametrize("format,dtype,c,alpha", [("png", t, c, a) for t in ("u1", "u2") for c in (1, 3) for a in (False, True)] + [("tiff", t, c, a) for t in ("u1", "u2", "f4") for c in (1, 3) for a in (False, True)]
                         + [("webp", "u1", 3, False), ("webp", "u1", 3, True)])
def test_lossless(tmp_path, format, dtype, c, alpha):
    rng = np.random.default_rng(1)
    a = rng.random((37, 53, c + alpha)); a = (a if dtype == "f4" else a * np.iinfo(dtype).max).astype(dtype)
    p = Picture(a[..., :c], a[..., c] if alpha else None, format, extra=dict(lossless=True))
    f = io.BytesIO(); write_image(p, f); q = read_image(f.getvalue())
    assert q.data.dtype == a.dtype and np.array_equal(q.data, p.data) and (np.array_equal(q.alpha, p.alpha) if alpha else q.alpha is None)
    info = inspect_image(f.getvalue())
    assert (info["format"], info["width"], info["height"], info["bands"], info["alpha"], info["dtype"]) == (format, 53, 37, c, alpha, a.dtype.name)
    if format == "tiff" and dtype != "f4": assert np.array_equal(tifffile.imread(io.BytesIO(f.getvalue())).reshape(a.shape), a)
    if format == "png" and dtype == "u1": assert np.array_equal(np.asarray(Image.open(f)).reshape(a.shape), a)


def test_jpeg_keeps_its_style(tmp_path):
    src = sample("field_camera"); p = read_image(src); write_image(p, tmp_path/"a.jpg")
    with Image.open(src) as old, Image.open(tmp_path/"a.jpg") as new:
        assert old.quantization == new.quantization and old.layer == new.layer and old.info["dpi"] == new.info["dpi"] and old.info["photoshop"] == new.info["photoshop"] and old.info["icc_profile"] == new.info["icc_profile"]
    for sampling, progressive, mode in itertools.product((0, 1, 2), (False, True), ("RGB", "L")):
        Image.fromarray(GRADIENT).convert(mode).save(tmp_path/"b.jpg", quality=83, subsampling=sampling, progressive=progressive, dpi=(300, 300), comment="plot 7")
        write_image(read_image(tmp_path/"b.jpg"), tmp_path/"c.jpg", overwrite=True)
        with Image.open(tmp_path/"b.jpg") as old, Image.open(tmp_path/"c.jpg") as new:
            assert (old.quantization, old.layer if mode == 'RGB' else 0, old.info.get("progressive"), old.info["dpi"], old.info["comment"], old.mode) == (new.quantization, new.layer if mode == 'RGB' else 0, new.info.get("progressive"), new.info["dpi"], new.info["comment"], new.mode)


@pytest.mark.parametrize("path", [sample("airborne"), sample("satellite"), *sorted(RASTERS.glob("*.tif"))], ids=lambda p: p.name)
def test_real_rasters_keep_every_tag(tmp_path, path):
    if (problem := inspect_image(path)["problem"]):
        with pytest.raises(ImageError, match="bands"): read_image(path)
        return
    p = read_image(path); write_image(p, tmp_path/"out.tif", provenance="test"); q = read_image(tmp_path/"out.tif")
    assert np.array_equal(p.data, q.data) and np.array_equal(p.alpha, q.alpha)
    with tifffile.TiffFile(path) as t, tifffile.TiffFile(tmp_path/"out.tif") as u:
        old, new = t.pages[0].tags, u.pages[0].tags
        places = {273, 279}
        assert {g.code: g.value for g in old if g.code not in places} == {g.code: g.value for g in new if g.code not in places | {0x000B}}
        assert u.pages[0].geotiff_tags == t.pages[0].geotiff_tags if t.pages[0].is_geotiff else True


def test_shared_rasters_present():
    if not RASTERS.is_dir(): pytest.skip("../shared/data/rasters is absent: only the samples in the package were tried")
    assert len(list(RASTERS.glob("*.tif"))) == 4


def test_georeferenced_is_not_turned(tmp_path):
    f = io.BytesIO(); write_image(read_image(sample("airborne")), f); data = bytearray(f.getvalue())
    p = read_image(bytes(data)); tags, order = read_exif(p.exif); tags[0x0112] = 3, 1, b"\6\0"
    f = io.BytesIO(); write_image(dataclasses.replace(p, exif=pack_exif(tags, order)), f); q = read_image(f.getvalue())
    assert np.array_equal(p.data, q.data) and values(read_exif(q.exif)[0], 0x0112, order) == (6,)


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    return folder, list(badfiles.make(folder))


def test_bad_files(bad, tmp_path):
    folder, cases = bad
    assert len(cases) > 80
    wrong = []
    for name, expected, why in cases:
        try:
            p = read_image(folder/name); got = "ok"
            f = io.BytesIO(); write_image(p, f); assert np.array_equal(read_image(f.getvalue()).data.shape, p.data.shape)
        except ImageError as e:
            got = "error"; text = str(e)
            if "\n" in text or len(e.what) < 8 or not e.do or Path(name).suffix not in text: wrong.append((name, "message", text))
        except BaseException as e: got = repr(e)
        if got != expected: wrong.append((name, why, expected, got))
        try: inspect_image(folder/name)
        except ImageError: assert expected == "error", name
    assert not wrong


def test_good_files_are_right(bad):
    folder = bad[0]
    for name in ("palette.png", "grey.jpg", "progressive.jpg", "png_named.jpg", "rgb16.png", "rgba16.png", "planar16.tif", "big.tif", "lossless.webp", "trailing.jpg", "exif_junk.jpg", "png_text_bomb.png"):
        p = read_image(folder/name); want = badfiles.RGB if p.data.shape[2] == 3 else np.asarray(badfiles.IM.convert("L"))[..., None]
        scale = {"rgb16.png": 257, "rgba16.png": 257, "planar16.tif": 200}.get(name, 1)
        tolerance = 60 if name.endswith("jpg") and p.format == "jpeg" or name == "palette.png" else 0
        assert np.abs(p.data.astype(int) - want.astype(int) * scale).max() <= tolerance, name
    p = read_image(folder/"palette_alpha.png"); assert set(np.unique(p.alpha)) == {0, 255}
    assert b"Comment" in b"".join(d for _, d, _ in read_image(folder/"png_text_bomb.png").extra["chunks"])


def test_every_truncation(tmp_path):
    "Cut anywhere, a file is an error: never a crash, never a picture with a grey part"
    for format, kw in (("jpeg", {}), ("png", {}), ("webp", dict(lossless=True)), ("tiff", {})):
        f = io.BytesIO(); write_image(Picture(GRADIENT, format=format, exif=camera_exif(6, thumbnail=False), xmp=XMP, extra=kw), f); data = f.getvalue()
        for cut in sorted({*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 12, len(data))}):
            if format == "tiff" and cut >= data.index(b"</x:xmpmeta>") + 12:        # behind the pixels and the main tags stand Exif values alone
                assert np.array_equal(read_image(data[:cut]).data, read_image(data).data)
                continue
            with pytest.raises(ImageError): read_image(data[:cut])


def test_random_damage():
    "Bytes changed at random: a picture of the right size or an ImageError, nothing else"
    rng = np.random.default_rng(3)
    for format in FORMATS:
        f = io.BytesIO(); write_image(Picture(GRADIENT, format=format, exif=camera_exif(6), xmp=XMP), f); data = f.getvalue()
        for _ in range(150):
            b = bytearray(data)
            for at in rng.integers(0, len(b), rng.integers(1, 5)): b[at] = rng.integers(256)
            try: assert read_image(bytes(b), max_pixels=10 ** 6).data.size <= 3 * 10 ** 6
            except ImageError: pass


def test_limit():
    data = sample("field_camera").read_bytes()
    with pytest.raises(ImageError, match="AGRI_CAE_MAX_PIXELS"): read_image(data, max_pixels=640 * 427 - 1)
    assert read_image(data, max_pixels=640 * 427).data.shape == (427, 640, 3)


def test_limit_of_the_settings(monkeypatch):
    monkeypatch.setenv("AGRI_CAE_MAX_PIXELS", "1000")
    with pytest.raises(ImageError, match="limit of 1,000"): read_image(sample("field_camera"))


def leftovers(folder): return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_left_when_writing_fails(tmp_path, monkeypatch, format):
    "The disk runs full in the middle of the file: the old file stays, no fragment is left"
    out = tmp_path/f"a{FORMATS[format]}"; out.write_bytes(b"old")
    real = open
    class Full(io.FileIO):
        def write(self, b):
            if self.tell() + len(memoryview(b).cast("B")) > 500: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(b)
    monkeypatch.setattr(images, "open", lambda p, mode="r", *a, **k: Full(p, "xb") if mode == "xb" else real(p, mode, *a, **k), raising=False)
    with pytest.raises(OutputError, match="No space left") as e: write_image(Picture(np.random.default_rng(0).integers(0, 255, (90, 90, 3)).astype(np.uint8), format=format), out, overwrite=True)
    assert "\n" not in str(e.value) and leftovers(tmp_path) == [out.name] and out.read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("format", FORMATS)
def test_full_device(format):
    with pytest.raises(OutputError, match="No space left"): write_image(Picture(GRADIENT, format=format), "/dev/full", format=format)
    with pytest.raises(OutputError, match="No space left"), open("/dev/full", "wb", buffering=0) as f: write_image(Picture(GRADIENT, format=format), f)


def test_interrupted(tmp_path, monkeypatch):
    def stop(*a, **k): raise KeyboardInterrupt
    monkeypatch.setattr(images.formats, "encode_png", stop)
    with pytest.raises(KeyboardInterrupt): write_image(Picture(GRADIENT), tmp_path/"a.png")
    assert leftovers(tmp_path) == []


def test_targets(tmp_path):
    p = Picture(GRADIENT); out = tmp_path/"a.png"; write_image(p, out); first = out.read_bytes()
    with pytest.raises(OutputError, match="exists already"): write_image(p, out)
    assert out.read_bytes() == first
    write_image(p.with_data(255 - GRADIENT), out, overwrite=True); assert out.read_bytes() != first
    (tmp_path/"d").mkdir()
    for dst, text in ((tmp_path/"d", "is a folder"), (tmp_path/"no"/"a.png", "Make|Check the path"), (out/"a.png", "cannot be written"), (tmp_path/("n" * 300 + ".png"), "File name too long")):
        with pytest.raises(OutputError, match=text): write_image(p, dst)
    link = tmp_path/"link.png"; link.symlink_to(out); write_image(p, link, overwrite=True)
    assert link.is_symlink() and out.read_bytes() == first and leftovers(tmp_path) == ["a.png", "d", "link.png"]
    mask = os.umask(0); os.umask(mask); assert out.stat().st_mode & 0o777 == 0o666 & ~mask


def test_read_only(tmp_path):
    (tmp_path/"ro").mkdir(mode=0o500); (tmp_path/"locked").mkdir(mode=0)
    if os.access(tmp_path/"ro", os.W_OK): pytest.skip("this user may write and read everywhere")
    with pytest.raises(OutputError, match="Permission denied"): write_image(Picture(GRADIENT), tmp_path/"ro"/"a.png")
    with pytest.raises(ImageError, match="locked: cannot be listed"): find_images(tmp_path)
    errors = []; (tmp_path/"a.png").touch()
    assert find_images(tmp_path, errors.append) == [tmp_path/"a.png"] and len(errors) == 1
    (tmp_path/"locked").chmod(0o700)


def test_read_only_by_system(tmp_path, monkeypatch):
    for code in (errno.EROFS, errno.EACCES):
        def refuse(p, mode="r", *a, **k): raise OSError(code, os.strerror(code))
        monkeypatch.setattr(images, "open", refuse, raising=False)
        with pytest.raises(OutputError, match="cannot be written") as e: write_image(Picture(GRADIENT), tmp_path/"a.png")
        with pytest.raises(ImageError, match="cannot be read"): read_image(sample("airborne"))
        assert leftovers(tmp_path) == [] and e.value.do


def test_no_silent_loss(tmp_path):
    u2, f4, rgba = Picture(GRADIENT.astype("u2") * 257), Picture(GRADIENT.astype("f4") / 255), Picture(GRADIENT, GRADIENT[..., 0])
    for p, name, text in ((u2, "a.jpg", "uint16"), (u2, "a.webp", "uint16"), (f4, "a.png", "float32"), (f4, "a.jpg", "float32"), (rgba, "a.jpg", "alpha"), (Picture(np.zeros((4, 20000, 3), "u1")), "a.webp", "too many"),
                          (Picture(np.zeros((4, 4, 5), "u1")), "a.tif", "5 bands"), (Picture(GRADIENT, GRADIENT[:9, :, 0]), "a.png", "alpha")):
        with pytest.raises(OutputError, match=text): write_image(p, tmp_path/name)
    with pytest.raises(OutputError, match="unknown"): write_image(u2, tmp_path/"a.gif", format="gif")
    with pytest.raises(ImageError, match="cannot be replaced"): u2.with_data(GRADIENT[:5])
    assert leftovers(tmp_path) == []


def test_streams_and_names(tmp_path):
    with open(sample("airborne"), "rb") as f: p = read_image(f)
    class Pipe(io.RawIOBase):                       # a stream that can only be written, like stdout
        def __init__(self): self.parts = []
        def writable(self): return True
        def write(self, b): self.parts.append(bytes(b)); return len(b)
    pipe = Pipe(); write_image(p, pipe); assert np.array_equal(read_image(b"".join(pipe.parts)).data, p.data)
    write_image(p, tmp_path/"a.PNG"); assert inspect_image(tmp_path/"a.PNG")["format"] == "png"
    write_image(p, tmp_path/"noname"); assert inspect_image(tmp_path/"noname")["format"] == "tiff"
    write_image(p, tmp_path/"b.png", format="tif"); assert inspect_image(tmp_path/"b.png")["format"] == "tiff"
    write_image(p, str(tmp_path/"c.tiff"))


def test_find(tmp_path):
    for name in ("b/2.JPG", "b/10.jpg", "a.tif", ".hidden.png", "._a.tif", ".trash/x.png", "notes.txt", "b/c/d.webp"):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True); (tmp_path/name).touch()
    assert [str(p.relative_to(tmp_path)) for p in find_images(tmp_path)] == ["a.tif", "b/10.jpg", "b/2.JPG", "b/c/d.webp"]
    with pytest.raises(ImageError, match="cannot be listed"): find_images(tmp_path/"none")
    with pytest.raises(ImageError, match="cannot be listed"): find_images(tmp_path/"a.tif")


def test_imports_are_light():
    code = "import sys, agri_cae.io.images; print([m for m in ('tensorflow', 'keras', 'mlflow', 'matplotlib', 'cv2', 'PIL', 'skimage') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("format", ["jpeg", "png", "tiff"])
def test_hundred_megapixels(tmp_path, format):
    "100 MP RGB is read and written in a process that peaks below 1.2 GB"
    code = f"""
import re, numpy as np
from agri_cae.io.images import *
big = {str(tmp_path / ('big' + FORMATS[format]))!r}
p = read_image(sample("field_camera"))
a = np.tile(p.data, (24, 16, 1))[:10000, :10000].copy()
write_image(Picture(a, format={format!r}), big, provenance="x"); del a
q = read_image(big); assert q.data.shape == (10000, 10000, 3), q.data.shape
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024)   # ru_maxrss would count the parent's peak, too
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) < 1200


def test_show_images_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ConfigError, match=r'pip install "agri-cae\[train\]"'): images.show_images([GRADIENT])
