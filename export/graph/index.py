"""An index over an ONNX graph: who makes a tensor, what is constant, which shapes are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator

from infercam.export.graph.observe import Observed, observe
from infercam.export.runtime import values_of, weight_bytes, weights_folder, with_weights

Dim = int | str | None
Shape = tuple[Dim, ...]

# Weights above this are left out of the copy that shape inference serialises (protobuf stops at 2 GB).
_SKELETON_BYTES = 1 << 16


def label(node: NodeProto) -> str:
    """How messages name a node: its name, or what it makes where it has none, and its operator."""
    return f"node '{node.name or ''.join(node.output[:1])}' ({node.op_type})"


def attributes(node: NodeProto) -> dict[str, Any]:
    """The node's attributes as Python values (strings decoded)."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def opset(model: ModelProto) -> int:
    """Version of the default operator set (0 where the model imports none)."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def float_type(elem_type: int) -> str:
    """Name of an ONNX element type, for messages."""
    return TensorProto.DataType.Name(elem_type).lower() if elem_type else "unknown"


class Graph:
    """Look-ups over `model.graph`; rebuild it after changing the graph."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.proto: GraphProto = model.graph
        self.initializers: dict[str, TensorProto] = {t.name: t for t in self.proto.initializer}
        self.producer: dict[str, NodeProto] = {o: n for n in self.proto.node for o in n.output if o}
        self._types: dict[str, tuple[int, Shape | None]] | None = None
        self._constants: dict[str, np.ndarray | None] = {}
        self._observed: dict[tuple[tuple[str, ...], tuple[str, ...]], Observed] = {}

    def image_inputs(self) -> list[onnx.ValueInfoProto]:
        """Inputs that are fed: old files list their weights among the inputs as well."""
        return [i for i in self.proto.input if i.name not in self.initializers]

    def constant(self, name: str) -> np.ndarray | None:
        """Value of a tensor that does not depend on the input, else None."""
        known = self._constants
        waiting = [name]  # a list, no recursion: chains of a thousand nodes are common
        while waiting:
            tensor = waiting[-1]
            needed = [] if tensor in known else self._needed(tensor)
            unknown = next((i for i in needed if i not in known), None)
            if unknown is None or unknown in waiting:  # the latter: a cycle in a broken graph ends here
                waiting.pop()
                if tensor not in known:
                    known[tensor] = None if unknown is not None else self._evaluate(tensor, needed)
            elif any(known[i] is None for i in needed if i in known):
                known[tensor] = None
            else:
                waiting.append(unknown)
        return known[name]

    def _needed(self, name: str) -> list[str]:
        """What must be known before `name` can be evaluated."""
        node = None if name in self.initializers else self.producer.get(name)
        return [] if node is None or is_no_function(node) else [i for i in node.input if i]

    def _evaluate(self, name: str, needed: list[str]) -> np.ndarray | None:
        if name in self.initializers:
            return values_of(self.initializers[name], weights_folder(self.model))
        node = self.producer.get(name)
        if node is None or is_no_function(node):
            return None
        feeds: dict[str, np.ndarray] = {}
        for tensor in needed:
            value = self._constants[tensor]
            if value is None:
                return None
            feeds[tensor] = value
        inputs = [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in feeds.items()
        ]
        outputs = [helper.make_empty_tensor_value_info(name)]
        single = helper.make_model(
            helper.make_graph([node], "constant", inputs, outputs), opset_imports=self.model.opset_import
        )
        try:
            values: Any = ReferenceEvaluator(single).run([name], feeds)
            return np.asarray(values[0])
        except Exception:  # an operator the reference does not know: not a constant for our purpose
            return None

    def follows_sizes(self, name: str) -> bool:
        """Whether a tensor is made of the picture's shape alone (and constants), not of its pixels."""
        found, seen, waiting = False, set[str](), [name]
        while waiting:
            tensor = waiting.pop()
            if tensor in seen or self.constant(tensor) is not None:
                continue
            seen.add(tensor)
            node = self.producer.get(tensor)
            if node is None or is_no_function(node):
                return False
            if node.op_type in ("Shape", "Size"):
                found = True
            else:
                waiting.extend(i for i in node.input if i)
        return found

    def observed(self, shapes: Sequence[str] = (), values: Sequence[str] = ()) -> Observed:
        """What running the model tells about these tensors (observe.py)."""
        key = (tuple(shapes), tuple(values))
        if key not in self._observed:
            self._observed[key] = observe(self.model, *key)
        return self._observed[key]

    def shape(self, name: str) -> Shape | None:
        """Shape: sizes, symbols, or None for what is unknown; None where not even the rank is.

        What ONNX's inference leaves without a rank is looked up by running the model.
        """
        known = self._inferred().get(name, (0, None))[1]
        if known is None and name in self.producer:
            known = self._seen_shape(name)
        return known

    def _seen_shape(self, name: str) -> Shape | None:
        """What the runs have in common; without any of them, nothing."""
        inferred = self._inferred()
        unknown = [
            o for n in self.proto.node for o in n.output if o and inferred.get(o, (0, None))[1] is None
        ]
        runs = self.observed(unknown).runs or self.observed([name]).runs
        shapes = [r.shapes[name] for r in runs if name in r.shapes]
        if not shapes or len({len(s) for s in shapes}) > 1:
            return None
        return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))

    def rank(self, name: str) -> int | None:
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def elem_type(self, name: str) -> int:
        """Inferred TensorProto data type; 0 where unknown."""
        return self._inferred().get(name, (0, None))[0]

    def _inferred(self) -> dict[str, tuple[int, Shape | None]]:
        if self._types is None:
            self._types = infer(self.model)
        return self._types

    def ancestors(self, name: str) -> list[NodeProto]:
        """Nodes that `name` depends on, nearest first."""
        found: list[NodeProto] = []
        seen, front = set(), [name]
        while front:
            following: list[str] = []
            for tensor in front:
                node = self.producer.get(tensor)
                if node is not None and id(node) not in seen:
                    seen.add(id(node))
                    found.append(node)
                    following.extend(used_by(node))
            front = following
        return found


def is_no_function(node: NodeProto) -> bool:
    """Whether a node's value is not told by its inputs (random numbers), or needs its sub-graphs to be run."""
    return node.op_type.startswith("Random") or any(a.HasField("g") for a in node.attribute)


def used_by(node: NodeProto) -> set[str]:
    """Tensors a node reads, those read inside its sub-graphs (If, Loop) included."""
    names = {i for i in node.input if i}
    for a in node.attribute:
        graphs = [a.g] if a.type == AttributeProto.GRAPH else list(a.graphs)
        for g in graphs:
            names.update(o.name for o in g.output)
            for inner in g.node:
                names |= used_by(inner)
    return names


def infer(model: ModelProto) -> dict[str, tuple[int, Shape | None]]:
    """Element type and shape of every tensor that ONNX's shape inference can tell."""
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton(model), data_prop=True)
    except Exception:  # inference is a help: what it cannot tell stays unknown
        inferred = model
    found: dict[str, tuple[int, Shape | None]] = {
        t.name: (t.data_type, tuple(t.dims)) for t in model.graph.initializer
    }
    for info in [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]:
        tensor = info.type.tensor_type
        shape = tuple(map(_dim, tensor.shape.dim)) if tensor.HasField("shape") else None
        found[info.name] = (tensor.elem_type, shape)
    return found


def _dim(d: onnx.TensorShapeProto.Dimension) -> Dim:
    if d.HasField("dim_value"):
        return int(d.dim_value)
    return d.dim_param or None


def skeleton(model: ModelProto) -> ModelProto:
    """The model with its large weights turned into inputs of the same type: enough for shape inference."""
    small = [t for t in model.graph.initializer if weight_bytes(t) <= _SKELETON_BYTES]
    copy = with_weights(model, small)
    del copy.functions[:], copy.graph.value_info[:]  # what was known before, of other sizes perhaps
    g = copy.graph
    g.name = g.name or "graph"
    known = {i.name for i in g.input} | {t.name for t in small}
    for t in model.graph.initializer:
        if t.name not in known:
            g.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    for o in g.output:  # its type stays: without any the inference refuses it
        o.type.tensor_type.ClearField("shape")
    return copy


def fresh_name(model: ModelProto, base: str) -> str:
    """A tensor name that the graph does not use yet."""
    g = model.graph
    used = {i.name for i in g.input} | {t.name for t in g.initializer}
    used |= {x for n in g.node for x in (*n.input, *n.output)}
    if base not in used:
        return base
    return next(f"{base}_{i}" for i in range(1, len(used) + 2) if f"{base}_{i}" not in used)


def rename(model: ModelProto, old: str, new: str) -> None:
    """Rename a tensor everywhere at the top level and inside sub-graphs."""
    if old == new:
        return
    _rename_in(model.graph, old, new)


def _rename_in(g: GraphProto, old: str, new: str) -> None:
    for value in [*g.input, *g.output, *g.initializer]:
        if value.name == old:
            value.name = new
    for n in g.node:
        for names in (n.input, n.output):
            for i, x in enumerate(names):
                if x == old:
                    names[i] = new
        for a in n.attribute:
            for inner in [a.g] if a.type == AttributeProto.GRAPH else list(a.graphs):
                _rename_in(inner, old, new)
