"""Relaxing what an export at one size baked into a graph: reshape targets, class tokens, pooling windows.

Which dimension of a tensor belongs to the batch or to the picture's size is found by inferring all shapes twice,
once at the exported size and once at another: what changed is free. A reshape's target is then written in terms
of the dimensions it reads, in topological order, because what lies behind it depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from infercam.export.graph.index import Graph, attributes, fresh_name, infer

_BATCH_FACTOR = 7  # a prime that no channel count or size is scaled by
Concrete = tuple[int, ...]


@dataclass(frozen=True)
class Dims:
    """Batch, height and width of the picture input."""

    n: int
    h: int
    w: int


@dataclass(frozen=True)
class Free:
    """Which dimensions of the picture are meant: the batch, and height with width."""

    batch: bool
    size: bool


def free_input(model: ModelProto, picture: str, dims: Dims, *, batch: bool, size: bool) -> None:
    """Declare the input's and outputs' dimensions: symbols where free, else numbers. In place."""
    shape = ["N" if batch else dims.n, 3, "H" if size else dims.h, "W" if size else dims.w]
    _declare_input(model, picture, shape)
    for output in model.graph.output:
        dim = output.type.tensor_type.shape.dim
        dim[0].Clear()
        if batch:
            dim[0].dim_param = "N"
        else:
            dim[0].dim_value = dims.n
    del model.graph.value_info[:]


def relax(model: ModelProto, picture: str, dims: Dims, *, baked: Free, free: Free) -> None:
    """Rewrite, in place, the nodes that bake the `baked` dimensions of `dims`.

    `free` are all dimensions that are to be free, including those that always were: a reshape that is rewritten
    must follow these too, one that only reads these is left alone. What cannot be relaxed is left as it is;
    running the graph then shows it.
    """
    if not (baked.batch or baked.size):
        return
    nominal = _concrete_shapes(model, picture, dims)
    if baked.size:
        _globalise_pools(model, nominal)
    _scale_resizes(model, nominal, baked.size)
    done: set[str] = set()
    for _ in range(len(model.graph.node)):
        probed = _concrete_shapes(model, picture, _other(dims, free.batch, free.size))
        if _fix_numbers(model, nominal, probed):
            nominal = _concrete_shapes(model, picture, dims)
            continue
        narrow = probed
        if free != baked:
            narrow = _concrete_shapes(model, picture, _other(dims, baked.batch, baked.size))
        for node in model.graph.node:
            if not node.output or node.output[0] in done:
                continue
            if all(narrow.get(i) == nominal.get(i) for i in node.input):
                continue  # reads nothing that was baked
            if _relax_node(model, node, nominal, probed):
                done.add(node.output[0])
                break  # what follows is inferred anew
        else:
            return


def _other(dims: Dims, batch: bool, size: bool) -> Dims:
    """Other values for the free dimensions, each scaled by a factor of its own."""
    return Dims(
        dims.n * _BATCH_FACTOR if batch else dims.n,
        dims.h * 2 if size else dims.h,
        dims.w * 3 if size else dims.w,
    )


def baking_node(model: ModelProto, picture: str, dims: Dims, *, batch: bool, size: bool) -> NodeProto | None:
    """The first node whose input follows the free dimensions but whose output does not, if shapes tell."""
    nominal = _concrete_shapes(model, picture, dims)
    probed = _concrete_shapes(model, picture, _other(dims, batch, size))
    for node in model.graph.node:
        out = node.output[0]
        follows = any(i in probed and i in nominal and probed[i] != nominal[i] for i in node.input)
        pools = node.op_type in ("GlobalAveragePool", "Shape", "Size") or node.op_type.startswith("Reduce")
        if (
            follows
            and not pools
            and len(nominal.get(out, ())) > 1
            and probed.get(out) in (None, nominal[out])
        ):
            return node
    return None


def _declare_input(model: ModelProto, picture: str, shape: Sequence[int | str]) -> None:
    info = next(i for i in model.graph.input if i.name == picture)
    info.CopyFrom(helper.make_tensor_value_info(picture, info.type.tensor_type.elem_type, shape))


def _concrete_shapes(model: ModelProto, picture: str, dims: Dims) -> dict[str, Concrete]:
    """Every shape that inference knows completely when the input has these sizes."""
    trial = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    trial.graph.CopyFrom(model.graph)
    _declare_input(trial, picture, [dims.n, 3, dims.h, dims.w])
    found = infer(trial)
    known: dict[str, Concrete] = {}
    for name, (_, shape) in found.items():
        numbers = tuple(d for d in shape or () if isinstance(d, int))
        if shape is not None and len(numbers) == len(shape):
            known[name] = numbers
    return known


def _relax_node(
    model: ModelProto, node: NodeProto, nominal: dict[str, Concrete], probed: dict[str, Concrete]
) -> bool:
    if node.op_type == "Reshape":
        return _relax_reshape(model, node, nominal, probed)
    if node.op_type == "Concat":
        return _relax_concat(model, node, nominal, probed)
    return False


def _fix_numbers(model: ModelProto, nominal: dict[str, Concrete], probed: dict[str, Concrete]) -> bool:
    """Make constants of bounds that follow from channels alone; True if there were any.

    PyTorch writes `x.chunk(2, 1)` as a Slice up to (channels + 1) / 2, computed from x's shape, and `expand(1, -1,
    -1)` with a target that is chosen by Where; ONNX's inference does neither, and would know no shape behind it.
    """
    graph = Graph(model)
    changed = False
    for node in list(model.graph.node):
        shape = graph.producer.get(node.input[0]) if node.op_type == "Gather" else None
        index = graph.constant(node.input[1]) if shape is not None and shape.op_type == "Shape" else None
        if shape is None or index is None or shape.attribute or shape.input[0] not in nominal:
            continue
        sizes = [np.array(known.get(shape.input[0], ()), np.int64) for known in (nominal, probed)]
        inside = index.size > 0 and bool(np.all(np.abs(index) < len(sizes[0])))
        if inside and len(sizes[0]) == len(sizes[1]) and np.array_equal(sizes[0][index], sizes[1][index]):
            model.graph.initializer.append(
                numpy_helper.from_array(np.asarray(sizes[0][index]), node.output[0])
            )
            model.graph.node.remove(node)
            changed = True
    if changed:
        graph = Graph(model)
    for node in model.graph.node:
        for i, name in enumerate(node.input if node.op_type in ("Slice", "Expand", "Reshape") else ()):
            value = graph.constant(name) if i and name and name not in graph.initializers else None
            if value is not None and graph.producer[name].op_type != "Constant":
                node.input[i] = _constant(model, value, f"{node.output[0]}.bound")
                changed = True
    return changed


# --- Reshape ---------------------------------------------------------------------------------------------


def _relax_reshape(
    model: ModelProto, node: NodeProto, nominal: dict[str, Concrete], probed: dict[str, Concrete]
) -> bool:
    """Write a constant target in terms of the input's dimensions; True if the node was changed."""
    source, out = node.input[0], node.output[0]
    before, free, after = nominal.get(source), probed.get(source), nominal.get(out)
    if before is None or free is None or after is None or before == free:
        return False
    merged = _merged_sequence(Graph(model), source, nominal, probed)
    if merged is not None and after == (*nominal[merged][:2], *before[1:]):
        node.input[1] = _like_first_two(model, out, merged, after[2:])
        return True
    target = Graph(model).constant(node.input[1])
    if target is None:
        return False
    wanted = free_target(before, free, after, [int(t) for t in target])
    if wanted is None:
        return False
    sizes = [_size(piece, free) for piece in wanted]
    if _resolved(target, free) == sizes:
        return False  # its own 0 and -1 say the same already
    node.input[1] = _target_tensor(model, source, out, wanted)
    kept = [a for a in node.attribute if a.name != "allowzero"]  # our zeros mean: copy the dimension
    del node.attribute[:]
    node.attribute.extend(kept)
    return True


def _merged_sequence(
    graph: Graph, tensor: str, nominal: dict[str, Concrete], probed: dict[str, Concrete]
) -> str | None:
    """What a linear layer flattened: a sequence (L, N, D), or (L, N, heads, d), of which `tensor` (L·N, D') was made,
    as PyTorch's MultiheadAttention does; by the sizes alone nobody could split it again, where both are free."""
    while (node := graph.producer.get(tensor)) is not None and node.op_type in ("Gemm", "MatMul", "Add"):
        tensor = next((i for i in node.input if graph.constant(i) is None), "")
    if node is None or node.op_type != "Reshape":
        return None
    source = node.input[0]
    for shapes in (nominal, probed):
        before, after = shapes.get(source, ()), shapes.get(tensor, ())
        if len(before) not in (3, 4) or len(after) != 2 or before[0] * before[1] != after[0]:
            return None
    return source if nominal[source][0] != 1 == nominal[source][1] else None


def _like_first_two(model: ModelProto, out: str, like: str, rest: Concrete) -> str:
    """A reshape's target: the first two dimensions of `like`, then numbers."""
    names = [f"{out}.target.{k}" for k in range(3)]
    first = _constant(model, np.array([0, 1], np.int64), f"{out}.target.const")
    more = _constant(model, np.array(rest, np.int64), f"{out}.target.const")
    nodes = [
        helper.make_node("Shape", [like], [names[0]]),
        helper.make_node("Gather", [names[0], first], [names[1]], axis=0),
        helper.make_node("Concat", [names[1], more], [names[2]], axis=0),
    ]
    position = next(k for k, n in enumerate(model.graph.node) if out in n.output)
    for n in reversed(nodes):
        n.name = f"infercam/{n.output[0]}"
        model.graph.node.insert(position, n)
    return names[2]


@dataclass(frozen=True)
class Piece:
    """One target dimension: the product of the input's dimensions `of`, times `times`, over `over`."""

    of: tuple[int, ...] = ()
    times: int = 1
    over: int = 1


def free_target(
    before: Concrete, free: Concrete, after: Concrete, written: Sequence[int] = ()
) -> list[Piece] | None:
    """A reshape's target in terms of its input's dimensions.

    `before` and `free` are the input's shape at two sizes, `after` the target at the first, `written` the
    target as the graph has it (-1 and 0 not filled in). Dimensions
    are paired off in order into groups of equal products; a group without a free dimension keeps its numbers.
    None where the target is not determined (a free size split into several dimensions).
    """
    pieces: list[Piece] = []
    groups = _merge_outwards(_groups(before, after), before, free, written)
    for ins, outs in groups:
        changed = [i for i in ins if before[i] != free[i]]
        if not changed:
            pieces += [Piece(times=after[o]) for o in outs]
        elif len(outs) == 1:
            pieces.append(Piece(of=tuple(ins)))
        elif len(outs) > 1 and changed == [ins[0]] and free[ins[0]] == before[ins[0]] * _BATCH_FACTOR:
            # a batch is the slowest dimension: whatever is split off, its factor stays in the first part
            first, size = after[outs[0]], before[ins[0]]
            if first * prod(after[o] for o in outs[1:]) != prod(before[i] for i in ins):
                return None
            pieces.append(Piece(of=(ins[0],), times=first, over=size))
            pieces += [Piece(times=after[o]) for o in outs[1:]]
        else:
            return None
    return pieces


def _groups(before: Concrete, after: Concrete) -> list[tuple[list[int], list[int]]]:
    """Pair the dimensions of two shapes of equal size into the smallest groups of equal products."""
    groups = []
    i = j = 0
    while i < len(before) and j < len(after):
        ins, outs = [i], [j]
        p, q = before[i], after[j]
        i, j = i + 1, j + 1
        while p != q:
            if p < q and i < len(before):
                p, ins, i = p * before[i], [*ins, i], i + 1
            elif j < len(after):
                q, outs, j = q * after[j], [*outs, j], j + 1
            else:
                break
        groups.append((ins, outs))
    if i < len(before):  # trailing ones
        groups.append((list(range(i, len(before))), []))
    if j < len(after):
        groups.append(([], list(range(j, len(after)))))
    return [(a, b) for a, b in groups if a or b]


def _merge_outwards(
    groups: list[tuple[list[int], list[int]]], before: Concrete, free: Concrete, written: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """A free dimension of 1 between two others (L, N, E) -> (L, E) joins the slower one: (L*N, E).

    By the numbers it could belong to either; this is how a linear layer flattens a sequence.
    """
    for k in range(1, len(groups)):
        (ins, outs), (slower, to) = groups[k], groups[k - 1]
        first = ins[0] if ins else -1
        loose = len(ins) > 1 and len(outs) == 1 == len(to) and before[first] == 1 != free[first]
        if loose and not (len(written) > outs[0] and written[outs[0]] == -1):
            groups[k - 1], groups[k] = ([*slower, first], to), (ins[1:], outs)
    return groups


def _size(piece: Piece, shape: Concrete) -> int:
    return prod(shape[i] for i in piece.of) * piece.times // piece.over


def _resolved(target: np.ndarray, shape: Concrete) -> list[int]:
    """A reshape's constant target with its 0 and -1 filled in for an input of this shape."""
    sizes = [shape[i] if t == 0 and i < len(shape) else int(t) for i, t in enumerate(target)]
    known = prod(s for s in sizes if s != -1)
    return [prod(shape) // known if s == -1 and known else s for s in sizes]


def _target_tensor(model: ModelProto, source: str, out: str, pieces: Sequence[Piece]) -> str:
    """A constant with 0 (copy) and one -1 where that suffices, else computed from the input's shape."""
    simple: list[int] = []
    for i, p in enumerate(pieces):
        if not p.of:
            simple.append(p.times)
        elif p == Piece(of=(i,)):
            simple.append(0)
        else:
            simple.append(-1)
    if simple.count(-1) <= 1:
        return _constant(model, np.array(simple, np.int64), f"{out}.target")
    return _computed_target(model, source, out, pieces)


def _computed_target(model: ModelProto, source: str, out: str, pieces: Sequence[Piece]) -> str:
    nodes: list[NodeProto] = []

    def add(op: str, inputs: list[str], **at: Any) -> str:
        name = f"{out}.target.{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name=f"infercam/{name}", **at))
        return name

    def number(value: int) -> str:
        return _constant(model, np.array([value], np.int64), f"{out}.target.const")

    shape = add("Shape", [source])
    parts: list[str] = []
    divided = [p for p in pieces if p.over != 1]
    for p in pieces:
        if divided == [p]:  # what is left over: ONNX's inference does not divide
            parts.append(number(-1))
            continue
        part = number(p.times) if not p.of or p.times != 1 else ""
        for i in p.of:
            dim = add("Gather", [shape, number(i)], axis=0)
            part = add("Mul", [part, dim]) if part else dim
        parts.append(add("Div", [part, number(p.over)]) if p.over != 1 else part)
    target = add("Concat", parts, axis=0)
    position = next(k for k, n in enumerate(model.graph.node) if out in n.output)
    for n in reversed(nodes):
        model.graph.node.insert(position, n)
    return target


def _constant(model: ModelProto, value: np.ndarray, base: str) -> str:
    name = fresh_name(model, base)
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


# --- other nodes that bake a size --------------------------------------------------------------------------


def _relax_concat(
    model: ModelProto, node: NodeProto, nominal: dict[str, Concrete], probed: dict[str, Concrete]
) -> bool:
    """A class token of batch 1, put before patches of any batch, is repeated for each picture."""
    axis = int(attributes(node).get("axis", 0))
    batches = [probed.get(i, (0,))[0] for i in node.input]
    free = [
        i
        for i, b in zip(node.input, batches, strict=True)
        if b == _BATCH_FACTOR and nominal.get(i, (0,))[0] == 1
    ]
    if axis == 0 or not free:
        return False
    graph = Graph(model)
    values = [graph.constant(i) for i in node.input]
    baked = [k for k, v in enumerate(values) if v is not None and v.ndim > 1 and v.shape[0] == 1]
    if not baked:
        return False
    position = next(k for k, n in enumerate(model.graph.node) if n.output[:1] == node.output[:1])
    for k, v in enumerate(values):
        if v is None or k not in baked:
            continue
        rank = v.ndim
        name = fresh_name(model, f"{node.input[k]}.repeated")
        first = _constant(model, np.array([0], np.int64), f"{name}.axis")
        ones = _constant(model, np.ones(rank - 1, np.int64), f"{name}.ones")
        new = [
            helper.make_node("Shape", [free[0]], [f"{name}.shape"]),
            helper.make_node("Gather", [f"{name}.shape", first], [f"{name}.batch"], axis=0),
            helper.make_node("Concat", [f"{name}.batch", ones], [f"{name}.size"], axis=0),
            helper.make_node("Expand", [node.input[k], f"{name}.size"], [name]),
        ]
        node.input[k] = name
        for n in reversed(new):
            n.name = f"infercam/{n.output[0]}"
            model.graph.node.insert(position, n)
    return True


def _globalise_pools(model: ModelProto, nominal: dict[str, Concrete]) -> None:
    """AveragePool over the whole map (squeeze-and-excitation at a fixed size) becomes GlobalAveragePool."""
    for node in model.graph.node:
        shape = nominal.get(node.input[0]) if node.op_type == "AveragePool" else None
        at = attributes(node) if shape else {}
        if shape and tuple(at["kernel_shape"]) == shape[2:] and not any(at.get("pads", [])):
            node.op_type = "GlobalAveragePool"
            del node.attribute[:]


def _scale_resizes(model: ModelProto, nominal: dict[str, Concrete], size: bool) -> None:
    """Resize to a baked size becomes Resize by the same factor (a whole one, if the size is to be free)."""
    for node in list(model.graph.node):
        if node.op_type != "Resize" or len(node.input) < 4 or not node.input[3]:
            continue
        before, after = nominal.get(node.input[0]), nominal.get(node.output[0])
        target = Graph(model).constant(node.input[3])
        if before is None or after is None or target is None or len(target) != len(before):
            continue
        factors = np.array([a / b for a, b in zip(after, before, strict=True)], np.float32)
        whole = all(a % b == 0 for a, b in zip(after, before, strict=True))
        same = [int(b * f) for b, f in zip(before, factors, strict=True)] == list(after)
        if not same or (size and not whole):
            continue
        scales = _constant(model, factors, f"{node.output[0]}.scales")
        roi = node.input[1]
        del node.input[1:]
        node.input.extend([roi, scales])
