"Classical denoisers: what they gain, shapes, settings."
from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from agri_cae.config import ConfigError, DataError
from agri_cae.io.images import read_image, sample
from agri_cae.measures.baselines import (
    BASELINES,
    TUNED,
    TUNED_SIGMAS,
    baseline,
    tune,
    tuned_parameters,
)
from agri_cae.measures.metrics import psnr
from agri_cae.noise.awgn import awgn

# method -> gain in dB at sigma 15, 25, 50 in colour, and in grey: measured, less 0.3
FLOOR = dict(
    opencv_nlm=[(2., 2.4, 5.), (3.8, 5.7, 6.9)], opencv_bilateral=[(3.8, 4.1, 5.9), (3., 3.7, 7.)],
    skimage_wavelet=[(3., 5., 7.4), (3.6, 5.1, 7.6)], skimage_wavelet_spun=[(3.9, 5.6, 7.9), (4.1, 5.9, 8.4)],
    skimage_tv=[(3.3, 4.7, 6.8), (3.9, 5.5, 8.1)])
FREE = tuple(b for b in BASELINES if b != "bm3d")


@pytest.fixture(scope="module")
def flower(): return read_image(sample("field_camera")).pixels[100:260, 220:380]


def put(path, x): cv2.imwrite(str(path), np.round(x * 255).astype(np.uint8)[..., ::-1])


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("grey", [False, True])
def test_baselines_gain(flower, name, grey):
    clean = flower.mean(-1, keepdims=True) if grey else flower
    for sigma, least in zip(TUNED_SIGMAS, FLOOR[name][grey], strict=True):
        noisy = awgn(clean, sigma, 0)
        gain = psnr(baseline(name, sigma)(noisy), clean) - psnr(noisy, clean)
        assert gain > least, (sigma, gain)


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("shape", [(40, 50, 1), (33, 65, 3), (48, 48, 4), (17, 9, 3)])
def test_baselines_keep_the_shape(name, shape):
    x = awgn(np.full(shape, .5, np.float32), 25, 0)
    y = baseline(name, 25)(x)
    assert y.shape == shape and y.dtype == np.float32 and y.std() < x.std()


def test_parameters_are_linear_between_levels():
    for name, parameters in TUNED.items():
        for k, v in parameters.items():
            expected = pytest.approx((v[0] + v[1]) / 2) if isinstance(v, tuple) else v
            assert tuned_parameters(name, 20)[k] == expected
            if isinstance(v, tuple): assert tuned_parameters(name, 99)[k] == v[2]
    assert tuned_parameters("skimage_wavelet", 20, shifts=0)["shifts"] == 0


def test_tune_finds_the_best(tmp_path, flower):
    for i in range(3): put(tmp_path/f"{i}.png", np.roll(flower, 20 * i, 0))
    found = tune("opencv_bilateral", dict(color=(.1, 5.), space=(2.,)), tmp_path, sigmas=(25,), count=2, side=96)[25]
    assert found[0][1] == dict(color=5., space=2.) and found[0][0] > found[1][0] + 3
    (tmp_path/"none").mkdir()
    with pytest.raises(DataError): tune("opencv_nlm", {}, tmp_path/"none")


def test_unknown_baseline_and_absent_bm3d():
    with pytest.raises(ConfigError, match="opencv_nlm"): baseline("opencv_nlms", 25)
    if find_spec("bm3d") is None:
        with pytest.raises(ConfigError, match="pip install bm3d"): baseline("bm3d", 25)
