"Model files that are broken, foreign or hostile: refused by Keras and by the denoiser, and none of their code is run."
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_model import box_model, write_card

from agri_cae.config import ModelConfig, ModelError, TrainConfig, unflatten
from agri_cae.fitting.loop import fit
from agri_cae.io.images import Picture, write_image
from agri_cae.model import build
from agri_cae.modelfiles.card import Card, shipped, weights_path
from agri_cae.modelfiles.saving import load_model, save_model
from agri_cae.serve import Denoiser

ROOT = Path(__file__).parents[2]
KINDS = pytest.mark.parametrize("kind", ["onnx", "keras"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A saved model of the smallest preset, and its files"
    folder = tmp_path_factory.mktemp("made")
    save_model(build(ModelConfig(preset="classic")), Card(name="mine", preset="classic", receptive_field=60), folder)
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.fixture
def files(made, tmp_path):
    for name, data in made.items(): (tmp_path / name).write_bytes(data)
    return tmp_path


def card_of(path): return Card.model_validate_json(path.with_suffix(".json").read_bytes())


def forge(path, **changed):
    "A card with the right hash for whatever stands in the file"
    write_card(path, card_of(path).model_copy(update=changed))


def refused(path, what, what_onnx_runtime=None):
    "Both ways of loading refuse it, in one line that names the file"
    for load, match in ((load_model, what), (Denoiser.load, what_onnx_runtime or what)):
        with pytest.raises(ModelError, match=match) as e: load(path)
        assert path.stem in str(e.value) and "\n" not in str(e.value)


def onnx_of(path): return onnx.load(path, load_external_data=False)


# the good case, so that the refusals mean something

@KINDS
def test_what_was_saved_is_loaded_by_both(files, kind):
    x = np.random.default_rng(0).random((20, 23, 3), np.float32)
    a = keras.ops.convert_to_numpy(load_model(files / f"mine.{kind}")(x[None]))[0]
    for engine in ("keras", "onnx"):
        d = Denoiser.load(files / f"mine.{kind}", engine=engine)
        assert np.abs(d.engine(x[None])[0] - a).max() <= 1e-4


def test_only_what_is_needed_is_shipped():
    names = {f.name for f in (ROOT / "agri_cae" / "weights").iterdir()}
    profiles = {f"{m}.profile.json" for m in shipped()}
    assert names - profiles == {f"{m}.{ext}" for m in shipped() for ext in ("onnx", "json")}
    assert sum((ROOT / "agri_cae" / "weights" / n).stat().st_size for n in names) < 20e6


@pytest.mark.skipif("fast" not in shipped(), reason="no shipped weights")
@pytest.mark.parametrize("start", ["fast", str(ROOT / "agri_cae" / "weights" / "fast.onnx")])
def test_training_starts_from_shipped_weights(tmp_path, start):
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    fields = {"epochs": 1, "steps_per_epoch": 1, "patch": 32, "batch": 1, "lr": 1e-9, "ema": 0, "init_from": start}
    trained = fit(unflatten(TrainConfig, fields), [photo], [photo], tmp_path, progress=False).net
    for a, b in zip(trained.get_weights(), load_model("fast").get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.skipif("fast" not in shipped(), reason="no shipped weights")
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_the_shipped_file_can_be_written_again(tmp_path, backend):
    "From the weights in it, the same graph comes out of every backend, and TensorFlow is not needed for it"
    pytest.importorskip(backend)
    code = """
import sys
from agri_cae.modelfiles.onnx import export_onnx
from agri_cae.modelfiles.saving import load_model
export_onnx(load_model("fast"), "again.onnx")
print("tensorflow" in sys.modules)"""
    env = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(backend == "tensorflow")), done.stderr[-2000:]
    assert onnx.load(tmp_path / "again.onnx") == onnx.load(weights_path("fast"))


# weights and card

@KINDS
@pytest.mark.parametrize("where", [0, .5, -1])
def test_a_flipped_byte(files, kind, where):
    path = files / f"mine.{kind}"
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1
    path.write_bytes(data)
    refused(path, "SHA-256 differs")


@KINDS
def test_the_card_of_another_model(files, kind):
    other = box_model(files / "other")
    (files / "mine.json").write_bytes(other.with_suffix(".json").read_bytes())
    refused(files / f"mine.{kind}", "SHA-256 differs")


@KINDS
@pytest.mark.parametrize("text, what", [
    (None, "card mine.json is missing"), ("no json", "not a model card .Invalid JSON"), ("[]", "not a model card"),
    ("{}", "name: Field required"), (b"\xff\xfe", "not a model card"),
    ({"preset": "huge"}, "preset: Input should be 'classic', 'fast'"), ({"channels": 0}, "channels"),
    ({"receptive_field": -8}, "receptive_field"), ({"sha256": {}}, "SHA-256")])
def test_a_card_that_is_none(files, kind, text, what):
    card = files / "mine.json"
    if text is None: card.unlink()
    elif isinstance(text, dict): card.write_text(json.dumps(json.loads(card.read_bytes()) | text))
    else: card.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(files / f"mine.{kind}", what)


@KINDS
@pytest.mark.parametrize("wrong", [{"preset": "fast"}, {"channels": 4}])
def test_weights_that_do_not_fit_their_card(files, kind, wrong):
    path = files / f"mine.{kind}"
    forge(path, **wrong)
    with pytest.raises(ModelError, match="do not fit the preset"): load_model(path)
    with pytest.raises(ModelError, match="do not fit the preset"): Denoiser.load(path, engine="keras")
    if wrong.get("channels"):
        with pytest.raises(ModelError, match=r"shape|fit"): Denoiser.load(path)


# files that lie, with a card that vouches for them

def test_a_lambda_with_code(tmp_path):
    path, ran = tmp_path / "evil.keras", tmp_path / "ran"
    inputs = keras.Input((None, None, 3))
    code = eval(f"lambda x: (__import__('pathlib').Path({str(ran)!r}).touch(), x)[1]")
    keras.Model(inputs, keras.layers.Lambda(code, output_shape=(None, None, 3))(inputs)).save(path)
    keras.saving.load_model(path, safe_mode=False)(np.zeros((1, 8, 8, 3)))
    assert ran.exists()   # it does run where it may
    ran.unlink()
    write_card(path, Card(name="evil", preset="classic", receptive_field=60))
    refused(path, "cannot be read .*[Ll]ambda")
    assert not ran.exists()


@KINDS
@pytest.mark.parametrize("part", [0, .3, .99])
def test_a_truncated_file(files, kind, part):
    path = files / f"mine.{kind}"
    data = path.read_bytes()
    path.write_bytes(data[:int(part * len(data))])
    forge(path)
    refused(path, "cannot be read|do not fit", "cannot be read|ONNX Runtime can run")


def test_weights_outside_of_the_file(files):
    path, secret = files / "mine.onnx", files.parent / "secret.bin"
    model = onnx_of(path)
    secret.write_bytes(b"\x3c" * 10_000)
    for t in model.graph.initializer:
        if t.name == "w000":
            t.ClearField("raw_data")
            t.data_location = TensorProto.EXTERNAL
            t.external_data.add(key="location", value=f"../{secret.name}")
    path.write_bytes(model.SerializeToString())
    forge(path)
    refused(path, "another file", "ONNX Runtime can run")


@pytest.mark.parametrize("change, what", [
    (lambda g: g.input[0].type.tensor_type.shape.dim[3].__setattr__("dim_value", 4), "ONNX Runtime can run|shape"),
    (lambda g: g.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 64), "shape"),
    (lambda g: g.input[0].type.tensor_type.shape.dim.add(), "ONNX Runtime can run|shape"),
    (lambda g: g.input[0].type.tensor_type.__setattr__("elem_type", TensorProto.UINT8), "ONNX Runtime can run|uint8"),
    (lambda g: g.input.append(helper.make_tensor_value_info("more", 1, ["n", "h", "w", 3])), "more|shape"),
    (lambda g: g.ClearField("node"), "ONNX Runtime can run")],
    ids=["bands", "fixed size", "five axes", "integers", "two inputs", "empty"])
def test_a_graph_of_another_kind(files, change, what):
    path, model = files / "mine.onnx", onnx_of(files / "mine.onnx")
    change(model.graph)
    path.write_bytes(model.SerializeToString())
    forge(path)
    with pytest.raises(ModelError, match=what): Denoiser.load(path)


@pytest.mark.parametrize("change", [
    lambda t: t.dims.append(1), lambda t: t.__setattr__("name", "x"),
    lambda t: t.__setattr__("raw_data", t.raw_data[:-2]), lambda t: t.__setattr__("raw_data", b"")],
    ids=["one axis more", "another name", "cut short", "empty"])
def test_weights_that_cannot_be_read_back(files, change):
    path, model = files / "mine.onnx", onnx_of(files / "mine.onnx")
    change(next(t for t in model.graph.initializer if t.name == "w002"))
    path.write_bytes(model.SerializeToString())
    forge(path)
    with pytest.raises(ModelError, match=r"cannot be read|do not fit"): load_model(path)


def test_an_onnx_model_of_somebody_else(tmp_path):
    path = box_model(tmp_path)
    assert Denoiser.load(path).card.name == "box"
    with pytest.raises(ModelError, match="do not fit"): load_model(path)


def test_weights_beyond_float16_are_not_saved(tmp_path):
    net = build(ModelConfig(preset="classic"))
    net.weights[0].assign(net.weights[0] + 1e6)
    card = Card(name="mine", preset="classic", receptive_field=60)
    with pytest.raises(ModelError, match="end of float16"): save_model(net, card, tmp_path)
    assert not list(tmp_path.iterdir())


# by the command

@pytest.mark.parametrize("name, break_it, what", [
    ("mine.onnx", lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\0"), "SHA-256"),
    ("mine.keras", lambda p: p.with_suffix(".json").unlink(), "card mine.json is missing"),
    ("mine.onnx", lambda p: (p.write_bytes(p.read_bytes()[:-9]), forge(p)), "ONNX Runtime"),
    ("mine.onnx", lambda p: p.unlink(), "is no model")])
def test_the_command_says_it_in_one_line(files, name, break_it, what):
    break_it(files / name)
    write_image(Picture(np.zeros((20, 20, 3), np.uint8)), files / "a.png")
    env = {k: v for k, v in os.environ.items() if not k.startswith("AGRI_CAE")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from agri_cae.cli.main import main; main()", "denoise", "a.png", "b.png"]
    done = subprocess.run([*command, "--model", name], cwd=files, env=env, capture_output=True, text=True)
    assert done.returncode in (1, 2) and done.stdout == "", done
    line, = done.stderr.splitlines()
    assert what in line and "Traceback" not in line and not (files / "b.png").exists()
