"""Operations counted in graphs: by hand, and against the published figures of known networks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.helper import make_node, make_tensor_value_info

from infercam.benchmarks.bench.flops import Counter, count
from infercam.benchmarks.bench.job import NotMeasured
from infercam.engine.demo.ablation import BUNDLE


class Net:
    """Builds a graph layer by layer; the weights are zeros, for only their shapes count."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
        return name

    def add(self, op: str, *inputs: str, **attributes: object) -> str:
        out = f"t{len(self.nodes)}"
        self.nodes.append(make_node(op, list(inputs), [out], **attributes))
        return out

    def conv(self, x: str, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        w = self.weight(cout, cin // groups, kernel, kernel)
        return self.add("Conv", x, w, strides=[stride] * 2, pads=[kernel // 2] * 4, group=groups)

    def head(self, x: str, channels: int, classes: int) -> str:
        pooled = self.add("Flatten", self.add("GlobalAveragePool", x))
        return self.add("Gemm", pooled, self.weight(classes, channels), transB=1)

    def model(self, output: str, shape: tuple[int | str, ...] = (1, 3, "h", "w")) -> onnx.ModelProto:
        x = make_tensor_value_info("x", TensorProto.FLOAT, list(shape))
        y = make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def resnet(blocks: tuple[int, ...], bottleneck: bool) -> onnx.ModelProto:
    net = Net()
    x = net.conv("x", 3, 64, 7, 2)
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    cin = 64
    for stage, number in enumerate(blocks):
        mid = 64 << stage
        cout = mid * (4 if bottleneck else 1)
        for i in range(number):
            stride = 2 if stage and not i else 1
            if bottleneck:
                y = net.conv(net.conv(net.conv(x, cin, mid, 1), mid, mid, 3, stride), mid, cout, 1)
            else:
                y = net.conv(net.conv(x, cin, mid, 3, stride), mid, mid, 3)
            if cin != cout or stride > 1:
                x = net.conv(x, cin, cout, 1, stride)
            x, cin = net.add("Add", x, y), cout
    return net.model(net.head(x, cin, 1000))


def mobilenet_v2() -> onnx.ModelProto:
    net = Net()
    x, cin = net.conv("x", 3, 32, 3, 2), 32
    for t, c, n, s in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)):  # fmt: skip  # noqa: E501
        for i in range(n):
            mid = cin * t
            y = x if t == 1 else net.conv(x, cin, mid, 1)
            y = net.conv(y, mid, mid, 3, s if i == 0 else 1, groups=mid)
            x, cin = net.conv(y, mid, c, 1), c
    return net.model(net.head(net.conv(x, 320, 1280, 1), 1280, 1000))


@pytest.mark.parametrize(
    ("model", "giga"),
    [(resnet((2, 2, 2, 2), False), 1.814), (resnet((3, 4, 6, 3), True), 4.089), (mobilenet_v2(), 0.301)],
    ids=["resnet18", "resnet50", "mobilenet_v2"],
)
def test_the_published_multiply_adds(model: onnx.ModelProto, giga: float) -> None:
    """torchvision's own table (and the papers): multiply-adds of one 224×224 image, to three digits."""
    assert count(model, {"x": (1, 3, 224, 224)}) / 2e9 == pytest.approx(giga, abs=0.0006)


def test_a_graph_counted_by_hand() -> None:
    net = Net()
    a = net.conv("x", 3, 8, 3, 2)  # 8×5×6 outputs (from 9×11) × 27
    b = net.conv(a, 8, 8, 3, 1, groups=8)  # 240 × 9
    c = net.conv(b, 8, 5, 1)  # 150 × 8
    r = net.add("Reshape", c, "shape")
    net.weights.append(numpy_helper.from_array(np.array([1, 5, 30], np.int64), "shape"))
    m = net.add("MatMul", r, net.weight(30, 7))  # 1×5×7 outputs × 30
    g = net.add("Gemm", net.add("Flatten", m), net.weight(35, 2))  # 2 × 35
    by_hand = 240 * 27 + 240 * 9 + 150 * 8 + 35 * 30 + 2 * 35
    assert count(net.model(g), {"x": (1, 3, 9, 11)}) == 2 * by_hand


def test_transposed_convolution_and_transposed_gemm() -> None:
    net = Net()
    up = net.add("ConvTranspose", "x", net.weight(3, 4, 2, 2), strides=[2, 2])  # 3×5×5 inputs × 4×2×2
    flat = net.add("Reshape", up, "shape")
    net.weights.append(numpy_helper.from_array(np.array([100, 4], np.int64), "shape"))
    product = net.add("Gemm", flat, net.weight(100, 6), transA=1)  # 4×6 outputs × 100
    assert count(net.model(product), {"x": (1, 3, 5, 5)}) == 2 * (75 * 16 + 24 * 100)


def test_shapes_of_an_earlier_size_are_not_believed() -> None:
    model = resnet((1, 1, 1, 1), False)
    once = onnx.shape_inference.infer_shapes(model)
    for value in once.graph.value_info:
        value.type.tensor_type.shape.Clear()
        for size in (1, 64, 7, 7):
            value.type.tensor_type.shape.dim.add().dim_value = size
    assert count(once, {"x": (1, 3, 96, 64)}) == count(model, {"x": (1, 3, 96, 64)})


def test_a_shape_that_depends_on_the_data_is_not_guessed() -> None:
    net = Net()
    y = net.conv(net.add("Resize", "x", "", "", "sizes"), 3, 4, 1)
    model = net.model(y)
    model.graph.input.append(make_tensor_value_info("sizes", TensorProto.INT64, [4]))
    with pytest.raises(NotMeasured, match="Conv"):
        count(model, {"x": (1, 3, 8, 8)})


def test_counter_adds_up_views() -> None:
    counter = Counter.load(BUNDLE / "response.onnx", "image")
    one, other = counter.at(96, 120), counter.at(192, 240)
    assert other == pytest.approx(4 * one, rel=0.02)
    assert counter.of({"96x120": 3, "192x240": 1}) == 3 * one + other


def test_counter_of_something_else(tmp_path) -> None:
    file = tmp_path / "no.onnx"
    file.write_bytes(b"not a graph")
    with pytest.raises(NotMeasured, match="cannot be read"):
        Counter.load(file, "image")
