"""The response's size as arithmetic, against running the graph."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from infercam.engine.bundle import InputSpec
from infercam.export.graph.surgery import ResponseGraph, response_graph
from infercam.export.runtime import GraphSession
from infercam.export.writing import cells
from infercam.export.writing.bundle_writer import write_bundle
from infercam.export.writing.cells import UnknownCells, find_cells
from infercam.export.writing.onnx_source import onnx_scores
from tests.export.conftest import Toy

CHANNELS = 2
layer = st.fixed_dictionaries(
    {
        "op": st.sampled_from(["Conv", "MaxPool"]),
        "kernel_shape": st.tuples(st.integers(1, 4), st.integers(1, 4)).map(list),
        "strides": st.integers(1, 3).map(lambda s: [s, s]),
        "dilations": st.integers(1, 2).map(lambda d: [d, d]),
        "pads": st.integers(0, 1),
        "ceil_mode": st.integers(0, 1),
    }
)


def chain(layers: list[dict]) -> ResponseGraph:
    """A graph of those layers as `response`, with scores that nobody looks at; it takes 64 pixels and more."""
    t, x, channels, stride = Toy(), "image", 3, 1
    for at in layers:
        kernel = at["kernel_shape"]
        pads = [min(at["pads"], (side - 1) // 2) for side in kernel] * 2
        shared = {
            "kernel_shape": kernel,
            "strides": at["strides"],
            "dilations": at["dilations"],
            "pads": pads,
        }
        if at["op"] == "Conv":
            x, channels = t.node("Conv", x, t.random(CHANNELS, channels, *kernel), **shared), CHANNELS
        else:
            x = t.node("MaxPool", x, ceil_mode=at["ceil_mode"], **shared)
        stride *= at["strides"][0]
    response = t.node("Conv", x, t.random(5, channels, 1, 1))
    scores = t.node("Flatten", t.node("GlobalAveragePool", response))
    return ResponseGraph(
        t.model(scores, response), np.zeros(5), stride, "image", None, None, True, True, smallest=64
    )


@given(st.lists(layer, min_size=1, max_size=3), st.data())
@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
def test_any_chain_of_windows_keeps_to_it(layers: list[dict], data: st.DataObject) -> None:
    graph = chain(layers)
    cells, session = find_cells(graph), GraphSession(graph.model)
    assert cells.checked > graph.stride
    sides = st.integers(64, 400)
    for height, width in data.draw(st.lists(st.tuples(sides, sides), min_size=8, max_size=8)):
        x = np.zeros((1, 3, height, width), np.float32)
        assert session.run(x)[1].shape[2:] == cells.size(height, width, graph.stride)


def test_sides_in_multiples_have_a_table_of_their_own() -> None:
    """Stride 6, sides in multiples of 4: three remainders."""
    at = {"op": "Conv", "kernel_shape": [3, 3], "dilations": [1, 1], "pads": 1, "ceil_mode": 0}
    graph = replace(chain([at | {"strides": [2, 2]}, at | {"strides": [3, 3]}]), multiple=4)
    cells, session = find_cells(graph), GraphSession(graph.model)
    assert (cells.step, len(cells.rows)) == (2, 3)
    for side in range(64, 200, 4):
        x = np.zeros((1, 3, side, 64), np.float32)
        assert session.run(x)[1].shape[2:] == cells.size(side, 64, 6)


def test_a_fixed_size_is_one_cell_of_the_table() -> None:
    at = {
        "op": "Conv",
        "kernel_shape": [3, 3],
        "dilations": [1, 1],
        "pads": 0,
        "ceil_mode": 0,
        "strides": [2, 2],
    }
    graph = replace(chain([at, at]), height=45, width=62)
    cells = find_cells(graph)
    assert (cells.step, cells.checked) == (4, 1) and cells.size(45, 62, 4) == (10, 14)


def test_what_keeps_to_no_arithmetic_is_told(tmp_path, toys) -> None:
    """A response that loses a cell where the picture is large: the bundle says nothing, and why."""
    t = toys.Toy()
    f = t.features()
    rows = t.node("Gather", t.node("Shape", f), t.const(np.array([2])))
    end = t.node("Sub", rows, t.node("Cast", t.node("Greater", rows, t.const(np.array([9]))), to=7))
    cut = t.node("Slice", f, t.const(np.array([0])), end, t.const(np.array([2])))
    model = t.model(
        t.node("Gemm", t.node("Flatten", t.node("GlobalAveragePool", cut)), t.const(t.array(5, 6)), transB=1)
    )
    graph = response_graph(model)
    with pytest.raises(UnknownCells, match="smaller ones say"):
        find_cells(graph)
    bundle = write_bundle(
        tmp_path / "b",
        graph,
        classes=list("abcde"),
        input_spec=InputSpec(),
        multi_label=True,
        source={},
        source_scores=onnx_scores(model, graph),
    )
    assert bundle.manifest.cells is None
    assert any("GPU runtimes are run once" in note for note in bundle.manifest.source["notes"])


@pytest.mark.parametrize(("multiple", "largest"), [(16, 320), (224, 672)])
def test_large_multiples_are_tried_near_the_smallest_side(multiple: int, largest: int) -> None:
    """Eight multiples of 224 beyond it would be 2016 pixels, of a graph with windows a minute and gigabytes."""
    graph = replace(chain([]), stride=32, multiple=multiple, smallest=multiple, base=(224, 224))
    sides = [side for size in cells._sizes(graph) for side in size]
    assert max(sides) == largest and min(sides) == multiple
    assert all(side % multiple == 0 for side in sides)
