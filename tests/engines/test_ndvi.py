"Vegetation indices of five bands: where they were in the mean, with half of the noise."

from pathlib import Path

import cv2
import numpy as np
import pytest

from agri_cae.io.images import Picture, read_image, sample, write_image
from agri_cae.modelfiles.card import shipped
from agri_cae.noise.scenes import draw_scenes
from agri_cae.serve import Denoiser, denoise_file

pytestmark = pytest.mark.skipif("fast" not in shipped(), reason="no shipped weights")
# reflectance of blue, green, red, red edge, near infrared
PLANTS, SOIL = np.float32([0.03, 0.08, 0.04, 0.22, 0.45]), np.float32([0.09, 0.12, 0.17, 0.21, 0.27])
MS5 = Path(__file__).resolve().parents[3] / "shared" / "cases" / "raster" / "ms5_u16"


@pytest.fixture(scope="module")
def fast():
    return Denoiser.load("fast", strength="auto")


@pytest.fixture(scope="module", params=["dead leaves", "rows of plants"])
def scene(request):
    "(192, 192, 5) reflectance: plants and soil in patches, with the light and shade of a drawn scene"
    drawn = draw_scenes(2, [read_image(sample("field_camera")).data], side=192, seed=4)
    drawn = drawn[request.param == "rows of plants"]
    patches = cv2.GaussianBlur(np.random.default_rng(1).normal(size=drawn.shape[:2]), (0, 0), 12)
    share = np.clip(patches / patches.std() + 0.7, 0, 1)[..., None].astype(np.float32)
    light = 0.7 + 0.6 * drawn.mean(2, keepdims=True, dtype=np.float32) / 255
    return light * (share * PLANTS + (1 - share) * SOIL)


def ndvi(a):
    red, infrared = a[..., 2].astype(np.float64), a[..., 4].astype(np.float64)
    return (infrared - red) / (infrared + red)


def check(noisy, after, clean, valid=True):
    plants = (ndvi(clean) > 0.4) & valid
    before, now = (ndvi(a)[plants] - ndvi(clean)[plants] for a in (noisy, after))
    assert plants.sum() > 2000
    assert abs(np.mean(now)) < 0.002
    assert np.sqrt(np.mean(now**2)) < 0.5 * np.sqrt(np.mean(before**2))


@pytest.mark.parametrize("stored", [np.float32, np.uint16])
@pytest.mark.parametrize("sigma", [0.005, 0.01])
def test_drawn(fast, scene, tmp_path, sigma, stored):
    noisy = scene + np.random.default_rng(2).normal(0, sigma, scene.shape)
    noisy = noisy.astype(stored) if stored == np.float32 else np.rint(32768 * noisy).clip(0).astype(stored)
    write_image(Picture(noisy), tmp_path / "a.tif")
    denoise_file(fast, tmp_path / "a.tif", tmp_path / "b.tif")
    check(noisy, read_image(tmp_path / "b.tif").data, scene)


@pytest.mark.skipif(not MS5.is_dir(), reason="no field files")
def test_from_the_field(fast, tmp_path):
    denoise_file(fast, MS5 / "ms5_u16.tif", tmp_path / "b.tif")
    noisy, after, clean = (read_image(f) for f in (MS5 / "ms5_u16.tif", tmp_path / "b.tif", MS5 / "twin.tif"))
    check(noisy.data, after.data, clean.data, np.broadcast_to(np.atleast_3d(noisy.valid), clean.data.shape).all(2))
