"Presets with other blocks or widths: they learn, are fused, saved, exported and grown like the shipped ones."
from typing import get_args

import keras
import numpy as np
import pytest

from agri_cae.config import ModelConfig, ModelError, Preset, TrainConfig, unflatten
from agri_cae.engines.runtimes import ort_session
from agri_cae.fitting.step import denoising_model
from agri_cae.model import (
    PRESETS,
    Architecture,
    BranchedConv,
    build,
    fuse,
    grow,
    macs_per_pixel,
    multiscale,
    receptive_field,
    total_stride,
    unbranched,
)
from agri_cae.modelfiles.card import Card, read_card
from agri_cae.modelfiles.onnx import export_onnx, halves
from agri_cae.modelfiles.saving import load_model, save_model

ARMS = ("base", "base_dw", "base_rep", "base_wide")
x = np.random.default_rng(0).random((2, 45, 67, 3), dtype="float32")


def output(net): return keras.ops.convert_to_numpy(net(x))

def shaken(net, by=.02):
    "All weights moved, those that start at zero too"
    for i, w in enumerate(net.weights): w.assign(w + keras.random.normal(w.shape, stddev=by, seed=i))
    return net

def fresh(name): return build(ModelConfig(preset=name))

def arm(name): return shaken(fresh(name))

def apart(a, b): return np.abs(output(a) - output(b)).max()

def largest(net): return max(1, np.abs(output(net)).max())


def test_branches_fuse_to_the_plain_preset():
    net = arm("base_rep")
    fused = fuse(net)
    assert unbranched("base_rep") == "base" and fuse(fused) is fused
    names, plain = ([(w.path.split("/")[-2:], w.shape) for w in n.weights] for n in (fused, fresh("base")))
    assert names == plain
    assert apart(fused, net) <= 1e-5 * largest(net) and np.abs(output(net) - x).max() > .01


def test_branches_are_what_the_layer_computes_one_by_one():
    layer = BranchedConv()
    layer.build((None, None, None, 8))
    for i, w in enumerate(layer.weights): w.assign(keras.random.normal(w.shape, stddev=.3, seed=i))
    y = keras.random.normal((1, 9, 11, 8), seed=9)
    def conv(y, kernel): return keras.ops.conv(y, kernel, padding="same")
    widened = conv(conv(y, layer.widen[None, None]), layer.after)
    summed = conv(y, layer.kernel) + widened + conv(y, layer.point[None, None]) + y * layer.factor + layer.bias
    assert np.abs(keras.ops.convert_to_numpy(layer(y) - summed)).max() < 1e-4


def test_fresh_branches_add_nothing():
    net, plain = fresh("base_rep"), arm("base")
    for layer in net.layers:
        if not isinstance(layer, BranchedConv): continue
        assert np.array_equal(*map(keras.ops.convert_to_numpy, (layer.fused(), layer.kernel)))
    assert apart(grow(plain, net), plain) < 1e-5


@pytest.mark.parametrize("name", ARMS)
def test_saved_loaded_and_exported_alike(tmp_path, name):
    net = arm(name)
    fused = fuse(net)
    fused.set_weights(halves(fused))
    reach = receptive_field(ModelConfig(preset=name))
    card = save_model(net, Card(name="mine", preset=name, receptive_field=reach), tmp_path)
    assert card == read_card(tmp_path / "mine.onnx") and card.preset == unbranched(name)
    expected = output(fused)
    for kind in ("keras", "onnx"):
        np.testing.assert_array_equal(output(load_model(tmp_path / f"mine.{kind}")), expected)
    run = ort_session(tmp_path / "mine.onnx", 2)
    assert np.abs(run.run(None, {"noisy": x})[0] - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    export_onnx(net, tmp_path / "again.onnx")   # of the branched network itself
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "mine.onnx").read_bytes()


@pytest.mark.parametrize("name", ARMS)
def test_grows_from_its_own_saved_weights(tmp_path, name):
    net = arm(name)
    save_model(net, Card(name="mine", preset=name, receptive_field=0), tmp_path)
    old = load_model(tmp_path / "mine.keras")
    assert apart(grow(old, fresh(name)), old) <= 1e-5 * largest(old)


def test_depthwise_networks_grow():
    small = shaken(multiscale(Architecture((32, 32, 48), (0, 0), (1, 1), 1, "depthwise"), 3))
    large = multiscale(Architecture((32, 48, 64), (0, 0), (1, 2), 2, "depthwise"), 3)
    assert apart(grow(small, large), small) <= 1e-4 * np.abs(output(small)).max()


@pytest.mark.parametrize("a,b", [("base", "base_dw"), ("base_dw", "base"), ("base_dw", "base_rep")])
def test_other_blocks_do_not_fit(a, b):
    with pytest.raises(ModelError, match="other kinds of blocks"): grow(fresh(a), fresh(b))


def test_cost_of_branches_is_that_of_one_convolution():
    assert macs_per_pixel(fresh("base_rep")) == macs_per_pixel(fresh("base"))
    assert receptive_field(ModelConfig(preset="base_rep")) == receptive_field(ModelConfig(preset="base"))


def test_the_configuration_names_the_presets():
    assert set(PRESETS) == set(get_args(Preset))


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "classic"])
def test_an_untrained_network_returns_its_input(name):
    assert np.array_equal(output(fresh(name)), x)


@pytest.mark.parametrize("name", PRESETS)
def test_tiles_begin_at_multiples_of_the_total_stride(name):
    assert total_stride(fresh(name)) == 2 ** len(PRESETS[name].widths)


@pytest.mark.parametrize("optimizer,precision", [("muon", "float32"), ("adamw", "mixed_bfloat16")])
@pytest.mark.parametrize("name", ["base_dw", "base_rep"])
def test_every_weight_learns(name, optimizer, precision):
    fields = {"preset": name, "patch": 32, "batch": 2, "lr": 1e-3, "optimizer": optimizer, "precision": precision}
    model = denoising_model(unflatten(TrainConfig, fields))
    before = model.net.get_weights()
    crops = (255 * x[:, :32, :32]).astype("uint8")
    for _ in range(3): assert np.isfinite(float(model.train_on_batch(crops, crops)))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, model.net.get_weights(), strict=True))
    assert model.net(x[:, :32, :32]).dtype == "float32"
