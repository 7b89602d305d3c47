"Presets with other blocks or widths: they learn, are fused, saved, exported and grown like the shipped ones."
import keras
import numpy as np
import pytest

from agri_cae.config import ModelConfig, ModelError, TrainConfig, unflatten
from agri_cae.engines.runtimes import ort_session
from agri_cae.fitting.step import denoising_model
from agri_cae.model import (
    PRESETS,
    BranchedConv,
    Preset,
    build,
    fuse,
    grow,
    macs_per_pixel,
    multiscale,
    receptive_field,
    unbranched,
)
from agri_cae.modelfiles.card import Card, read_card
from agri_cae.modelfiles.saving import export_onnx, halves, load_model, save_model

ARMS = ("base", "base_dw", "base_rep", "base_wide")
x = np.random.default_rng(0).random((2, 45, 67, 3), dtype="float32")


def output(net): return keras.ops.convert_to_numpy(net(x))

def shaken(net, by=.02):
    "All weights moved, those that start at zero too"
    for i, w in enumerate(net.weights): w.assign(w + keras.random.normal(w.shape, stddev=by, seed=i))
    return net

def arm(name): return shaken(build(ModelConfig(preset=name)))


def test_branches_fuse_to_the_plain_preset():
    net = arm("base_rep"); fused = fuse(net)
    assert unbranched("base_rep") == "base" and fuse(fused) is fused
    assert [(w.path.split("/")[-2:], w.shape) for w in fused.weights] == [(w.path.split("/")[-2:], w.shape) for w in build(ModelConfig(preset="base")).weights]
    before = output(net)
    assert np.abs(output(fused) - before).max() <= 1e-5 * max(1, np.abs(before).max()) and np.abs(before - x).max() > .01


def test_branches_are_what_the_layer_computes_one_by_one():
    layer = BranchedConv(); layer.build((None, None, None, 8))
    for i, w in enumerate(layer.weights): w.assign(keras.random.normal(w.shape, stddev=.3, seed=i))
    y = keras.random.normal((1, 9, 11, 8), seed=9)
    conv = lambda y, kernel: keras.ops.conv(y, kernel, padding="same")
    apart = conv(y, layer.kernel) + conv(conv(y, layer.widen[None, None]), layer.after) + conv(y, layer.point[None, None]) + y * layer.factor + layer.bias
    assert np.abs(keras.ops.convert_to_numpy(layer(y) - apart)).max() < 1e-4


def test_fresh_branches_add_nothing():
    net, plain = build(ModelConfig(preset="base_rep")), build(ModelConfig(preset="base"))
    for l in net.layers:
        if isinstance(l, BranchedConv): assert np.array_equal(*map(keras.ops.convert_to_numpy, (l.fused(), l.kernel)))
    shaken(plain)
    assert np.abs(output(grow(plain, net)) - output(plain)).max() < 1e-5


@pytest.mark.parametrize("name", ARMS)
def test_saved_loaded_and_exported_alike(tmp_path, name):
    net = arm(name); fused = fuse(net); fused.set_weights(halves(fused))
    card = save_model(net, Card(name="mine", preset=name, receptive_field=receptive_field(ModelConfig(preset=name))), tmp_path)
    assert card == read_card(tmp_path / "mine.onnx") and card.preset == unbranched(name)
    expected = output(fused)
    for kind in ("keras", "onnx"): np.testing.assert_array_equal(output(load_model(tmp_path / f"mine.{kind}")), expected)
    run = ort_session(tmp_path / "mine.onnx", 2)
    assert np.abs(run.run(None, {"noisy": x})[0] - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    export_onnx(net, tmp_path / "again.onnx")   # of the branched network itself
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "mine.onnx").read_bytes()


@pytest.mark.parametrize("name", ARMS)
def test_grows_from_its_own_saved_weights(tmp_path, name):
    net = arm(name)
    save_model(net, Card(name="mine", preset=name, receptive_field=0), tmp_path)
    old = load_model(tmp_path / "mine.keras")
    assert np.abs(output(grow(old, build(ModelConfig(preset=name)))) - output(old)).max() <= 1e-5 * max(1, np.abs(output(old)).max())


def test_depthwise_networks_grow():
    small, large = (multiscale(Preset(widths, (0, 0), (1, n), n, "depthwise"), 3) for widths, n in (((32, 32, 48), 1), ((32, 48, 64), 2)))
    shaken(small)
    assert np.abs(output(grow(small, large)) - output(small)).max() <= 1e-4 * np.abs(output(small)).max()


@pytest.mark.parametrize("a,b", [("base", "base_dw"), ("base_dw", "base"), ("base_dw", "base_rep")])
def test_other_blocks_do_not_fit(a, b):
    with pytest.raises(ModelError, match="other kinds of blocks"): grow(build(ModelConfig(preset=a)), build(ModelConfig(preset=b)))


def test_cost_of_branches_is_that_of_one_convolution():
    assert macs_per_pixel(build(ModelConfig(preset="base_rep"))) == macs_per_pixel(build(ModelConfig(preset="base")))
    assert receptive_field(ModelConfig(preset="base_rep")) == receptive_field(ModelConfig(preset="base"))


@pytest.mark.parametrize("name", PRESETS)
def test_an_untrained_network_returns_its_input(name):
    assert np.array_equal(output(build(ModelConfig(preset=name))), x)


@pytest.mark.parametrize("optimizer,precision", [("muon", "float32"), ("adamw", "mixed_bfloat16")])
@pytest.mark.parametrize("name", ["base_dw", "base_rep"])
def test_every_weight_learns(name, optimizer, precision):
    model = denoising_model(unflatten(TrainConfig, dict(preset=name, recipe="gaussian", patch=32, batch=2, lr=1e-3, optimizer=optimizer, precision=precision)))
    before = model.net.get_weights()
    crops = (255 * x[:, :32, :32]).astype("uint8")
    for _ in range(3): assert np.isfinite(float(model.train_on_batch(crops, crops)))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, model.net.get_weights()))
    assert model.net(x[:, :32, :32]).dtype == "float32"
