"Where files are written, what happens when that fails, and what it costs."

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from photos import FORMATS, GRADIENT

from agri_cae.config import ConfigError, ImageError, OutputError
from agri_cae.io import files, images
from agri_cae.io.folders import find_images
from agri_cae.io.images import Picture, inspect_image, read_image, sample, write_image


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_left_when_writing_fails(tmp_path, monkeypatch, format):
    "The disk runs full in the middle of the file: the old file stays, no fragment is left"
    out = tmp_path / f"a{FORMATS[format]}"
    out.write_bytes(b"old")
    real = open

    class Full(io.FileIO):
        def write(self, b):
            if self.tell() + len(memoryview(b).cast("B")) > 500:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(b)

    monkeypatch.setattr(
        files,
        "open",
        lambda p, mode="r", *a, **k: Full(p, "xb") if mode == "xb" else real(p, mode, *a, **k),
        raising=False,
    )
    with pytest.raises(OutputError, match="No space left") as e:
        write_image(
            Picture(np.random.default_rng(0).integers(0, 255, (90, 90, 3)).astype(np.uint8), format=format),
            out,
            overwrite=True,
        )
    assert "\n" not in str(e.value) and leftovers(tmp_path) == [out.name] and out.read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("format", FORMATS)
def test_full_device(format):
    with pytest.raises(OutputError, match="No space left"):
        write_image(Picture(GRADIENT, format=format), "/dev/full", format=format)
    with pytest.raises(OutputError, match="No space left"), open("/dev/full", "wb", buffering=0) as f:
        write_image(Picture(GRADIENT, format=format), f)


def test_interrupted(tmp_path, monkeypatch):
    def stop(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setitem(images.CODECS, "png", images.CODECS["png"]._replace(encode=stop))
    with pytest.raises(KeyboardInterrupt):
        write_image(Picture(GRADIENT), tmp_path / "a.png")
    assert leftovers(tmp_path) == []


def test_targets(tmp_path):
    p = Picture(GRADIENT)
    out = tmp_path / "a.png"
    write_image(p, out)
    first = out.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write_image(p, out)
    assert out.read_bytes() == first
    write_image(p.with_data(255 - GRADIENT), out, overwrite=True)
    assert out.read_bytes() != first
    (tmp_path / "d").mkdir()
    for dst, text in (
        (tmp_path / "d", "is a folder"),
        (tmp_path / "no" / "a.png", "Make|Check the path"),
        (out / "a.png", "cannot be written"),
        (tmp_path / ("n" * 300 + ".png"), "File name too long"),
    ):
        with pytest.raises(OutputError, match=text):
            write_image(p, dst)
    link = tmp_path / "link.png"
    link.symlink_to(out)
    write_image(p, link, overwrite=True)
    assert link.is_symlink() and out.read_bytes() == first and leftovers(tmp_path) == ["a.png", "d", "link.png"]
    mask = os.umask(0)
    os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~mask


def test_read_only(tmp_path):
    (tmp_path / "ro").mkdir(mode=0o500)
    (tmp_path / "locked").mkdir(mode=0)
    if os.access(tmp_path / "ro", os.W_OK):
        pytest.skip("this user may write and read everywhere")
    with pytest.raises(OutputError, match="Permission denied"):
        write_image(Picture(GRADIENT), tmp_path / "ro" / "a.png")
    with pytest.raises(ImageError, match="locked: cannot be listed"):
        find_images(tmp_path)
    errors = []
    (tmp_path / "a.png").touch()
    assert find_images(tmp_path, errors.append) == [tmp_path / "a.png"] and len(errors) == 1
    (tmp_path / "locked").chmod(0o700)


def test_read_only_by_system(tmp_path, monkeypatch):
    for code in (errno.EROFS, errno.EACCES):

        def refuse(p, mode="r", *a, code=code, **k):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(files, "open", refuse, raising=False)
        with pytest.raises(OutputError, match="cannot be written") as e:
            write_image(Picture(GRADIENT), tmp_path / "a.png")
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(sample("airborne"))
        assert leftovers(tmp_path) == [] and e.value.do


def test_no_silent_loss(tmp_path):
    u2, f4, rgba = (
        Picture(GRADIENT.astype("u2") * 257),
        Picture(GRADIENT.astype("f4") / 255),
        Picture(GRADIENT, GRADIENT[..., 0]),
    )
    for p, name, text in (
        (u2, "a.jpg", "uint16"),
        (u2, "a.webp", "uint16"),
        (f4, "a.png", "float32"),
        (f4, "a.jpg", "float32"),
        (rgba, "a.jpg", "alpha"),
        (Picture(np.zeros((4, 20000, 3), "u1")), "a.webp", "too many"),
        (Picture(np.zeros((4, 4, 17), "u1")), "a.tif", "17 bands"),
        (Picture(np.zeros((4, 4, 5), "u1")), "a.png", "5 bands"),
        (Picture(GRADIENT, GRADIENT[:9, :, 0]), "a.png", "alpha"),
    ):
        with pytest.raises(OutputError, match=text):
            write_image(p, tmp_path / name)
    with pytest.raises(OutputError, match="unknown"):
        write_image(u2, tmp_path / "a.xyz", format="xyz")
    with pytest.raises(ImageError, match="cannot be replaced"):
        u2.with_data(GRADIENT[:5])
    assert leftovers(tmp_path) == []


def test_streams_and_names(tmp_path):
    with open(sample("airborne"), "rb") as f:
        p = read_image(f)

    class Pipe(io.RawIOBase):  # a stream that can only be written, like stdout
        def __init__(self):
            self.parts = []

        def writable(self):
            return True

        def write(self, b):
            self.parts.append(bytes(b))
            return len(b)

    pipe = Pipe()
    write_image(p, pipe)
    assert np.array_equal(read_image(b"".join(pipe.parts)).data, p.data)
    write_image(p, tmp_path / "a.PNG")
    assert inspect_image(tmp_path / "a.PNG").format == "png"
    write_image(p, tmp_path / "noname")
    assert inspect_image(tmp_path / "noname").format == "tiff"
    write_image(p, tmp_path / "b.png", format="tif")
    assert inspect_image(tmp_path / "b.png").format == "tiff"
    write_image(p, str(tmp_path / "c.tiff"))


def test_find(tmp_path):
    for name in ("b/2.JPG", "b/10.jpg", "a.tif", ".hidden.png", "._a.tif", ".trash/x.png", "notes.txt", "b/c/d.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in find_images(tmp_path)] == [
        "a.tif",
        "b/10.jpg",
        "b/2.JPG",
        "b/c/d.webp",
    ]
    with pytest.raises(ImageError, match="cannot be listed"):
        find_images(tmp_path / "none")
    with pytest.raises(ImageError, match="cannot be listed"):
        find_images(tmp_path / "a.tif")


def test_imports_are_light():
    heavy = ("tensorflow", "keras", "mlflow", "matplotlib", "cv2", "PIL", "skimage")
    code = f"import sys, agri_cae.io.images; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("format", ["jpeg", "png", "tiff"])
def test_hundred_megapixels(tmp_path, format):
    "100 MP RGB is read and written in a process that peaks below 1.2 GB"
    code = f"""
import re, numpy as np
from agri_cae.io.images import *
big = {str(tmp_path / ("big" + FORMATS[format]))!r}
p = read_image(sample("field_camera"))
a = np.tile(p.data, (24, 16, 1))[:10000, :10000].copy()
write_image(Picture(a, format={format!r}), big, provenance="x"); del a
q = read_image(big); assert q.data.shape == (10000, 10000, 3), q.data.shape
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]   # ru_maxrss would count the parent's, too
print(int(peak) // 1024)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) < 1200


def test_show_images_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ConfigError, match=r'pip install "agri-cae\[train\]"'):
        images.show_images([GRADIENT])
