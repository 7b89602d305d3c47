"What a notebook shows of a picture, a data set, a model or a training is one short line without bytes."

import dataclasses
import typing

import cv2
import numpy as np
import pytest

from agri_cae.config import DataConfig, EvalConfig
from agri_cae.evaluate import evaluate
from agri_cae.flights.folder import FolderResult
from agri_cae.io.brief import brief, brief_repr
from agri_cae.io.images import read_image, sample
from agri_cae.modelfiles.card import read_card, shipped
from agri_cae.monitoring.profile import load_profile


def is_brief(x):
    for text in (repr(x), str(x), f"{x}"):
        assert len(text) < 700 and "\n" not in text and "\\x" not in text and "array(" not in text, text[:1000]
    return repr(x)


def test_pictures():
    for name in ("field_camera", "airborne"):
        picture = read_image(sample(name))
        assert is_brief(picture).startswith(f"Picture(data=uint8 {picture.data.shape}, format=")
        is_brief(picture.meta)
        is_brief(picture.meta.style)


def test_data_sets(tmp_path):
    pytest.importorskip("imagehash")
    from agri_cae.data import open_dataset
    for i in range(40):
        x = cv2.resize(np.random.default_rng(i).integers(40, 200, (9, 9, 3), np.uint8), (96, 96))
        cv2.imwrite(str(tmp_path / f"{i}.png"), x)
    data = open_dataset(DataConfig(folder=str(tmp_path)), progress=False, keep=True)
    is_brief(data)
    is_brief(data.report)


def test_models_and_reports():
    for name in shipped():
        is_brief(read_card(name))
        is_brief(load_profile(name))
    images = {str(i): np.full((16, 16, 3), 0.5, np.float32) for i in range(20)}
    report = evaluate({"same": np.copy}, EvalConfig(baselines=()), images, metrics=("psnr",), progress=False)
    is_brief(report)
    is_brief(report.context)


def test_short_values_stay_as_they_are():
    assert [brief(v) for v in (3, 0.1 + 0.2, "fast", (0.0, 1.0), None)] == ["3", "0.3", "'fast'", "(0.0, 1.0)", "None"]
    assert brief({"a": np.zeros(3)}) == "dict of 1" and brief(np.zeros((2, 3), "f4")) == "float32 (2, 3)"
    assert brief("x" * 99) == "str(...)" and brief(b"\0" * 5000) == "5,000 bytes"


def test_every_class_that_holds_arrays_or_bytes_is_brief():
    "Also one that is added later"
    import importlib
    import pkgutil

    import agri_cae

    loud = []
    for m in pkgutil.walk_packages(agri_cae.__path__, "agri_cae."):
        if m.name.startswith("agri_cae.api"):
            continue
        module = importlib.import_module(m.name)
        for name, c in vars(module).items():
            if not (isinstance(c, type) and c.__module__ == m.name) or name.startswith("_"):
                continue
            if not (hasattr(c, "_fields") or dataclasses.is_dataclass(c)):
                continue
            kinds = str(typing.get_type_hints(c, vars(module)).values() if hasattr(c, "__annotations__") else "")
            if ("ndarray" in kinds or "bytes" in kinds) and c.__repr__ is not brief_repr:
                loud.append(f"{m.name}.{name}")
    assert not loud
    assert FolderResult.__repr__ is brief_repr
