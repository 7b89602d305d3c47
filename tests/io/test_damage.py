"Bad, truncated and damaged files are errors: never a crash, never half a picture."

import contextlib
import io
import re
from pathlib import Path

import badfiles
import numpy as np
import pytest
from photos import FORMATS, GRADIENT, XMP, camera_exif
from PIL import Image

from agri_cae.config import ImageError
from agri_cae.io.formats import Meta
from agri_cae.io.images import Picture, inspect_image, read_image, sample, write_image
from agri_cae.io.webp import WebpStyle


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
            p = read_image(folder / name)
            got = "ok"
            f = io.BytesIO()
            write_image(p, f)
            assert np.array_equal(read_image(f.getvalue()).data.shape, p.data.shape)
        except ImageError as e:
            got = "error"
            text = str(e)
            if "\n" in text or len(e.what) < 8 or not e.do or Path(name).suffix not in text:
                wrong.append((name, "message", text))
        except BaseException as e:
            got = repr(e)
        if got != expected:
            wrong.append((name, why, expected, got))
        try:
            inspect_image(folder / name)
        except ImageError:
            assert expected == "error", name
    assert not wrong


def test_good_files_are_right(bad):
    folder = bad[0]
    for name in (
        "palette.png",
        "grey.jpg",
        "progressive.jpg",
        "png_named.jpg",
        "rgb16.png",
        "rgba16.png",
        "planar16.tif",
        "big.tif",
        "lossless.webp",
        "trailing.jpg",
        "jpeg_no_end.jpg",
        "jpeg_stray.jpg",
        "exif_junk.jpg",
        "png_text_bomb.png",
    ):
        p = read_image(folder / name)
        want = badfiles.RGB if p.data.shape[2] == 3 else np.asarray(badfiles.IM.convert("L"))[..., None]
        scale = {"rgb16.png": 257, "rgba16.png": 257, "planar16.tif": 200}.get(name, 1)
        tolerance = 60 if (name.endswith("jpg") and p.format == "jpeg") or name == "palette.png" else 0
        assert np.abs(p.data.astype(int) - want.astype(int) * scale).max() <= tolerance, name
    p = read_image(folder / "palette_alpha.png")
    assert set(np.unique(p.alpha)) == {0, 255}
    assert b"Comment" in b"".join(c.data for c in read_image(folder / "png_text_bomb.png").meta.style.chunks)


def test_every_truncation(tmp_path):
    "Cut anywhere, a file is an error: never a crash, never a picture with a grey part"
    for format in FORMATS:
        meta = Meta(
            exif=camera_exif(6, thumbnail=False), xmp=XMP, style=WebpStyle(lossless=True) if format == "webp" else None
        )
        f = io.BytesIO()
        write_image(Picture(GRADIENT, format=format, meta=meta), f)
        data = f.getvalue()
        for cut in sorted({*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 12, len(data))}):
            if (
                format == "tiff" and cut >= data.index(b"</x:xmpmeta>") + 12
            ):  # behind the pixels and the main tags stand Exif values alone
                assert np.array_equal(read_image(data[:cut]).data, read_image(data).data)
                continue
            if format == "jpeg" and cut >= len(data) - 2:  # only the end marker is missing
                assert np.array_equal(read_image(data[:cut]).data, read_image(data).data)
                continue
            with pytest.raises(ImageError):
                read_image(data[:cut])


def test_random_damage():
    "Bytes changed at random: a picture of the right size or an ImageError, nothing else"
    rng = np.random.default_rng(3)
    for format in FORMATS:
        f = io.BytesIO()
        write_image(Picture(GRADIENT, format=format, meta=Meta(exif=camera_exif(6), xmp=XMP)), f)
        data = f.getvalue()
        for _ in range(150):
            b = bytearray(data)
            for at in rng.integers(0, len(b), rng.integers(1, 5)):
                b[at] = rng.integers(256)
            with contextlib.suppress(ImageError):
                assert read_image(bytes(b), max_pixels=10**6).data.size <= 3 * 10**6


def test_limit():
    data = sample("field_camera").read_bytes()
    with pytest.raises(ImageError, match="AGRI_CAE_MAX_PIXELS"):
        read_image(data, max_pixels=640 * 427 - 1)
    assert read_image(data, max_pixels=640 * 427).data.shape == (427, 640, 3)


def test_limit_of_the_settings(monkeypatch):
    monkeypatch.setenv("AGRI_CAE_MAX_PIXELS", "1000")
    with pytest.raises(ImageError, match="limit of 1,000"):
        read_image(sample("field_camera"))


@pytest.mark.parametrize("format", ["gif", "bmp", "ppm", "jpeg2000", "tiff", "png", "jpeg", "webp"])
def test_a_header_cut_anywhere_is_one_plain_sentence(format):
    f = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)).save(f, format)
    for n in [*range(2, 60), 100, 200]:
        try: read_image(f.getvalue()[:n])
        except ImageError as e: said = str(e)
        else: said = ""
        assert not re.search("unpack|index|buffer|struct|NoneType|argument", said), (n, said)
