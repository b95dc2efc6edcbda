"""Graph surgery: an ONNX classifier with global average pooling becomes a response graph.

The head (pooling, linear layer, whatever is affine between and after them) is cut off and its weight put
on the pooled features as a 1x1 convolution without bias, so that every position keeps its response:

    response = Conv1x1(features, weight)                     (N, C, h, w), before ReLU
    scores   = Flatten(GlobalAveragePool(response)) + bias   (N, C), the classifier's logits

`scores` is recomputed from `response`: nothing of the old head, which often bakes sizes, is left in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph.begins import Normalisation, make_float, own_normalisation
from infercam.export.graph.dynamic import SizeWishes, find_sizes
from infercam.export.graph.head import Head, find_head, float_type
from infercam.export.graph.index import Graph, attributes, fresh_name, label, opset, rename
from infercam.export.graph.observe import observe
from infercam.export.graph.passes import tidy
from infercam.export.graph.pooling import Layout, Pooling, channel_axis
from infercam.export.graph.tokens import token_grid

MIN_OPSET = 7
RESPONSE, SCORES = "response", "scores"
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")
_LINEAR = {"Conv", "Gemm", "MatMul"}
_POINTWISE = {
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Clip",
    "Elu",
    "Selu",
    "Gelu",
    "Sigmoid",
    "HardSwish",
    "HardSigmoid",
}
_POINTWISE |= {"Softplus", "Tanh", "Identity", "Dropout", "BatchNormalization", "Transpose", "Cast", "Mish"}


@dataclass(frozen=True)
class ResponseGraph:
    """A response graph in memory.

    `model` takes `input_name` float32 (N, 3, H, W) and gives `scores` float32 (N, C) and `response` float32
    (N, C, h, w), before ReLU and without the bias; mean over h, w of `response` plus `bias` is `scores`.
    `stride` is input pixels per response cell, measured. `height` and `width` are None where any size
    runs. `multi_label` is a guess: False only if the classifier closed with a softmax.
    """

    model: ModelProto
    bias: np.ndarray
    stride: int
    input_name: str
    height: int | None
    width: int | None
    dynamic_batch: bool
    multi_label: bool
    notes: list[str] = field(default_factory=list)
    logits: str = ""
    """The source's tensor (before sigmoid or softmax) that `scores` reproduces."""
    channels_last: bool = False
    """Whether the source takes (N, H, W, 3); the response graph always takes (N, 3, H, W)."""
    base: tuple[int, int] = (64, 64)
    """Height and width at which the graph was first seen to run: a cheap size to verify at."""
    smallest: int = 1
    """Least side that runs, where any size does."""
    multiple: int = 1
    """Sides are multiples of it, where any size runs."""
    whole_numbers: bool = False
    """Whether the source takes uint8; the response graph takes the same numbers as float32."""
    normalisation: Normalisation | None = None
    """What the graph does to the pixels by itself, if it does."""
    source_size: tuple[int, int] | None = None
    """The only size at which the source pools its whole map, where it pools a fixed window."""

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return int(self.bias.shape[0])


def response_graph(
    model: ModelProto,
    *,
    keep_classes: Sequence[int] | None = None,
    output: str | None = None,
    input_name: str | None = None,
    sizes: SizeWishes = SizeWishes(),
) -> ResponseGraph:
    """Turn a classifier into its response graph; `model` itself is not changed.

    `keep_classes` keeps these rows of the linear layer, in this order (a 21-way classifier with background first:
    `range(1, 21)`). `output` picks the logits where the model has several outputs, `input_name` the picture
    where it has several inputs. Batch, height and width are made free where the graph allows (and `sizes` wants it),
    by running it; what prevents it is in `notes`, with the node's name.

    Raises ExportError, naming the node, if the model does not end in a global average pooling and a linear layer.
    """
    work = prepare(model)
    graph = Graph(work)
    head = pick_head(graph, output)
    picture, channels_last = _picture(graph, head, input_name)
    whole_numbers = graph.elem_type(picture) == TensorProto.UINT8
    if whole_numbers:
        make_float(graph, picture)
        graph = Graph(work)
    normalisation = own_normalisation(graph, picture, channels_last=channels_last)
    keep = _checked_rows(keep_classes, head)
    notes = list(head.notes)
    windows = [(p.node.input[0], p.window) for p in head.poolings if p.window and len(p.window) == 2]
    picture = _free_names(graph, head, picture)
    bias = _rewrite(graph, head, keep, notes)
    tidy(work)
    if channels_last:
        notes.append(f"input '{picture}' is channels-last; a transpose was put before it")
        _transpose_input(work, picture)
    found = find_sizes(work, picture, classes=len(bias), wishes=sizes)
    _check(found.model)
    return ResponseGraph(
        model=found.model,
        bias=bias,
        stride=found.stride,
        input_name=picture,
        height=found.height,
        width=found.width,
        dynamic_batch=found.dynamic_batch,
        multi_label=head.activation != "softmax",
        notes=[*notes, *found.notes],
        logits=head.logits,
        channels_last=channels_last,
        base=found.base,
        smallest=found.smallest,
        multiple=found.multiple,
        whole_numbers=whole_numbers,
        normalisation=normalisation,
        source_size=_source_size(model, windows, found.stride),
    )


def prepare(model: ModelProto) -> ModelProto:
    """A copy with local functions inlined; raises ExportError for what no surgery can mend."""
    if not model.graph.node:
        raise ExportError("the model's graph is empty")
    version = opset(model)
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise ExportError(
            f"opset {version} is newer than the installed onnx knows ({newest}): upgrade onnx or export older"
        )
    if version < MIN_OPSET:
        raise ExportError(
            f"opset {version} is too old (at least {MIN_OPSET}): convert it with onnx.version_converter first"
        )
    copy = ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = onnx.inliner.inline_local_functions(copy)
    for node in copy.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ExportError(
                f"{label(node)}: operator of domain '{node.domain}'; only standard ONNX operators are supported"
            )
        if node.op_type in _QUANTISED:
            raise ExportError(f"{label(node)}: quantised graphs cannot be exported; give the float32 model")
        _check_arity(node, version)
    return copy


def _check_arity(node: NodeProto, version: int) -> None:
    """Refuse a node that lacks an input or output, so that whoever walks the graph need not ask."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return  # unknown to onnx: nobody looks into it
    if len(node.input) < schema.min_input or len(node.output) < max(schema.min_output, 1):
        raise ExportError(f"{label(node)}: lacks an input or an output; the model is not valid ONNX")


def pick_head(graph: Graph, output: str | None) -> Head:
    """The head of the named output, or of the only output that has one."""
    names = [o.name for o in graph.proto.output]
    if output is not None:
        if output not in names:
            raise ExportError(f"no output '{output}'; the model has: {', '.join(names)}")
        return find_head(graph, output)
    if len(names) == 1:
        return find_head(graph, names[0])
    heads: dict[str, Head] = {}
    failures: list[str] = []
    for name in names:
        try:
            heads[name] = find_head(graph, name)
        except ExportError as e:
            failures.append(f"{name}: {e}")
    if len({h.logits for h in heads.values()}) == 1:
        head = next(iter(heads.values()))
        head.notes.append(f"of the outputs {', '.join(names)}, '{next(iter(heads))}' was taken")
        return head
    if heads:
        raise ExportError(f"several outputs could be the logits: choose with --output: {', '.join(heads)}")
    raise ExportError(f"none of {len(names)} outputs has a usable head: {'; '.join(failures)}")


def _picture(graph: Graph, head: Head, wanted: str | None) -> tuple[str, bool]:
    """Name of the picture input, and whether it is channels-last; refuses what is no picture."""
    used = {p.features for p in head.poolings}
    used |= {i for p in head.poolings for n in graph.ancestors(p.features) for i in n.input}
    fed = [i for i in graph.image_inputs() if i.name in used]
    if not fed:
        raise ExportError("the logits depend on no input of the model")
    names = ", ".join(i.name for i in fed)
    if wanted is not None and wanted not in [i.name for i in fed]:
        raise ExportError(f"no input '{wanted}' that the logits depend on; there is: {names}")
    if len(fed) > 1:
        raise ExportError(f"the logits depend on {len(fed)} inputs ({names}); only one picture can be fed")
    info = fed[0]
    kind = info.type.tensor_type.elem_type
    if kind not in (TensorProto.FLOAT, TensorProto.UINT8):
        raise ExportError(f"input '{info.name}' is {float_type(kind)}, not float32; export a float32 model")
    shape = graph.shape(info.name)
    if shape is None or len(shape) != 4:
        rank = "unknown" if shape is None else len(shape)
        raise ExportError(f"input '{info.name}' has rank {rank}; a picture has 4: N,3,H,W")
    if shape[1] == 3 or (not isinstance(shape[1], int) and shape[3] != 3):
        return info.name, False
    if shape[3] == 3:
        return info.name, True
    raise ExportError(f"input '{info.name}' is {_text(shape)}; a picture has 3 channels: N,3,H,W")


def _free_names(graph: Graph, head: Head, picture: str) -> str:
    """Rename what is called like our outputs (an old output often is, an input may be); the picture's new name."""
    for name in (RESPONSE, SCORES):
        other = fresh_name(graph.model, name)
        head.poolings = [replace(p, features=other) if p.features == name else p for p in head.poolings]
        rename(graph.model, name, other)
        picture = other if picture == name else picture
    return picture


def _text(shape: Sequence[object]) -> str:
    return "x".join("?" if d is None else str(d) for d in shape)


def _checked_rows(keep: Sequence[int] | None, head: Head) -> list[int] | None:
    if keep is None:
        return None
    rows = [int(k) for k in keep]
    if not rows or len(set(rows)) != len(rows) or not all(0 <= r < len(head.bias) for r in rows):
        raise ExportError(f"keep_classes must be different numbers from 0 to {len(head.bias) - 1}")
    return rows


# --- the new head ----------------------------------------------------------------------------------------


def _rewrite(graph: Graph, head: Head, keep: list[int] | None, notes: list[str]) -> np.ndarray:
    """Replace the head in `graph.model`, which must be tidied afterwards; returns the bias, float32 (C,)."""
    model = graph.model
    build = _Builder(model)
    if head.weight is not None:
        maps = [_to_map(Graph(model), build, p.features, p.layout) for p in head.poolings]
        features = (
            maps[0] if len(maps) == 1 else build.node("Concat", maps, build.tensor("features.all"), axis=1)
        )
        rows = head.weight if keep is None else head.weight[keep]
        weight = build.constant(rows.astype(np.float32)[:, :, None, None], "response.weight")
        build.node("Conv", [features, weight], RESPONSE, kernel_shape=[1, 1])
        bias = head.bias if keep is None else head.bias[keep]
    else:
        bias = _linear_before_pooling(Graph(model), build, head, keep, notes)
    bias32 = bias.astype(np.float32)
    if not np.isfinite(bias32).all():
        raise ExportError("the linear layer's bias is not finite")
    pooled = build.node("GlobalAveragePool", [RESPONSE], fresh_name(model, "response.mean"))
    if np.any(bias32):
        flat = build.node("Flatten", [pooled], fresh_name(model, "response.flat"), axis=1)
        build.node("Add", [flat, build.constant(bias32[None], "response.bias")], SCORES)
    else:
        build.node("Flatten", [pooled], SCORES, axis=1)
    del model.graph.output[:]
    classes = len(bias32)
    model.graph.output.append(helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["N", classes]))
    model.graph.output.append(
        helper.make_tensor_value_info(RESPONSE, TensorProto.FLOAT, ["N", classes, "h", "w"])
    )
    return bias32


class _Builder:
    """Adds nodes and constants to a graph under names that are free."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model

    def constant(self, value: np.ndarray, base: str) -> str:
        name = fresh_name(self.model, base)
        self.model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], out: str, **at: Any) -> str:
        self.model.graph.node.append(helper.make_node(op, inputs, [out], name=f"infercam/{out}", **at))
        return out

    def tensor(self, base: str) -> str:
        return fresh_name(self.model, base)


def _to_map(graph: Graph, build: _Builder, tensor: str, layout: Layout) -> str:
    """Bring pooled features to N,C,h,w."""
    kind = graph.elem_type(tensor)
    if kind not in (0, TensorProto.FLOAT):
        raise ExportError(
            f"the pooled tensor '{tensor}' is {float_type(kind)}; only float32 models can be exported"
        )
    if layout == "NCHW":
        return tensor
    if layout == "NHWC":
        return build.node("Transpose", [tensor], build.tensor("features.nchw"), perm=[0, 3, 1, 2])
    grid = token_grid(graph, tensor, layout)
    if layout == "NLD":
        tensor = build.node("Transpose", [tensor], build.tensor("features.ndl"), perm=[0, 2, 1])
    head = build.constant(np.array([0, 0], np.int64), "grid.head")
    if grid.fixed is not None:
        size = build.constant(np.array(grid.fixed, np.int64), "grid.size")
    else:  # the patch embedding's own height and width, whatever the picture's size
        shape = build.node("Shape", [grid.like], build.tensor("grid.shape"))
        both = build.constant(np.array([2, 3], np.int64), "grid.axes")
        size = build.node("Gather", [shape, both], build.tensor("grid.size"), axis=0)
        if grid.over > 1:  # patches that were merged; a model that pads an odd grid rounds up
            more = build.constant(np.array([grid.over - 1], np.int64), "grid.more")
            over = build.constant(np.array([grid.over], np.int64), "grid.over")
            size = build.node("Add", [size, more], build.tensor("grid.rounded"))
            size = build.node("Div", [size, over], build.tensor("grid.merged"))
    target = build.node("Concat", [head, size], build.tensor("grid.target"), axis=0)
    return build.node("Reshape", [tensor, target], build.tensor("features.map"))


def _linear_before_pooling(
    graph: Graph, build: _Builder, head: Head, keep: list[int] | None, notes: list[str]
) -> np.ndarray:
    """SqueezeNet's order: what is pooled is the response already, but for a bias that can be taken off.

    An activation between the last convolution and the pooling stays: mean(relu(conv(x))) is not
    mean(conv(x)), so the response of such a classifier is the activated map.
    """
    pool = head.poolings[0]
    _require_linear_layer(graph, pool, notes)
    bias = head.bias
    tensor = pool.features
    node = graph.producer.get(tensor)
    axis = channel_axis(pool.layout)
    if node is not None and node.op_type == "Conv" and len(node.input) > 2 and node.input[2]:
        own = graph.constant(node.input[2])
        if own is not None:
            bias = bias + own.astype(np.float64)
            tensor = _without_bias(build, node)
    elif node is not None and node.op_type == "Add":
        tensor, own = _without_shift(graph, node, axis, len(bias))
        bias = bias + own
    mapped = _to_map(graph, build, tensor, pool.layout)
    if keep is None:
        build.node("Identity", [mapped], RESPONSE)
        return bias
    rows = build.constant(np.array(keep, np.int64), "response.rows")
    build.node("Gather", [mapped, rows], RESPONSE, axis=1)
    return bias[keep]


def _without_bias(build: _Builder, node: NodeProto) -> str:
    """A second copy of a convolution, without its bias; the first one dies if nothing else reads it."""
    out = build.tensor(f"{node.output[0]}.nobias")
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = f"infercam/{out}"
    del copy.input[2:]
    copy.output[0] = out
    build.model.graph.node.append(copy)
    return out


def _without_shift(graph: Graph, node: NodeProto, axis: int, classes: int) -> tuple[str, np.ndarray]:
    """The other operand of a per-class constant addition, and that constant (C,); unchanged if it is neither."""
    for i in (0, 1):
        value, other = graph.constant(node.input[i]), node.input[1 - i]
        rank = graph.rank(other)
        if value is None or rank is None or value.ndim > rank:
            continue
        full = value.reshape((1,) * (rank - value.ndim) + value.shape)
        if full.size == full.shape[axis] and full.size in (1, classes):
            return other, np.broadcast_to(full.ravel().astype(np.float64), (classes,))
    return node.output[0], np.zeros(classes)


def _require_linear_layer(graph: Graph, pool: Pooling, notes: list[str]) -> None:
    """Refuse a feature extractor: there must be a convolution or matrix just before the pooling."""
    tensor: str = pool.features
    between: list[NodeProto] = []
    while (node := graph.producer.get(tensor)) is not None:
        if node.op_type in _LINEAR:
            if between:
                names = ", ".join(label(n) for n in between)
                notes.append(
                    f"{names} between {label(node)} and {label(pool.node)}: the response is the map after it"
                )
            return
        constants = [graph.constant(i) is not None for i in node.input]
        shift = node.op_type in ("Add", "Sub", "Mul", "Div") and sum(constants) == 1
        if node.op_type not in _POINTWISE and not shift:
            raise ExportError(
                f"no linear layer before or after {label(pool.node)}: it pools the output of {label(node)}; "
                "this looks like a feature extractor, not a classifier"
            )
        if node.op_type not in ("Add", "Sub", "Identity", "Dropout", "Transpose"):
            between.append(node)
        tensor = node.input[constants.index(False)] if shift else node.input[0]
    raise ExportError(f"no linear layer before or after {label(pool.node)}")


def _source_size(
    model: ModelProto, windows: Sequence[tuple[str, tuple[int, ...]]], stride: int
) -> tuple[int, int] | None:
    """The size of the picture whose map is just as large as the window that pools it; None where there is none."""
    for name, window in windows:
        h, w = (d * stride for d in window)
        for _ in range(2):  # convolutions without padding lose a few rows: the second try makes up for them
            runs = observe(prepare(model), [name], sides=[(h, w)]).runs
            seen = runs[0].shapes[name][2:] if runs else ()
            if len(seen) != 2:
                break
            if seen == window:
                return runs[0].side
            h, w = h + (window[0] - seen[0]) * stride, w + (window[1] - seen[1]) * stride
    return None


# --- inputs and checks -----------------------------------------------------------------------------------


def _transpose_input(model: ModelProto, name: str) -> None:
    """Make a channels-last input channels-first, in place, keeping its name."""
    info = next(i for i in model.graph.input if i.name == name)
    inner = fresh_name(model, f"{name}.nhwc")
    rename(model, name, inner)
    info.name = name
    dims = info.type.tensor_type.shape.dim
    order = [onnx.TensorShapeProto.Dimension() for _ in range(4)]
    for target, source in zip(order, (dims[0], dims[3], dims[1], dims[2]), strict=True):
        target.CopyFrom(source)
    del dims[:]
    dims.extend(order)
    first = helper.make_node("Transpose", [name], [inner], name=f"infercam/{inner}", perm=[0, 2, 3, 1])
    model.graph.node.insert(0, first)


def _check(model: ModelProto) -> None:
    """onnx.checker on the result (without the weights' bytes, which protobuf could not hold beyond 2 GB)."""
    if model.ByteSize() > 1 << 30:
        return
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        raise ExportError(f"the rewritten graph is not valid ONNX: {str(e).splitlines()[0]}") from None


__all__ = ["ResponseGraph", "attributes", "pick_head", "prepare", "response_graph"]
