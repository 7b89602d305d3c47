"What all tests share."
import os
import shutil

import pytest
from filelock import FileLock

from agri_cae.tracking import store


@pytest.fixture(scope="session", autouse=True)
def copied_store(tmp_path_factory):
    "MLflow takes seconds to make the tables of an empty store: they are made once for all tests, and copied"
    base = tmp_path_factory.getbasetemp()
    shared, make = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base), store._make_tables
    def copy(mlflow):
        "The same as `make`, for the home of the day"
        path = store.home()/"mlflow.db"
        if path.exists(): return
        with FileLock(shared/"mlflow.lock"):
            if not (shared/"mlflow.db").exists():
                with pytest.MonkeyPatch.context() as there:
                    there.setenv("AGRI_CAE_HOME", str(shared))
                    make(mlflow)
        shutil.copy(shared/"mlflow.db", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_make_tables", copy)
        yield
