"Serving real pictures: the strength by their noise, and the shipped models on every depth, shape and band."

from pathlib import Path

import numpy as np
import pytest
from tiny_model import box_model

from agri_cae import __version__
from agri_cae.io.images import SAMPLES, Picture, from_float, provenance_of, read_image, sample, to_float, write_image
from agri_cae.measures.metrics import psnr
from agri_cae.modelfiles.card import shipped
from agri_cae.noise.awgn import awgn
from agri_cae.noise.estimate import sigma_errors
from agri_cae.serve import Denoiser, denoise_file

TEST = Path(__file__).parents[2] / "shared/data/test"
needs_weights = pytest.mark.skipif("fast" not in shipped(), reason="no shipped weights")


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    return box_model(tmp_path_factory.mktemp("model"))


# strength by the noise


def flat(sigma, *shape):
    "A grey picture with noise"
    return from_float(np.random.default_rng(0).normal(0.5, sigma / 255, shape), np.uint8)


@pytest.mark.parametrize("sigma, least, most", [(0.6, 0, 0.15), (2, 0.4, 0.6), (40, 1, 1)])
def test_auto_leaves_the_clean_and_cleans_the_noisy(box, sigma, least, most):
    auto, x = Denoiser.load(box, strength="auto"), flat(sigma, 150, 170, 3)
    s = auto.strength_for(auto.diagnose(x))
    assert least <= s <= most and auto.sigma(x) == pytest.approx(sigma, rel=0.1, abs=0.2)
    assert np.abs(auto(x) - 1. * Denoiser.load(box, strength=s)(x)).max() <= 1


def test_auto_is_one_strength_for_all_tiles_and_minds_no_alpha(box):
    x = np.concatenate([flat(1, 200, 150, 3), flat(20, 200, 150, 3)], 1)  # quiet at the left, loud at the right
    tiled, whole = (Denoiser.load(box, strength="auto", tile=t, overlap=8) for t in (64, 2048))
    assert (tiled(x) == whole(x)).all() and 0 < whole.strength_for(whole.diagnose(x)) < 1
    for alpha, colours in ((0, x), (255, whole(x))):  # nothing is seen under alpha 0, so nothing changes there
        y = whole(np.dstack([x, np.full(x.shape[:2], alpha, np.uint8)]))
        assert (y[..., :3] == colours).all() and (y[..., 3] == alpha).all()


def test_auto_on_a_picture_that_is_too_small(box, caplog):
    auto, x = Denoiser.load(box, strength="auto"), flat(50, 3, 7, 3)
    with caplog.at_level("INFO", "agri_cae"):
        assert (auto(x) == Denoiser.load(box)(x)).all()
    assert auto.sigma(x) is None and "too small" in caplog.text and "strength 1" in caplog.text


def test_auto_in_files(box, tmp_path):
    write_image(Picture(flat(2, 90, 90, 3)), tmp_path / "a.png")
    write_image(Picture(flat(2, 3, 3, 3)), tmp_path / "b.png")
    auto = Denoiser.load(box, strength="auto")
    done = denoise_file(auto, tmp_path / "a.png", tmp_path / "c.png", measure=True)
    assert done["model"] == "box@3" and 0.4 < done["strength"] < 0.6
    assert done["sigma"] == pytest.approx(2, abs=0.2)
    mark = provenance_of(read_image(tmp_path / "c.png"))
    assert mark == f"agri_cae {__version__} box@3 strength={done['strength']}"
    small = denoise_file(auto, tmp_path / "b.png", tmp_path / "d.png", measure=True)
    assert small == dict(model="box@3", strength=1, range=[0, 255])
    assert "sigma" not in denoise_file(Denoiser.load(box), tmp_path / "a.png", tmp_path / "e.png")


@pytest.mark.skipif(not TEST.is_dir(), reason="needs the pictures of ../shared/data/test")
def test_noise_estimate_is_right_to_a_tenth():
    errors = sigma_errors(TEST)
    medians = {s: np.median(e) for s, e in errors.items()}
    assert len(errors) == 5 and all(len(e) == 24 for e in errors.values())
    assert max(medians.values()) <= 0.1, medians


# the shipped model


@needs_weights
def test_no_seam_at_4_megapixels():
    x = np.tile(read_image(sample("field_camera")).data, (5, 4, 1))[:2000, :2000]
    x = to_float(x) + np.random.default_rng(0).normal(0, 25 / 255, x.shape).astype(np.float32)
    whole, tiled = (Denoiser.load("fast", tile=t)(x) for t in (2048, 512))
    assert np.abs(whole - tiled).max() <= 1e-4


def moved(x, d):
    "By how much a denoiser moves the mean of a band"
    return np.abs(d(x).mean((0, 1), np.float64) - x.mean((0, 1), np.float64)).max()


@needs_weights
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("sigma", [0, 15, 25, 50])
def test_levels_are_kept(name, sigma):
    """The mean of each band of a sample stays.

    To a hundredth of a grey level of 255 for floats, to half a stored step (and what saturates) for integers."""
    d, unit = Denoiser.load("fast"), SAMPLES[name].value_range
    x = to_float(read_image(sample(name)).data, unit)
    x = x + np.random.default_rng(0).normal(0, sigma / 255, x.shape).astype(np.float32)
    assert moved(x, d) * 255 < 0.05
    assert moved(from_float(x, np.uint8), d) < 0.6
    if unit:
        assert moved(from_float(x, np.uint16, unit), Denoiser.load("fast", value_range=unit)) < 1


# formats: what comes in decides what comes out, not how good it is


def gain(stored, clean):
    "Of the shipped model on a stored picture, decibels"
    return psnr(to_float(Denoiser.load("fast")(stored)), clean) - psnr(to_float(stored), clean)


@pytest.fixture(scope="module")
def photo():
    "A picture, the same with noise of sigma 25 clipped to [0, 1], and the gain of `fast` on it in 8 bits"
    clean = to_float(read_image(sample("field_camera")).data)[100:356, 100:420]
    noisy = np.clip(awgn(clean, 25, 0), 0, 1)
    return clean, noisy, gain(from_float(noisy, np.uint8), clean)


@needs_weights
@pytest.mark.parametrize("dtype", [np.uint16, np.float16, np.float32, np.float64])
def test_depth_makes_no_difference(photo, dtype):
    clean, noisy, rgb = photo
    assert rgb > 6 and gain(from_float(noisy, dtype), clean) == pytest.approx(rgb, abs=0.1)


@needs_weights
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_alpha_makes_no_difference(photo, dtype):
    x, d = from_float(photo[1], dtype), Denoiser.load("fast")
    alpha = from_float(1 - np.random.default_rng(0).random(x.shape[:2], np.float32) / 2, dtype)
    for colours in (x, x[..., :1]):
        y = d(np.dstack([colours, alpha]), alpha=True)
        assert (y[..., -1] == alpha).all() and (y[..., :-1] == d(colours)).all()


@needs_weights
def test_grey_gains_too(photo):
    "Without the other bands to compare with there is less to go by: 2 dB of the colour picture's gain may go"
    clean = photo[0].mean(2)
    noisy = np.clip(awgn(clean, 25, 0), 0, 1)
    grey = gain(from_float(noisy, np.uint8), clean)
    assert grey > photo[2] - 2
    # 16 bits do not say what white is: their own percentiles are the range, in which the noise looks different
    assert gain(from_float(noisy, np.uint16), clean) == pytest.approx(grey, abs=0.4)
    full = Denoiser.load("fast", value_range=(0, 65535))(from_float(noisy, np.uint16))
    assert psnr(to_float(full), clean) - psnr(noisy, clean) == pytest.approx(grey, abs=0.1)
    d, x = Denoiser.load("fast"), from_float(noisy, np.uint8)
    assert (d(x[..., None])[..., 0] == d(x)).all()
    # the grain belongs to the place, not to the tile
    assert np.abs(Denoiser.load("fast", tile=200)(noisy) - d(noisy)).max() <= 1e-4


@needs_weights
def test_a_strip_is_as_good_as_the_whole(photo):
    "4097 x 33 pixels: within 1 dB of the same strip in a wide picture, and of the picture"
    clean, noisy = (np.tile(a, (17, 1, 1))[:4097, :200] for a in photo[:2])
    strip, x = np.s_[:, 80:113], from_float(noisy, np.uint8)
    alone = gain(x[strip], clean[strip])
    wide = to_float(Denoiser.load("fast")(x)[strip])
    within = psnr(wide, clean[strip]) - psnr(to_float(x[strip]), clean[strip])
    assert alone == pytest.approx(within, abs=1) and alone == pytest.approx(photo[2], abs=2)


@needs_weights
def test_a_few_pixels_gain_as_well(photo):
    clean, noisy, _ = photo
    d = Denoiser.load("fast")
    cuts = [np.s_[i : i + 3, j : j + 7] for i in range(0, 250, 50) for j in range(0, 310, 60)]
    before = np.mean([np.square(noisy[c] - clean[c]).mean() for c in cuts])
    after = np.mean([np.square(d(noisy[c]) - clean[c]).mean() for c in cuts])
    assert after < 0.5 * before
    one = from_float(noisy[:1, :1], np.uint8)
    assert (d(one) == one).all()  # the level of a single pixel is all there is, and levels are kept
