"The service needs its extra, and some of its tests more."
import importlib.util

import pytest
from tiny_model import box_model

NEEDS = {"test_api*.py": "fastapi", "test_api_schema.py": "schemathesis", "test_api_page.py": "playwright"}
collect_ignore_glob = [files for files, package in NEEDS.items() if not importlib.util.find_spec(package)]


@pytest.fixture(scope="module")
def box(tmp_path_factory): return str(box_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def c(box):
    from inside import service
    with service(box) as c: yield c
