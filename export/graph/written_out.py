"""Norms of the pooled vector written out in another order, put in that which freeze.py reads.

TensorFlow writes `(x - mean) · s + b` as `x · s + (b - mean · s)`, or with `-mean · s + b`: two products of one
factor, whose difference alone is a norm. They become one again.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from infercam.export.graph.index import Graph, fresh_name


def join_norms(model: ModelProto) -> None:
    """Rewrite such sums of vectors, in place; the products die if nothing else reads them."""
    graph = Graph(model)
    for node in [n for n in model.graph.node if n.op_type == "Add"]:
        found = _norm(graph, node)
        if found is None:
            continue
        x, mean, factor, shift = found
        out = node.output[0]
        centred, scaled = (fresh_name(model, f"{out}/{name}") for name in ("centred", "scaled"))
        at = next(i for i, n in enumerate(model.graph.node) if n.output[:1] == [out])
        model.graph.node.insert(at, helper.make_node("Mul", [centred, factor], [scaled], name=scaled))
        model.graph.node.insert(at, helper.make_node("Sub", [x, mean], [centred], name=centred))
        node.input[:] = [scaled, shift]


def _norm(graph: Graph, node: NodeProto) -> tuple[str, str, str, str] | None:
    """x, its mean, the factor and the shift of what a node adds up, if it is such a sum."""
    for product, rest in (node.input, reversed(node.input)):
        for x, factor in _factors(graph, product):
            for mean, shift in _negative_products(graph, rest, factor):
                maker = graph.producer.get(mean)
                if maker is not None and maker.op_type == "ReduceMean" and maker.input[0] == x:
                    return (x, mean, factor, shift) if _is_of_vectors(graph, x) else None
    return None


def _factors(graph: Graph, tensor: str) -> list[tuple[str, str]]:
    """Both ways to read a product: (this, its factor)."""
    node = graph.producer.get(tensor)
    if node is None or node.op_type != "Mul":
        return []
    a, b = node.input
    return [(a, b), (b, a)]


def _negative_products(graph: Graph, tensor: str, factor: str) -> list[tuple[str, str]]:
    """`m` and `b` where a tensor is b - m · factor, or b + (-m) · factor."""
    node = graph.producer.get(tensor)
    if node is None or node.op_type not in ("Add", "Sub"):
        return []
    a, b = node.input
    if node.op_type == "Sub":
        return [(m, a) for m, f in _factors(graph, b) if f == factor]
    found = []
    for product, shift in ((a, b), (b, a)):
        for negative, f in _factors(graph, product):
            maker = graph.producer.get(negative)
            if f == factor and maker is not None and maker.op_type == "Neg":
                found.append((maker.input[0], shift))
    return found


def _is_of_vectors(graph: Graph, tensor: str) -> bool:
    shape = graph.shape(tensor)
    return shape is not None and len(shape) > 1 and sum(d != 1 for d in shape[1:]) <= 1
