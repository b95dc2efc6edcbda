"""Tiny ONNX classifiers, built node by node, with what a correct response graph of them must give."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import typer
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from infercam.engine.common.errors import InfercamError
from infercam.export.commands.export import register
from tests.shared import SHARED

K, C = 6, 5  # feature channels, classes


@pytest.fixture(autouse=True, scope="session")
def _operators_listed_once() -> Iterator[None]:
    """onnxscript makes the list of PyTorch's operators anew for every export: 1.3 of the 6 seconds that one takes."""
    try:
        from onnxscript._framework_apis import torch_2_5
    except ImportError:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_2_5, "get_torchlib_ops", cache(torch_2_5.get_torchlib_ops))
        yield


class Toy:
    """A graph under construction: `node` and `const` return tensor names, `model` closes it."""

    def __init__(self, shape=("N", 3, "H", "W"), opset: int = 17, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.shape = list(shape)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.domains: list[str] = []

    def const(self, value, name: str | None = None) -> str:
        name = name or f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def random(self, *shape: int, scale: float = 0.5) -> str:
        return self.const(self.array(*shape, scale=scale))

    def array(self, *shape: int, scale: float = 0.5) -> np.ndarray:
        return self.rng.normal(0, scale, shape).astype(np.float32)

    def node(self, op: str, *inputs: str, name: str | None = None, **at) -> str:
        name = name or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name=name, **at))
        return f"{name}_out"

    def features(self, x: str = "image", channels: int = K, out: str = "features") -> str:
        """Two strided convolutions: stride 4, `channels` non-negative channels."""
        y = self.node("Conv", x, self.random(4, 3, 3, 3), self.random(4), strides=[2, 2], pads=[1] * 4)
        y = self.node("Relu", y)
        y = self.node("Conv", y, self.random(channels, 4, 3, 3), strides=[2, 2], pads=[1] * 4)
        self.nodes.append(helper.make_node("Relu", [y], [out], name=out))
        return out

    def model(self, *outputs: str, inputs=None, elem=TensorProto.FLOAT) -> onnx.ModelProto:
        infos = inputs or [helper.make_tensor_value_info("image", TensorProto.FLOAT, self.shape)]
        graph = helper.make_graph(
            self.nodes,
            "toy",
            infos,
            [helper.make_tensor_value_info(o, elem, None) for o in outputs],
            self.weights,
        )
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in self.domains)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@dataclass
class Case:
    """A classifier, its features' name, and the linear layer that a response graph must apply."""

    model: onnx.ModelProto
    features: str
    weight: np.ndarray
    bias: np.ndarray
    logits: str


def run(model: onnx.ModelProto, x: np.ndarray, *names: str) -> list[np.ndarray]:
    """Tensors of a model by name (its outputs where none is named); inner ones are exposed for that."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {o.name for o in copy.graph.output}
    copy.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in known)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(names) or None, {session.get_inputs()[0].name: x})


def picture(n: int, h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, h, w), dtype=np.float32)


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """`Toy`, `Case`, `run`, `picture`, K, C."""
    return SimpleNamespace(Toy=Toy, Case=Case, run=run, picture=picture, K=K, C=C)


@pytest.fixture
def infercam() -> Callable[..., str]:
    """`infercam export` with these arguments; returns what it printed, raises what it raised."""
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)  # with one command only, typer drops its name

    def run(*args: object) -> str:
        result = CliRunner().invoke(app, ["export", *map(str, args)])
        if isinstance(result.exception, InfercamError):
            assert "\n" not in str(result.exception)
            raise result.exception
        assert result.exception is None and result.exit_code == 0, result.output
        return result.output

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("../shared is absent: real models and images are not tested")
    return SHARED
