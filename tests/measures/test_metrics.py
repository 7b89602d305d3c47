"Metrics and field measurements: against formulas, and on odd input."
import itertools

import numpy as np
import pytest

from agri_cae.config import DataError
from agri_cae.io.images import read_image, sample
from agri_cae.measures.agronomy import (
    MatchReference,
    canopy_cover,
    canopy_error,
    canopy_threshold,
    match_retention,
)
from agri_cae.measures.baselines import baseline
from agri_cae.measures.metrics import mse, psnr, ssim
from agri_cae.noise.awgn import awgn


@pytest.fixture(scope="module")
def flower(): return read_image(sample("field_camera")).pixels[100:260, 220:380]


@pytest.fixture(scope="module")
def trees(): return read_image(sample("airborne")).pixels[:300, :300]


def test_noise_is_the_protocol(flower):
    for sigma in (15, 50):
        expected = flower + np.random.default_rng(1000 + 7).normal(0, sigma / 255, flower.shape).astype(np.float32)
        assert np.array_equal(awgn(flower, sigma, 7), expected) and expected.dtype == np.float32
    assert not np.array_equal(awgn(flower, 15, 7), awgn(flower, 15, 8))


def test_psnr_of_known_noise(flower):
    mid = np.full((256, 256, 3), .5, np.float32)
    assert psnr(awgn(mid, 25, 0), mid) == pytest.approx(20 * np.log10(255 / 25), abs=.03)
    never_clipped = psnr(mid + 50 / 255 * np.sign(awgn(mid, 1, 0) - mid), mid)
    assert psnr(awgn(flower, 50, 0), flower) > never_clipped      # clipping takes noise away


def test_ssim_is_wang_2004(flower):
    gaussian_filter = pytest.importorskip("scipy.ndimage").gaussian_filter
    x, y = awgn(flower, 25, 0).clip(0, 1).astype(float), flower.astype(float)
    values = []
    for a, b in zip(np.moveaxis(x, -1, 0), np.moveaxis(y, -1, 0), strict=True):
        def g(v): return gaussian_filter(v, 1.5, truncate=3.5)
        ma, mb = g(a), g(b)
        va, vb, cab = g(a * a) - ma * ma, g(b * b) - mb * mb, g(a * b) - ma * mb
        s = (2 * ma * mb + .01**2) * (2 * cab + .03**2) / ((ma**2 + mb**2 + .01**2) * (va + vb + .03**2))
        values.append(s[5:-5, 5:-5].mean())
    assert ssim(x, y) == pytest.approx(np.mean(values), abs=1e-4)


def test_metrics_clip_and_refuse_other_shapes(flower):
    assert mse(flower + 5, flower) == pytest.approx(np.mean((1 - flower.astype(float)) ** 2), rel=1e-5)
    for f in (mse, psnr, ssim, canopy_error, match_retention):
        with pytest.raises(DataError): f(flower[1:], flower)


def test_canopy_threshold_is_that_of_the_clean_picture(trees):
    threshold = canopy_threshold(trees)
    # less saturated: an Otsu threshold of its own would follow and hide the error
    faded = trees * .7 + .3 * trees.mean(-1, keepdims=True)
    assert abs(canopy_cover(faded, canopy_threshold(faded)) - canopy_cover(trees, threshold)) < 3
    assert canopy_error(faded, trees) > 5
    assert canopy_error(trees * .5, trees) < .1                  # chromatic coordinates ignore exposure


@pytest.mark.parametrize("detector", ["sift", "orb"])
def test_matches_fall_with_noise_and_vanish_when_displaced(flower, trees, detector):
    for clean in (flower, trees):
        r = MatchReference(clean, detector)
        kept = [r(awgn(clean, s, 0)) for s in (0, 5, 15, 50)]
        assert kept[0] == 1 and all(a > b for a, b in itertools.pairwise(kept)), kept
        assert r(np.roll(clean, (12, 12), (0, 1))) < .05
        assert r(np.zeros_like(clean)) == 0
    assert match_retention(np.zeros((64, 64, 1), np.float32), np.zeros((64, 64, 1), np.float32), detector) is None


def test_matches_reward_denoising(trees):
    noisy = awgn(trees, 25, 0)
    r = MatchReference(trees)
    restored = baseline("skimage_wavelet_spun", 25)(noisy)
    assert r(noisy) < r(restored) < r((restored + trees) / 2) < 1
