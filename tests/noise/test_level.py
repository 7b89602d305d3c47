"The noise that is found in files: JPEG at any turn, what was made from it, camera noise, and clean pictures."

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from agri_cae.config import ImageError
from agri_cae.io.images import Picture, from_float, read_image, sample, to_float
from agri_cae.io.jpeg import luma_steps
from agri_cae.noise.awgn import awgn
from agri_cae.noise.estimate import TooSmall, estimate_sigma
from agri_cae.noise.grid import find_blocks
from agri_cae.noise.level import estimate_noise


def field(height=300, width=420, seed=0):
    "A made picture: slopes of light, soft shapes, and a third of it full of leaves"
    rng = np.random.default_rng(seed)
    shapes = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 25)
    leaves = cv2.GaussianBlur(rng.normal(size=(height, width)), (0, 0), 1.2)
    leaves[:, width // 3 :] = 0
    grey = 0.5 + 0.12 * shapes / shapes.std() + 0.1 * leaves / leaves.std()
    grey += np.linspace(-0.1, 0.1, width)
    return np.clip(grey[..., None] * [0.9, 1, 0.7], 0.05, 0.95).astype(np.float32)


def file_of(x, format="JPEG", **how):
    f = io.BytesIO()
    Image.fromarray(x if x.dtype == np.uint8 else from_float(x, np.uint8)).save(f, format, **how)
    return f.getvalue()


def noise_of(x, **how):
    "Noise of a picture that was stored as a file"
    p = read_image(file_of(x, **how))
    return estimate_noise(p.data, p.blocks)


@pytest.fixture(scope="module")
def clean():
    return field()


@pytest.mark.parametrize("quality", [75, 90, 98])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("sigma", [5, 10, 25])
def test_white_noise_in_jpeg(clean, quality, subsampling, sigma):
    found = noise_of(awgn(clean, sigma, 1), quality=quality, subsampling=subsampling)
    assert found.sigma == pytest.approx(sigma, rel=0.15) and found.kind == "jpeg"
    assert found.certain or (quality, sigma) == (75, 5)


def test_it_was_hidden_from_the_estimate_for_white_noise(clean):
    "Should this fail, JPEG needs no estimate of its own any more"
    x = read_image(file_of(awgn(clean, 15, 1), quality=90, subsampling=2)).data
    assert estimate_sigma(x) < 2


def test_grey_files_and_grey_saved_as_colour(clean):
    grey = awgn(clean[..., :1], 10, 1)[..., 0]
    for x in (grey, np.repeat(grey[..., None], 3, 2)):
        assert noise_of(x, quality=85).sigma == pytest.approx(10, rel=0.1)
        assert noise_of(x, format="PNG").sigma == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("turn", range(1, 9))
def test_photos_that_are_turned_upright_keep_their_blocks(clean, turn):
    "Sides that are no multiples of 8, and tables that differ along and across"
    steps = np.arange(64) // 8 + 3 * (np.arange(64) % 8) + 3
    exif = Image.Exif()
    exif[0x0112] = turn
    x = awgn(clean[:301, :413], 12, 1)
    p = read_image(file_of(x, qtables=[steps.tolist()] * 2, exif=exif.tobytes()))
    assert estimate_noise(p.data, p.blocks).sigma == pytest.approx(12, rel=0.08)
    seen = find_blocks(p.data)
    known = np.isfinite(seen.steps)
    assert (seen.top, seen.left) == p.blocks[1:]
    assert known.sum() > 20 and (seen.steps == p.blocks.steps)[known].mean() > 0.9


@pytest.mark.parametrize("quality, sigma", [(75, 12), (90, 8), (93, 6)])
def test_png_made_from_jpeg(clean, quality, sigma):
    "Cut anywhere, so that its blocks begin anywhere"
    jpeg = read_image(file_of(awgn(clean, sigma, 1), quality=quality, subsampling=2)).data
    for top, left in ((0, 0), (3, 6)):
        found = noise_of(np.ascontiguousarray(jpeg[top:, left:]), format="PNG")
        assert found.kind == "jpeg" and found.sigma == pytest.approx(sigma, rel=0.15)


def test_nothing_is_found_where_there_was_no_jpeg(clean):
    for sigma in (0, 5):
        assert find_blocks(from_float(awgn(clean, sigma, 1), np.uint8)) is None
    x = read_image(file_of(awgn(clean, 5, 1), quality=80)).data
    assert find_blocks(x) is not None
    assert find_blocks(cv2.resize(x, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)) is None


def test_lossy_webp(clean):
    x = awgn(clean, 15, 1)
    assert noise_of(x, format="WEBP", quality=80).sigma == pytest.approx(15, rel=0.15)
    assert read_image(file_of(x, format="WEBP", lossless=True)).blocks is None


@pytest.mark.parametrize("how", [dict(format="PNG"), dict(quality=95), dict(quality=90, subsampling=2)])
def test_smoothed_noise_is_that_of_a_camera(clean, how):
    "One smoothed field for all bands, as after the reduction of colour noise"
    field = cv2.GaussianBlur(np.random.default_rng(0).normal(size=clean.shape[:2]), (0, 0), 0.8)
    found = noise_of(clean + (5 / 255 * field / field.std())[..., None].astype(np.float32), **how)
    assert found.kind == "camera" and 3.5 < found.sigma < 8


@pytest.mark.parametrize("how", [dict(format="PNG"), dict(format="WEBP"), *(dict(quality=q) for q in (75, 90, 98))])
def test_clean_pictures_read_near_nothing(clean, how):
    assert noise_of(clean, **how).sigma < 1.2


@pytest.mark.parametrize("quality", [75, 85])
def test_little_noise_in_strong_compression_is_not_certain(clean, quality):
    assert not noise_of(awgn(clean, 2, 1), quality=quality).certain
    assert noise_of(awgn(clean, 2, 1), quality=97).certain


def test_arrays_without_a_file(clean):
    "As before: sigma of white noise, in any type"
    x = awgn(clean, 10, 1)
    for y in (x, from_float(x, np.uint16), from_float(x, np.uint8), x[..., 0]):
        found = estimate_noise(y)
        assert found.sigma == pytest.approx(10, rel=0.06) and (found.kind, found.floor) == ("white", 0)
    with pytest.raises(TooSmall):
        estimate_noise(x[:5, :5])
    with pytest.raises(ImageError, match="NaN"):
        estimate_noise(np.where(x > 0.5, np.nan, x))
    assert estimate_noise(np.full((200, 200, 3), 255, np.uint8)).sigma == 0
    assert estimate_noise(x[-40:, -40:]).sigma == pytest.approx(10, rel=0.2)


def test_other_pixels_have_no_blocks(clean):
    p = read_image(file_of(clean, quality=80))
    assert p.blocks is not None and p.with_data(p.data).blocks is None and Picture(p.data).blocks is None
    assert luma_steps(b"\xff\xd8") is None
    assert read_image(sample("field_camera")).blocks is not None


def test_large_pictures_are_sampled(clean):
    "12 megapixels take about as long as 2, and say the same"
    tiled = np.tile(from_float(awgn(clean[:296, :416], 10, 1), np.uint8), (10, 10, 1))
    p = read_image(file_of(tiled, quality=90, subsampling=2))
    assert estimate_noise(p.data, p.blocks).sigma == pytest.approx(10, rel=0.1)
    assert to_float(p.data).size > 30e6


FILLS = [("uint8", 117), ("uint8", 255), ("uint16", 4242), ("int16", -9999), ("float32", -9999)]


@pytest.mark.parametrize("dtype, value", FILLS)
@pytest.mark.parametrize("where", [np.s_[-24:], np.s_[:, 100:130], np.s_[40:90, 60:110]])
def test_one_value_throughout_does_not_make_a_picture_clean(dtype, value, where):
    "A bar, a stripe, a hole, that no tag mentions"
    from agri_cae.engines.diagnosis import diagnose
    x = np.random.default_rng(0).normal(to_float(read_image(sample("airborne")).data) * 255, 15)[:256, :320]
    x = (x.clip(1, 254) if dtype == "uint8" else 20 * x.clip(1)).round().astype(dtype)
    bare = diagnose(x)
    x[where] = value
    found = diagnose(x)
    assert found.sigma == pytest.approx(bare.sigma, rel=0.1) and not found.valid[where].any()
    assert found.valid.mean() > 0.8 and (value == 255 or any("throughout" in w for w in found.warnings))
