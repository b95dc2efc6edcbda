"""Sizes that a graph does not take: the smallest side, multiples, its own size, maps that are no maps."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import ExportError
from infercam.export.graph.dynamic import SizeWishes
from infercam.export.graph.surgery import response_graph
from infercam.export.graph.trials import Trials
from infercam.export.make_bundle import ExportSettings, make_bundle, parse_size


def closed(t, toys, f, channels=None) -> onnx.ModelProto:
    """The graph with pooling and a linear layer on `f`."""
    pooled = t.node("Flatten", t.node("GlobalAveragePool", f))
    return t.model(t.node("Gemm", pooled, t.const(t.array(toys.C, channels or toys.K)), transB=1))


def pools(toys, count: int) -> onnx.ModelProto:
    """3×3 max pooling of stride 2 without padding, as SqueezeNet has it: too small a picture ends the process."""
    t = toys.Toy()
    x, channels = "image", 3
    for _ in range(count):
        x = t.node("Relu", t.node("Conv", x, t.random(toys.K, channels, 3, 3), pads=[1] * 4))
        x, channels = t.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2]), toys.K
    return closed(t, toys, x)


@pytest.mark.parametrize(("count", "side"), [(2, 7), (3, 15)])
def test_the_smallest_side_of_pooling_without_padding(toys, count: int, side: int) -> None:
    """ONNX Runtime rounds towards zero, and so pools a last window of 2 pixels too: from 5 and 11 pixels on."""
    graph = response_graph(pools(toys, count))
    assert graph.height is None and graph.multiple == 1 and side * 2 // 3 <= graph.smallest <= side
    side = graph.smallest
    with Trials(graph.model) as trials:
        assert trials.runs(side, side) and trials.runs(side, 5 * side)
        assert trials.problem(side - 1, side - 1), "an error, or the death of the process that tried it"
        assert trials.runs(side, side), "which does not hinder the next trial"


def test_the_smallest_side_of_convolutions_without_padding(toys) -> None:
    t = toys.Toy()
    x = t.node("Relu", t.node("Conv", "image", t.random(toys.K, 3, 5, 5), strides=[2, 2]))
    x = t.node("Relu", t.node("Conv", x, t.random(toys.K, toys.K, 3, 3), strides=[2, 2]))
    graph = response_graph(closed(t, toys, x))
    assert graph.smallest == 9 and graph.height is None


def test_a_padded_network_takes_a_single_pixel(toys) -> None:
    t = toys.Toy()
    assert response_graph(closed(t, toys, t.features())).smallest == 1


def windows(t, toys, f, cells: int) -> str:
    """Features cut into windows of cells×cells and put together again, sizes computed at run time."""
    shape = t.node("Shape", f)
    sides = t.node("Slice", shape, *(t.const(np.array([v])) for v in (2, 4, 0)))
    count = t.node("Div", sides, t.const(np.int64(cells)))
    h, w = (t.node("Gather", count, t.const(np.array([k])), axis=0) for k in (0, 1))
    many = t.const(np.array([cells]))
    target = t.node("Concat", t.const(np.array([0, 8])), h, many, w, many, axis=0)
    y = t.node("Reshape", f, target, name="windows")
    y = t.node("Transpose", t.node("Transpose", y, perm=[0, 1, 2, 4, 3, 5]), perm=[0, 1, 2, 4, 3, 5])
    return t.node("Reshape", y, shape)


@pytest.mark.parametrize(("cells", "multiple"), [(4, 16), (8, 32), (16, 64), (24, 96)])
def test_windows_make_sides_multiples(toys, cells: int, multiple: int) -> None:
    t = toys.Toy()
    graph = response_graph(closed(t, toys, windows(t, toys, t.features(channels=8), cells), 8))
    assert (graph.height, graph.width, graph.multiple, graph.smallest) == (None, None, multiple, multiple)
    assert any(f"multiples of {multiple}" in n and "'windows'" in n for n in graph.notes), graph.notes
    for size in ((multiple, 2 * multiple), (3 * multiple, multiple)):
        _, response = toys.run(graph.model, toys.picture(1, *size), "scores", "response")
        assert response.shape[2:] == (size[0] // 4, size[1] // 4)


def resized(t, side: int) -> str:
    """The picture at one size, whatever it came in."""
    head = t.node("Slice", t.node("Shape", "image"), *(t.const(np.array([v])) for v in (0, 2, 0)))
    sizes = t.node("Concat", head, t.const(np.array([side, side])), axis=0)
    return t.node("Resize", "image", "", "", sizes, mode="linear", name="resize")


@pytest.mark.parametrize("side", [160, 224])
def test_a_graph_that_resizes_gets_its_own_size(toys, side: int) -> None:
    t = toys.Toy()
    graph = response_graph(closed(t, toys, t.features(resized(t, side))))
    assert (graph.height, graph.width, graph.stride) == (side, side, 4)
    assert any(f"fixed at {side}x{side}" in n for n in graph.notes)


def padded(t, to: int) -> str:
    """The picture with zeros at its right and lower edge, up to a multiple."""
    sides = t.node("Slice", t.node("Shape", "image"), *(t.const(np.array([v])) for v in (2, 4, 0)))
    step = t.const(np.int64(to))
    lack = t.node("Mod", t.node("Sub", step, t.node("Mod", sides, step)), step)
    return t.node("Pad", "image", t.node("Concat", t.const(np.zeros(6, np.int64)), lack, axis=0))


@pytest.mark.parametrize("to", [16, 32, 64])
def test_a_pad_inside_the_graph_is_not_taken_for_the_picture(toys, to: int) -> None:
    t = toys.Toy()
    graph = response_graph(closed(t, toys, t.features(padded(t, to))))
    assert (graph.height, graph.multiple) == (None, to)
    assert any("picture of" in n for n in graph.notes)


def embedded(t, toys, cells: tuple[int, int]) -> str:
    """Something learnt is added to the map: one size runs."""
    return t.node("Relu", t.node("Add", t.features(), t.const(t.array(1, toys.K, *cells)), name="position"))


@pytest.mark.parametrize("side", [192, 256, 320, 448, 512])
def test_a_graph_of_one_size_that_it_does_not_declare_is_found(toys, side: int) -> None:
    t = toys.Toy()
    graph = response_graph(closed(t, toys, embedded(t, toys, (side // 4, side // 4))))
    assert (graph.height, graph.width) == (side, side)


def test_sizes_tried_are_named_and_one_can_be_given(toys) -> None:
    t = toys.Toy()
    model = closed(t, toys, embedded(t, toys, (25, 40)))
    with pytest.raises(ExportError, match=r"64x64, 128x128, .*512x512.*--size HxW"):
        response_graph(model)
    graph = response_graph(model, sizes=SizeWishes(size=(100, 160)))
    assert (graph.height, graph.width) == (100, 160)
    with pytest.raises(ExportError, match="100x200"):
        response_graph(model, sizes=SizeWishes(size=(100, 200)))
    with pytest.raises(ExportError, match="only, not 96x96"):
        declared = toys.Toy(shape=(1, 3, 64, 64))
        response_graph(closed(declared, toys, declared.features()), sizes=SizeWishes(size=(96, 96)))


def test_size_as_text() -> None:
    assert (parse_size("224"), parse_size("224x320"), parse_size(" 96X64 ")) == (
        (224, 224),
        (224, 320),
        (96, 64),
    )
    for text in ("", "0", "224x0", "-1x3", "224x224x3", "a"):
        with pytest.raises(ExportError, match="--size takes height x width"):
            parse_size(text)


def test_size_of_an_export(toys, tmp_path) -> None:
    t = toys.Toy()
    onnx.save(closed(t, toys, t.features()), str(tmp_path / "m.onnx"))
    bundle = make_bundle(tmp_path / "m.onnx", tmp_path / "b", ExportSettings(size="40x56"))
    assert Bundle.load(bundle.path).manifest.input.fixed_size == (40, 56)


@pytest.mark.parametrize("shape", [("N", 3, 32, 32), ("N", 3, "H", "W")])
def test_a_map_of_one_cell_is_refused(toys, shape) -> None:
    """VGG and AlexNet flatten their last map: as a convolution over all of it, one cell is left."""
    t = toys.Toy(shape=shape)
    cells = 8 if shape[2] == 32 else 56
    f = t.node("Conv", t.features(), t.random(toys.K, toys.K, cells, cells))
    if shape[2] != 32:  # the flattened map has one size
        f = t.node("Reshape", f, t.const(np.array([0, toys.K, 1, 1])))
    with pytest.raises(ExportError, match="single cell at"):
        response_graph(closed(t, toys, f))


def test_a_map_of_few_cells_is_warned_of(toys) -> None:
    t = toys.Toy(shape=("N", 3, 12, 12))
    f = t.node("Relu", t.node("Add", t.features(), t.const(t.array(1, toys.K, 3, 3)), name="position"))
    graph = response_graph(closed(t, toys, f))
    assert any(n.startswith("warning: the response has only 3x3 cells") for n in graph.notes)
