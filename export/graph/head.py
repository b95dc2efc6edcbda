"""Finding a classifier's head: global average pooling and everything affine between it and the logits.

The walk goes backward from an output, along every branch, to the poolings. What is affine between (rules.py says what
may be) is composed, in float64, into one matrix and one bias, so that `logits = weight @ mean(features) + bias`
(engine/method/README.md §1). Several poolings make one vector. Norms, activations and gates on the way are stages
(freeze.py): there the logits are affine in what the last stage makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import NodeProto

from infercam.engine.common.errors import ExportError
from infercam.export.graph.class_token import class_token
from infercam.export.graph.explain import LINEAR_OPS, explain, flattens_a_map, no_pooling
from infercam.export.graph.freeze import Freezer, Opaque
from infercam.export.graph.index import Graph, attributes, is_no_function, label
from infercam.export.graph.linear import Linear, Unfit, pooled
from infercam.export.graph.observe import Observed, Seen
from infercam.export.graph.pooling import POOLS, Layout, Pooling, channel_axis, pooling
from infercam.export.graph.rules import JOINING, RULES, Call
from infercam.export.graph.stages import FrozenStage

ACTIVATIONS = {"Sigmoid": "sigmoid", "Softmax": "softmax", "LogSoftmax": "softmax"}
_SHAPE_OPS = {"Identity", "Dropout", "Flatten", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Cast"}
_EQUAL = 1e-6


@dataclass
class Head:
    """What `find_head` found. `weight` is None where nothing lies between the one pooling and the logits."""

    logits: str
    poolings: list[Pooling]
    weight: np.ndarray | None
    bias: np.ndarray
    activation: str | None
    notes: list[str] = field(default_factory=list)
    stages: list[FrozenStage] = field(default_factory=list)
    """What is frozen, from the pooling on; `weight` and `bias` then take what the last one makes."""
    leaves: list[Leaf] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)
    """What makes the logits of what the poolings make, in order."""

    @property
    def is_exact(self) -> bool:
        """Whether the logits are made of means over positions alone: mean(response) + bias = scores then."""
        return all(p.token is None for p in self.poolings)


@dataclass(frozen=True)
class Leaf:
    """A tensor that a pooling node makes: which of the head's poolings it is, and its shape for one picture."""

    node: NodeProto
    pooling: int
    shape: tuple[int, ...]
    tensor: str


@dataclass
class _Tail:
    """What lies between the poolings and the logits: nodes in order, and the tensors that the poolings make."""

    nodes: list[NodeProto] = field(default_factory=list)
    poolings: dict[str, Pooling] = field(default_factory=dict)
    paths: dict[str, list[NodeProto]] = field(default_factory=dict)
    """From the logits to each node (by its first output), for messages."""


def find_head(graph: Graph, output: str) -> Head:
    """The head that makes `output`; raises ExportError naming the node that prevents it."""
    logits, activation = strip_activation(graph, output)
    tail = _tail(graph, logits)
    found, stages, run = _composed(graph, tail, logits)
    poolings = list({(p.features, p.layout): p for p in tail.poolings.values()}.values())
    plain = found.is_identity and len(poolings) == 1 and not stages
    weight = None if plain else found.dense()
    notes = [n for p in poolings for n in p.notes]
    takes_tokens = any(p.token is not None for p in poolings)
    leaves = _leaf_shapes(graph, tail, poolings, run) if stages or takes_tokens else []
    if stages and not takes_tokens:
        names = ", ".join(dict.fromkeys(label(s.node) for s in stages))
        notes.append(f"the head is not linear: the factors of {names} are each image's own")
    return Head(
        logits, poolings, weight, found.shift.ravel().copy(), activation, notes, stages, leaves, tail.nodes
    )


def strip_activation(graph: Graph, output: str) -> tuple[str, str | None]:
    """Tensor before a closing sigmoid or softmax (seen through reshapes), and which of them it was."""
    tensor: str = output
    while (node := graph.producer.get(tensor)) is not None:
        if node.op_type in ACTIVATIONS:
            return node.input[0], ACTIVATIONS[node.op_type]
        if node.op_type not in _SHAPE_OPS:
            break
        tensor = node.input[0]
    return output, None


# --- the walk --------------------------------------------------------------------------------------------


def _tail(graph: Graph, logits: str) -> _Tail:
    """Every node between the logits and the poolings; raises ExportError about the first that may not be there."""
    tail = _Tail()
    path: list[tuple[NodeProto, Iterator[str]]] = []
    done: set[str] = set()
    tensor: str | None = logits
    while tensor is not None or path:
        if tensor is None:
            node, rest = path[-1]
            tensor = next((i for i in rest if i not in done), None)
            if tensor is None:
                path.pop()
                tail.nodes.append(node)
                done.update(node.output)
            continue
        nodes = [n for n, _ in path]
        before = _step(graph, tensor, nodes, tail)
        if before is None:
            done.add(tensor)
        else:
            tail.paths[before.output[0]] = [*nodes, before]
            path.append((before, iter(_of_the_picture(graph, before))))
        tensor = None
    return tail


def _step(graph: Graph, tensor: str, path: list[NodeProto], tail: _Tail) -> NodeProto | None:
    """The node that makes `tensor`, to be walked through; None where it is a pooling, or takes a class token: these
    are put in `tail`."""
    node = graph.producer.get(tensor)
    if node is None:
        flattened = next((n for n in reversed(path) if flattens_a_map(graph, n)), None)
        linear = next((n for n in reversed(path) if n.op_type in ("Gemm", "MatMul", "Conv")), None)
        raise ExportError(no_pooling(flattened, linear, f"reached the input '{tensor}'"))
    if any(n is node for n in path):
        raise ExportError(f"{label(node)}: the graph has a cycle")
    if node.op_type in POOLS and not _follows_a_pooling(graph, node):
        found = _pooling(graph, node, path)
        if found is not None:
            tail.poolings[tensor] = found
            return None
    token = class_token(graph, node, tensor)
    if token is not None and not _follows_a_pooling(graph, node):
        tail.poolings[tensor] = token
        return None
    why = _why_not(graph, node)
    if why is not None and not (any(n.op_type in LINEAR_OPS for n in path) and _is_of_vectors(graph, node)):
        raise ExportError(explain(graph, node, why, path))
    return node


def _pooling(graph: Graph, node: NodeProto, path: list[NodeProto]) -> Pooling | None:
    """As `pooling`; of windows of one position, which do nothing, the message blames the flatten (VGG's) if any."""
    try:
        return pooling(graph, node)
    except ExportError:
        flattened = next((n for n in reversed(path) if flattens_a_map(graph, n)), None)
        if flattened is None or set(attributes(node).get("kernel_shape", ())) != {1}:
            raise
        raise ExportError(no_pooling(flattened, None, "")) from None


def _is_of_vectors(graph: Graph, node: NodeProto) -> bool:
    """Whether a node reads and makes one vector an image, no map: what it does may be frozen."""
    if is_no_function(node):
        return False
    return all(_is_vector(graph, t) for t in [*_of_the_picture(graph, node), *node.output[:1]])


def _is_vector(graph: Graph, tensor: str) -> bool:
    """Of rank 2, or with one axis but the batch's that is larger than 1; runs tell what inference does not."""
    shape = graph.shape(tensor)
    if shape is None or len(shape) < 2:
        return False
    if len(shape) == 2 or sum(d != 1 for d in shape[1:]) <= 1:
        return True
    if sum(isinstance(d, int) and d != 1 for d in shape[1:]) > 1:
        return False
    runs = graph.observed([tensor]).runs
    return bool(runs) and all(sum(d != 1 for d in r.shapes[tensor][1:]) <= 1 for r in runs)


def _why_not(graph: Graph, node: NodeProto) -> str | None:
    """Why a node is not linear in the pooled vector, as far as its inputs tell."""
    if node.op_type not in RULES:
        return "is not linear"
    count = len(_of_the_picture(graph, node))
    if node.op_type == "Div" and node.input[-1] in _of_the_picture(graph, node):
        return "divides by a tensor that depends on the picture"
    if count > 1 and node.op_type not in JOINING:
        return "joins two tensors that both depend on the picture"
    return None


def _of_the_picture(graph: Graph, node: NodeProto) -> list[str]:
    """The inputs of a node that depend on the picture's pixels."""
    inputs = (i for i in node.input if i)
    return [i for i in inputs if graph.constant(i) is None and not graph.follows_sizes(i)]


def _follows_a_pooling(graph: Graph, node: NodeProto) -> bool:
    """Whether all that a reduction reads is made of pooled vectors or class tokens: then it averages no positions."""
    waiting, seen = [node.input[0]], set[str]()
    while waiting:
        tensor = waiting.pop()
        before = graph.producer.get(tensor)
        if before is None:
            return False
        if tensor in seen or _pools_everything(graph, before) or class_token(graph, before, tensor):
            continue
        seen.add(tensor)
        if _why_not(graph, before) is not None and not _is_of_vectors(graph, before):
            return False
        waiting += _of_the_picture(graph, before)
    return True


def _pools_everything(graph: Graph, node: NodeProto) -> bool:
    try:
        found = pooling(graph, node) if node.op_type in POOLS else None
    except ExportError:
        return False
    return found is not None and found.window is None


# --- composing -------------------------------------------------------------------------------------------


_Composed = tuple[Linear, list[FrozenStage], Seen | None]


def _composed(graph: Graph, tail: _Tail, logits: str) -> _Composed:
    """The logits as a function of the pooled vector, or of what the last of the stages makes, and the run whose sizes
    were taken; raises ExportError naming the node that is not affine and cannot be frozen."""
    inputs = {i for n in tail.nodes for i in n.input if i}
    asked = [i for i in sorted(inputs) if graph.constant(i) is None and graph.follows_sizes(i)]
    shapes = [t for t, p in tail.poolings.items()] + [p.features for p in tail.poolings.values()]
    static = all(_all_known(graph, t, p) for t, p in tail.poolings.items())
    runs: Sequence[Seen | None] = [None]
    if asked or not static or len({p.features for p in tail.poolings.values()}) > 1:
        seen = graph.observed(sorted(set(shapes)), asked)
        _check_runs(tail, asked, static, seen)
        _check_equal_maps(tail, seen.runs)
        runs = [r for r in seen.runs if r.batch == seen.runs[0].batch] or [None]
    found = [_evaluated(graph, tail, logits, run) for run in runs]
    stages = found[0][1]
    summing = next((p.node for p in tail.poolings.values() if p.sums), None)
    if stages and summing is not None:
        raise ExportError(
            f"{label(summing)}: sums over all positions, and {label(stages[0].node)} after it is not linear; a "
            "response map then needs the mean: export the model with a global average pooling"
        )
    first, last = found[0][0], found[-1][0]
    if first is not last and any(p.sums for p in tail.poolings.values()):
        a, b = first.dense(), last.dense()
        if a.shape != b.shape or not np.allclose(a, b, rtol=_EQUAL, atol=_EQUAL * float(np.abs(a).max())):
            sums = next(p.node for p in tail.poolings.values() if p.sums)
            raise ExportError(
                f"{label(sums)}: sums over all positions of a map of any size and is not divided by their number; "
                "a response map needs the mean: export the model with a global average pooling"
            )
    return first, stages, runs[0]


def _check_runs(tail: _Tail, asked: Sequence[str], static: bool, seen: Observed) -> None:
    """Refuse a model that does not run where inference alone does not tell what the head needs."""
    if seen.runs or (static and not asked):
        return
    unknown = (
        f"'{asked[0]}'" if asked else f"the channels of {label(next(iter(tail.poolings.values())).node)}"
    )
    raise ExportError(
        f"{unknown} can be told by running the model only, and it does not run: {seen.failure}; export the model "
        "with fixed sizes"
    )


def _all_known(graph: Graph, tensor: str, found: Pooling) -> bool:
    """Whether inference tells what a pooling's values are: how many, of how many positions if it sums, along which
    axis."""
    channels, shape = channel_count(graph, found), graph.shape(tensor)
    if channels is None or (found.sums and _positions(graph, found, None) is None):
        return False
    return shape is None or len(shape) < 3 or prod(d for d in shape[1:] if isinstance(d, int)) == channels


def channel_count(graph: Graph, found: Pooling) -> int | None:
    """Number of channels of the pooled tensor, where shape inference knows it."""
    shape = graph.shape(found.features)
    axis = channel_axis(found.layout)
    size = shape[axis] if shape is not None and len(shape) > axis else None
    return size if isinstance(size, int) else None


def _check_equal_maps(tail: _Tail, seen: Sequence[Seen]) -> None:
    """Several poolings must be of maps of one size: their responses are put in one map."""
    several = list({p.features: p for p in tail.poolings.values()}.values())
    for run in seen if len(several) > 1 else ():
        sizes = [_spatial(run.shapes[p.features], p.layout) for p in several]
        counts = {prod(size) - p.extra for size, p in zip(sizes, several, strict=True)}
        if len(set(sizes)) > 1 and (len(counts) > 1 or all(p.token is None for p in several)):
            texts = [
                f"{'x'.join(map(str, s))} of {label(p.node)}" for s, p in zip(sizes, several, strict=True)
            ]
            raise ExportError(
                f"the head joins means over maps of different sizes ({', '.join(texts)}); a response map has one "
                "size: give a model that pools one map, or maps of one size"
            )


def _spatial(shape: Sequence[int], layout: Layout) -> tuple[int, ...]:
    return tuple(d for a, d in enumerate(shape) if a not in (0, channel_axis(layout)))


_Value = Linear | Opaque | np.ndarray


def _evaluated(graph: Graph, tail: _Tail, logits: str, run: Seen | None) -> tuple[Linear, list[FrozenStage]]:
    """The logits for one picture, of the size of that run where sizes matter, and the stages on the way."""
    plain = Freezer(graph, centring=False)
    found = _logits(graph, tail, logits, run, plain)
    if not found.basis:  # a head that only subtracts means is linear and stays so
        return found, []
    freezer = Freezer(graph, centring=True)
    found = _logits(graph, tail, logits, run, freezer)
    return found, freezer.chain(found)


def _logits(graph: Graph, tail: _Tail, logits: str, run: Seen | None, freezer: Freezer) -> Linear:
    found = _values(graph, tail, run, freezer)[logits]
    if isinstance(found, Opaque):
        raise ExportError(explain(graph, found.node, found.why, tail.paths[found.node.output[0]][:-1]))
    assert isinstance(found, Linear)
    return found


def _values(graph: Graph, tail: _Tail, run: Seen | None, freezer: Freezer) -> dict[str, _Value]:
    """Every tensor of the head."""
    values: dict[str, _Value] = dict(_leaves(graph, tail, run))
    batch = _declared_batch(graph)
    for node in tail.nodes:
        given = [_input(graph, i, values, run) for i in node.input]
        inputs = [None if isinstance(x, Opaque) else x for x in given]
        call = Call(node.op_type, attributes(node), inputs, len(node.output), batch)
        try:
            made = freezer.applied(node, call, [x for x in given if isinstance(x, Opaque)])
        except ValueError as e:
            why = str(e) if isinstance(e, Unfit) else "its shapes do not go with what it reads"
            raise ExportError(_misfit(graph, tail, node, why)) from None
        values.update(zip(node.output, made, strict=False))
    return values


def _input(graph: Graph, name: str, values: dict[str, _Value], run: Seen | None) -> _Value | None:
    if not name:
        return None
    if name in values:
        return values[name]
    value = graph.constant(name)
    if value is None and run is not None:
        value = run.values.get(name)
    return value


def _leaf_shapes(graph: Graph, tail: _Tail, poolings: Sequence[Pooling], run: Seen | None) -> list[Leaf]:
    """The poolings' own tensors, which the stages' gates are made of."""
    numbers = {(p.features, p.layout): i for i, p in enumerate(poolings)}
    return [
        Leaf(p.node, numbers[p.features, p.layout], _pooled_shape(graph, t, _channels(graph, p, run), run), t)
        for t, p in tail.poolings.items()
    ]


def _leaves(graph: Graph, tail: _Tail, run: Seen | None) -> Iterator[tuple[str, Linear]]:
    """What the poolings make: the pooled values of each map, one after the other in one vector."""
    starts: dict[tuple[str, Layout], int] = {}
    counts: dict[str, int] = {}
    width = 0
    for tensor, p in tail.poolings.items():
        counts[tensor] = _channels(graph, p, run)
        if (p.features, p.layout) not in starts:
            starts[p.features, p.layout] = width
            width += counts[tensor]
    for tensor, p in tail.poolings.items():
        shape = _pooled_shape(graph, tensor, counts[tensor], run)
        factor = float(_positions(graph, p, run) or 0) if p.sums else 1.0
        if factor == 0:
            raise ExportError(f"{label(p.node)}: cannot tell how many positions it sums over")
        yield tensor, pooled(width, starts[p.features, p.layout], shape, factor)


def _channels(graph: Graph, p: Pooling, run: Seen | None) -> int:
    known = channel_count(graph, p)
    if known is None and run is not None:
        known = run.shapes[p.features][channel_axis(p.layout)]
    if known is None:
        raise ExportError(f"{label(p.node)}: cannot tell how many channels it pools")
    return known


def _positions(graph: Graph, p: Pooling, run: Seen | None) -> int | None:
    """How many positions a pooling covers, where that is fixed or seen in a run."""
    if run is not None:
        return prod(_spatial(run.shapes[p.features], p.layout))
    shape = graph.shape(p.features)
    sizes = [d for a, d in enumerate(shape or ()) if a not in (0, channel_axis(p.layout))]
    return (
        prod(d for d in sizes if isinstance(d, int))
        if sizes and all(isinstance(d, int) for d in sizes)
        else None
    )


def _pooled_shape(graph: Graph, tensor: str, channels: int, run: Seen | None) -> tuple[int, ...]:
    """The shape of what a pooling makes, for one picture."""
    known = run.shapes[tensor] if run is not None else graph.shape(tensor)
    sizes = [d if isinstance(d, int) else 1 for d in known or ()]
    shape = (1, *sizes[1:])
    return shape if prod(shape) == channels else (1, channels)


def _declared_batch(graph: Graph) -> int:
    shapes = [graph.shape(i.name) for i in graph.image_inputs()]
    batches = [s[0] for s in shapes if s is not None and len(s) == 4]
    return next((b for b in batches if isinstance(b, int) and b > 0), 1)


def _misfit(graph: Graph, tail: _Tail, node: NodeProto, why: str) -> str:
    """A matrix that takes another number of values than are pooled: mostly the pooling is not global."""
    poolings = list(tail.poolings.values())
    counts = " and ".join(f"{channel_count(graph, p) or 'some'} by {label(p.node)}" for p in poolings)
    return (
        f"{label(node)}: its constant does not fit the head ({why}; channels pooled: {counts}); "
        "it does not pool to one value per channel, and a classifier that flattens its last map has no response map"
    )
