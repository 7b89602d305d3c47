import pytest
from tiny_model import box_model


@pytest.fixture(scope="module")
def model(tmp_path_factory): return str(box_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path
