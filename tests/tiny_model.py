"Two tiny ONNX models with the interface of the shipped ones (NHWC, any size), for tests of serving, not of denoising."

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from agri_cae.modelfiles.card import Card, sha256


def _save(folder, name, nodes, init, channels, reach):
    folder.mkdir(parents=True, exist_ok=True)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", "h", "w", channels]) for n in ("noisy", "out")]
    constants = [numpy_helper.from_array(a, k) for k, a in init.items()]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], constants)
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    write_card(path, Card(name=name, version="3", preset="fast", channels=channels, receptive_field=reach))
    return path


def write_card(path, card):
    "Put a card with the right hash beside a weights file."
    card = card.model_copy(update={"sha256": {path.name: sha256(path)}})
    path.with_suffix(".json").write_text(card.model_dump_json(), "utf-8")


def _nodes(*inner):
    "NHWC outside, NCHW for the nodes within, from x to y"
    return [helper.make_node("Transpose", ["noisy"], ["x"], perm=[0, 3, 1, 2]), *inner,
            helper.make_node("Transpose", ["y"], ["out"], perm=[0, 2, 3, 1])]


def box_model(folder, channels=3, side=3, name="box"):
    "Mean over a square of `side` pixels, zero beyond the border."
    w = np.full((channels, 1, side, side), 1 / side**2, np.float32)
    pads = [side // 2] * 4
    conv = helper.make_node("Conv", ["x", "w"], ["y"], group=channels, kernel_shape=[side, side], pads=pads)
    return _save(folder, name, _nodes(conv), {"w": w}, channels, side + 1)


def block_model(folder, channels=3, name="block"):
    "Mean of each block of 8x8 pixels: sees only whole blocks, so that a tile that begins between blocks shows."
    pool = helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[8, 8], strides=[8, 8])
    up = helper.make_node("Resize", ["p", "", "scales"], ["y"], mode="nearest", nearest_mode="floor",
                          coordinate_transformation_mode="asymmetric")
    return _save(folder, name, _nodes(pool, up), {"scales": np.float32([1, 1, 8, 8])}, channels, 16)
