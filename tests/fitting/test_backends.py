"The same training code on JAX and PyTorch, without TensorFlow: the same losses, learning, exact resume."
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

PRELUDE = """
import json, sys
from importlib.machinery import PathFinder
if sys.argv[1] != "tensorflow":
    find = PathFinder.find_spec
    def without(cls, name, *a): return None if name.split(".")[0] == "tensorflow" else find(name, *a)
    PathFinder.find_spec = classmethod(without)
import keras, numpy as np
from agri_cae.config import TrainConfig, unflatten
from agri_cae.fitting.loop import fit
from agri_cae.fitting.step import denoising_model
from agri_cae.io.images import read_image, sample
photo = read_image(sample("field_camera")).data
"""

STEPS = PRELUDE + """
from pathlib import Path
rng, weights = np.random.default_rng(0), Path(sys.argv[2])
model = denoising_model(unflatten(TrainConfig, dict(patch=32, batch=4, lr=1e-4)), paired=True)
if sys.argv[1] == "tensorflow": np.savez(weights, *model.net.get_weights())
with np.load(weights) as z: model.net.set_weights([z[k] for k in z.files])
crops = np.stack([photo[32*i:32*i+32, :32] for i in range(4)])
noisy = np.clip(crops + rng.normal(0, 25, crops.shape), 0, 255).astype("uint8")
print(json.dumps([float(model.train_on_batch(noisy, crops)) for _ in range(6)]))
"""

RUNS = PRELUDE + """
halves, (whole, cut) = ([photo[:200, :320]], [photo[:200, 320:]]), sys.argv[2:]
cfg = unflatten(TrainConfig, dict(epochs=4, steps_per_epoch=5, patch=32, batch=4, recipe="field", ema=0.9, workers=2,
                                  optimizer="muon"))
class PowerCut(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2: raise KeyboardInterrupt
a = fit(cfg, *halves, whole, progress=False)
try: fit(cfg, *halves, cut, callbacks=(PowerCut(),), progress=False)
except KeyboardInterrupt: pass
b = fit(cfg, *halves, cut, progress=False)
apart = max(float(np.abs(p - q).max()) for p, q in zip(a.net.get_weights(), b.net.get_weights()))
print(json.dumps(dict(backend=keras.backend.backend(), tensorflow="tensorflow" in sys.modules, apart=apart,
                      losses=[h["loss"] for h in a.state.history])))
"""


def run(backend, code, *paths):
    "What the code prints last, with that backend, in a process of its own"
    if not find_spec(backend): pytest.skip(f"{backend} is not installed")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(paths[0].parent / "jax"),
             "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run([sys.executable, "-c", code, backend, *map(str, paths)], capture_output=True, text=True,
                          env=os.environ | cache | {"KERAS_BACKEND": backend})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    "Weights that every backend starts from, and TensorFlow's losses"
    weights = tmp_path_factory.mktemp("reference") / "weights.npz"
    return weights, run("tensorflow", STEPS, weights)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_losses_agree_with_tensorflows(reference, backend):
    weights, losses = reference
    assert len(losses) == 6 and max(losses) - min(losses) > 0.1   # the steps do something
    assert run(backend, STEPS, weights) == pytest.approx(losses, abs=1e-3)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_run_learns_and_goes_on_exactly(tmp_path, backend):
    found = run(backend, RUNS, tmp_path / "whole", tmp_path / "cut")
    assert (found["backend"], found["tensorflow"]) == (backend, False)
    assert found["losses"][-1] < found["losses"][0] - 1
    assert found["apart"] <= 1e-6
