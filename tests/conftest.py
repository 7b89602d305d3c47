"What all tests share."
import os
import shutil

import pytest
from filelock import FileLock

from agri_cae.tracking import store

# a file is run by one worker: those that take minutes begin first, so that no worker waits for the other at the end
LONG = ("test_sweep.py", "test_server.py", "test_train.py", "test_trainer.py", "test_retrain.py", "test_shift.py",
        "test_backends.py", "test_arms.py", "test_container.py", "test_figures.py", "test_cli_files.py",
        "test_model_files.py", "test_compare.py", "test_bench.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def copied_store(tmp_path_factory):
    "MLflow takes seconds to make the tables of an empty store: they are made once for all tests, and copied"
    base = tmp_path_factory.getbasetemp()
    shared, make = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base), store._make_store
    def copy(mlflow, path):
        if path.exists(): return
        with FileLock(shared/"mlflow.lock"): make(mlflow, shared/"mlflow.db")
        shutil.copy(shared/"mlflow.db", path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "_make_store", copy)
        yield


@pytest.fixture
def kernels():
    "Notebooks of this test run in forks of a process that has imported TensorFlow and MLflow"
    from forked import forked_kernels
    with forked_kernels(): yield


@pytest.fixture
def eager():
    "Training without a graph, which takes longer to make than a few steps take: for tests of what is around the steps"
    import tensorflow as tf
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
