"""Small ONNX files of the shape that salient-object networks have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def network(
    file: Path,
    *,
    side: int | str = 32,
    batch: int | str = 1,
    sigmoid: bool = True,
    channels: int = 1,
    squeezed: bool = False,
    divisor: float = 1.0,
) -> Path:
    """Redness (red less the mean of green and blue) over `divisor`: `map`, of which `other` is the negative."""
    weight = np.zeros((channels, 3, 1, 1), np.float32)
    weight[:, :, 0, 0] = np.array([1, -0.5, -0.5], np.float32) / np.float32(divisor)
    nodes = [helper.make_node("Conv", ["image", "w"], ["logits"])]
    nodes.append(helper.make_node("Sigmoid" if sigmoid else "Identity", ["logits"], ["full"]))
    nodes.append(
        helper.make_node("Squeeze", ["full", "axis"], ["map"])
        if squeezed
        else helper.make_node("Identity", ["full"], ["map"])
    )
    nodes.append(helper.make_node("Neg", ["map"], ["other"]))
    weights = [numpy_helper.from_array(weight, "w")]
    if squeezed:
        weights.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    graph = helper.make_graph(
        nodes,
        "salient",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("map", "other")],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(model, str(file))
    return file
