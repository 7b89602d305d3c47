"Files keep their orientation; what learns from pictures, measures or shows them sees them upright."

import hashlib
import io

import numpy as np
import pytest
from photos import GRADIENT, photo
from PIL import Image

from agri_cae.curation.checks import check_file
from agri_cae.data import load_file
from agri_cae.evaluate import Case, case_pixels
from agri_cae.io.images import read_image
from agri_cae.service.in_memory import comparison_png


@pytest.mark.parametrize("format", ["png", "tiff"])  # without loss
@pytest.mark.parametrize("orientation", [2, 6])
def test_upright_where_pictures_are_seen(tmp_path, format, orientation):
    path, kept = photo(tmp_path, format, orientation), {}
    assert read_image(path).data.shape[:2] == ((80, 48) if orientation == 6 else (48, 80))
    check = check_file(path, keep=kept.__setitem__)
    assert (check.height, check.width) == (48, 80) and np.array_equal(kept[check.sha256], GRADIENT)

    class Opened:
        decoded, value_range = None, None

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert np.array_equal(load_file(path, sha256, Opened), GRADIENT)
    assert np.array_equal(np.rint(case_pixels(Case("a", path, path), path) * 255), GRADIENT)
    picture = read_image(path)
    panels = np.asarray(Image.open(io.BytesIO(comparison_png(picture, picture))))
    assert np.array_equal(panels, np.hstack([GRADIENT, np.full((48, 8, 3), 255, np.uint8), GRADIENT]))
