"Noise: the protocol of the literature, the error of the estimate, and what is imported."
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agri_cae.io.images import read_image, sample
from agri_cae.noise.awgn import awgn
from agri_cae.noise.estimate import sigma_errors

SHARED = Path(__file__).parents[3]/"shared/data"


@pytest.fixture(scope="module")
def flower(): return read_image(sample("field_camera")).pixels[100:260, 220:380]


def test_noise_is_the_protocol(flower):
    for sigma in (15, 50):
        expected = flower + np.random.default_rng(1000 + 7).normal(0, sigma / 255, flower.shape).astype(np.float32)
        assert np.array_equal(awgn(flower, sigma, 7), expected) and expected.dtype == np.float32
    assert not np.array_equal(awgn(flower, 15, 7), awgn(flower, 15, 8))


@pytest.mark.skipif(not (SHARED / "test").is_dir(), reason="needs the pictures of ../shared/data/test")
def test_noise_estimate_is_right_to_a_tenth():
    errors = sigma_errors(SHARED / "test")
    medians = {s: np.median(e) for s, e in errors.items()}
    assert len(errors) == 5 and all(len(e) == 24 for e in errors.values())
    assert all(m <= .1 for m in medians.values()), medians


def test_drawing_and_measuring_need_no_keras():
    modules = ["io.colour", *(f"noise.{m}" for m in ("awgn", "statistics", "patterns", "scenes", "estimate"))]
    code = "import sys\n" + "".join(f"import agri_cae.{m}\n" for m in modules)
    code += "print([m for m in ('keras', 'tensorflow', 'jax', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_development_comes_back_after_its_classes_were_defined_again():
    "As when the notebook of the classes has run in the same process: Keras then makes layers of the newer classes"
    keras = pytest.importorskip("keras")
    from agri_cae.noise import camera
    layer = camera.Development([camera.RawNoise(seed=1), camera.Mosaic(seed=2)])
    x = np.full((2, 16, 16, 3), .5, np.float32)
    expected = np.asarray(layer(x))
    registered = dict(keras.saving.get_custom_objects())
    try:
        again = importlib.util.spec_from_file_location("agri_cae.noise.camera_again", camera.__file__)
        again.loader.exec_module(importlib.util.module_from_spec(again))
        back = type(layer).from_config(layer.get_config())
        assert np.array_equal(np.asarray(back(x)), expected)
    finally:
        keras.saving.get_custom_objects().update(registered)
