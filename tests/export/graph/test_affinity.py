"""Self-attention among patches as an output: averaged over heads, blocks and directions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import ExportError
from infercam.export import export_onnx
from infercam.export.graph.surgery import response_graph
from infercam.export.graph.wishes import MapWishes
from tests.export.graph.vit_graphs import Vit


def affinity(vit, x, blocks, **trunk):
    """(N, P, P), by the definition."""
    last = range(vit.blocks - blocks, vit.blocks)
    mean = np.mean([vit.weights(x, b, **trunk).astype(np.float64).mean(1) for b in last], axis=0)
    patches = mean[:, vit.extra :, vit.extra :]
    return (patches + patches.transpose(0, 2, 1)) / 2


@pytest.mark.parametrize(("extra", "blocks", "rank", "opset"), [(1, 1, 4, 17), (3, 2, 3, 18), (1, 2, 3, 13)])
def test_attention_of_the_last_blocks(toys, extra, blocks, rank, opset):
    vit = Vit(toys, extra=extra, opset=max(opset, 17))
    model = vit.classifier(rank=rank)
    graph = response_graph(model, maps=MapWishes(affinity=blocks))
    x = toys.picture(2, *vit.size)
    found, response = toys.run(graph.model, x, "affinity", "response")
    np.testing.assert_allclose(found, affinity(vit, x, blocks, rank=rank), rtol=1e-4, atol=1e-6)
    assert graph.affinity == blocks and [o.name for o in graph.model.graph.output][-1] == "affinity"
    np.testing.assert_array_equal(response, toys.run(response_graph(model).model, x, "response")[0])


@pytest.mark.parametrize("extra", [0, 2])
def test_of_a_mean_over_patches(toys, extra):
    """An exact head has one too, whether its class tokens are cut off before the mean or there are none."""
    vit = Vit(toys, extra=extra)
    t = vit.toy()
    y = vit.trunk(t)
    if extra:
        y = t.node("Slice", y, *(t.const(np.array([v])) for v in (extra, 1 << 40, 1)))
    y = t.node("ReduceMean", y, axes=[1], keepdims=0)
    model = t.model(t.node("Gemm", y, t.const(vit.w["head"]), t.const(vit.w["head.b"]), transB=1))
    graph = response_graph(model, maps=MapWishes(affinity=2))
    x = toys.picture(1, *vit.size)
    found = toys.run(graph.model, x, "affinity")[0]
    np.testing.assert_allclose(found, affinity(vit, x, 2), rtol=1e-4, atol=1e-6)
    assert graph.decomposition == "mean"


def test_more_blocks_than_there_are(toys):
    with pytest.raises(ExportError, match="--affinity 3: the graph has 2 blocks"):
        response_graph(Vit(toys).classifier(), maps=MapWishes(affinity=3))
    t = toys.Toy()
    y = t.node("Flatten", t.node("GlobalAveragePool", t.features()))
    with pytest.raises(ExportError, match="--affinity 1: the graph has 0 blocks"):
        response_graph(t.model(t.node("Gemm", y, t.random(toys.K, toys.C))), maps=MapWishes(affinity=1))


def test_a_bundle_with_it(toys, tmp_path):
    onnx.save(Vit(toys).classifier(), tmp_path / "vit.onnx")
    export_onnx(tmp_path / "vit.onnx", tmp_path / "b", affinity=2)
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.manifest.affinity == 2 and bundle.manifest.method == "patch-tokens"
