"""Graph surgery: an ONNX classifier with global average pooling becomes a response graph.

The head (pooling, linear layer, whatever is affine between and after them) is cut off and its weight put
on the pooled features as a 1x1 convolution without bias, so that every position keeps its response:

    response = Conv1x1(features, weight)                     (N, C, h, w), before ReLU
    scores   = Flatten(GlobalAveragePool(response)) + bias   (N, C), the classifier's logits

A head with norms, activations or gates has them frozen, and where its bias then depends on the image the graph has it
as a third output (frozen.py). `scores` is recomputed from `response`: nothing of the old head, which often bakes
sizes, is left in the graph.

A head that reads a class token has no such decomposition. It gets its customary map (customary.py), and keeps the
classifier's own scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import gcd

import numpy as np
import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.external_data_helper import uses_external_data

from infercam.engine.bundle import AFFINITY_OUTPUT, BIAS_OUTPUT, Decomposition, Method
from infercam.engine.common.errors import ExportError
from infercam.export.graph.attention import write_affinity
from infercam.export.graph.batch_norms import fold_batch_norms
from infercam.export.graph.begins import Normalisation, declare_channels, make_float, own_normalisation
from infercam.export.graph.building import NodeBuilder, joined_maps, maps_of, to_map
from infercam.export.graph.chosen import take_branches
from infercam.export.graph.customary import own_scores, write_customary
from infercam.export.graph.dynamic import Sizes, SizeWishes, chosen_size, declared_size, find_sizes
from infercam.export.graph.floats import as_float32
from infercam.export.graph.frozen import write_frozen
from infercam.export.graph.head import Head, find_head
from infercam.export.graph.index import (
    Graph,
    attributes,
    float_type,
    fresh_name,
    label,
    opset,
    rename,
    skeleton,
)
from infercam.export.graph.observe import observe
from infercam.export.graph.passes import tidy
from infercam.export.graph.pooling import Pooling, channel_axis
from infercam.export.graph.position import interpolate_positions
from infercam.export.graph.recipro import recipro_head, write_recipro
from infercam.export.graph.shelf import Shelf, open_shelf
from infercam.export.graph.wishes import MapWishes
from infercam.export.graph.written_out import join_norms
from infercam.export.graph.zero_shot import embedding, write_zero_shot
from infercam.export.runtime import values_of, weights_folder, whole

MIN_OPSET = 7
RESPONSE, SCORES, BIAS, AFFINITY = "response", "scores", BIAS_OUTPUT, AFFINITY_OUTPUT
_QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")
_CUSTOMARY = (
    "the map is customary, not exact: the scores are made of the class token, which has no position; the response is "
    "what the same head makes of the patch tokens, and its mean is not the scores"
)
RECIPRO_NOTE = (
    "the map is customary, not exact: what the head answers to one position of its features alone; its mean is not "
    "the scores, and the head runs once a position"
)
ZERO_SHOT_NOTE = (
    "the map is customary, not exact: at each position a softmax over the classes' and the background's texts, the "
    "background dropped; its mean is not the scores"
)
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
    With `per_image_bias` there is a third output `bias`, float32 (N, C), in the place of the field, which is zeros.
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
    """The only size at which the source can be compared: that which it declares, or at which the window that it pools
    is the whole map."""
    per_image_bias: bool = False
    """Whether the bias depends on the image: its values are an output."""
    types: tuple[str, ...] = ()
    """The floating types but float32 that the source computes in."""
    decomposition: Decomposition = "mean"
    """`none` where mean(response) + bias is not the scores; these are then the classifier's own."""
    method: Method = "cam"
    affinity: int | None = None
    """How many blocks' attention the output `affinity` (N, P, P) averages; None where there is none."""

    def takes(self, height: int, width: int) -> bool:
        """Whether pictures of that size run, as far as was tried."""
        if self.height is not None:
            return (height, width) == (self.height, self.width)
        return min(height, width) >= self.smallest and not (height % self.multiple or width % self.multiple)

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
    fold_batch_norm: bool = True,
    maps: MapWishes = MapWishes(),
) -> ResponseGraph:
    """Turn a classifier into its response graph; `model` itself is not changed.

    `keep_classes` keeps these rows of the linear layer, in this order (a 21-way classifier with background first:
    `range(1, 21)`). `output` picks the logits where the model has several outputs, `input_name` the picture
    where it has several inputs. Batch, height and width are made free where the graph allows (and `sizes` wants it),
    by running it; what prevents it is in `notes`, with the node's name. `fold_batch_norm`: batch norms go into the
    layer before them, or become a scale and a shift (batch_norms.py). `maps`: what else is wished for.

    Raises ExportError, naming the node, if the model does not end in a global average pooling and a linear layer.
    """
    work = prepare(model)
    take_branches(work)
    join_norms(work)
    types = as_float32(work)
    graph = Graph(work)
    if declare_channels(graph):
        graph = Graph(work)
    head = _head(graph, output, maps)
    picture, channels_last = _picture(graph, head, input_name)
    whole_numbers = graph.elem_type(picture) == TensorProto.UINT8
    if whole_numbers:
        make_float(graph, picture)
        graph = Graph(work)
    normalisation = own_normalisation(graph, picture, channels_last=channels_last)
    keep = _checked_rows(keep_classes, head)
    notes, logits = list(head.notes), head.logits
    if maps.attention and (head.is_exact or maps.recipro):
        raise ExportError("the head reads no class token: --attention has nothing to multiply")
    if types:
        notes.append(
            f"the source computes in {', '.join(types)}; the response graph does the same in float32"
        )
    windows = [(p.node.input[0], p.window) for p in head.poolings if p.window and len(p.window) == 2]
    if maps.recipro:
        size = chosen_size(work, picture, sizes)
        sizes = SizeWishes(size=size, batch=False)
        _fix_input(work, picture, size)
        head = _head(Graph(work), output, maps)  # sizes known: no map of a single position is taken
    picture = _free_names(graph, head, picture)
    bias = _rewrite(graph, head, keep, notes, maps)
    if maps.affinity:
        write_affinity(NodeBuilder(work), head.poolings[0], maps.affinity, AFFINITY)
        work.graph.output.append(helper.make_tensor_value_info(AFFINITY, TensorProto.FLOAT, ["N", "P", "P"]))
    tidy(work)
    if fold_batch_norm:
        notes += fold_batch_norms(work)
    positions = interpolate_positions(work)
    if channels_last:
        notes.append(f"input '{picture}' is channels-last; a transpose was put before it")
        _transpose_input(work, picture)
    declared = declared_size(work, picture)
    found = finished(
        work,
        picture,
        bias,
        sizes=sizes,
        method=_method(head, maps),
        positions=positions,
        in_patches=bool(positions) or not head.is_exact,
    )
    return replace(
        found,
        multi_label=head.activation != "softmax" and maps.zero_shot is None,
        notes=[*notes, *found.notes],
        logits=logits,
        channels_last=channels_last,
        whole_numbers=whole_numbers,
        normalisation=normalisation,
        source_size=declared or _source_size(model, windows, found.stride),
        types=tuple(types),
        affinity=maps.affinity or None,
    )


def _head(graph: Graph, output: str | None, maps: MapWishes) -> Head:
    if maps.zero_shot is None and not maps.recipro:
        return pick_head(graph, output)
    name = _known_output(graph, output or graph.proto.output[0].name)
    return recipro_head(graph, name) if maps.recipro else find_head(graph, embedding(graph, name))


def _fix_input(model: ModelProto, picture: str, size: tuple[int, int]) -> None:
    """Declare the picture's only size, and a batch of 1; in place."""
    info = next(i for i in model.graph.input if i.name == picture)
    info.CopyFrom(helper.make_tensor_value_info(picture, info.type.tensor_type.elem_type, [1, 3, *size]))
    del model.graph.value_info[:]


def _method(head: Head, maps: MapWishes) -> Method:
    if maps.recipro:
        return "recipro"
    if maps.zero_shot is not None:
        return "maskclip"
    if head.is_exact:
        return "cam"
    return "patch-tokens-attention" if maps.attention else "patch-tokens"


def finished(
    work: ModelProto,
    picture: str,
    bias: np.ndarray,
    *,
    sizes: SizeWishes,
    method: Method,
    positions: Sequence[str] = (),
    in_patches: bool = False,
) -> ResponseGraph:
    """A graph that has its outputs `scores` and `response`: its sizes found, checked, with what can be said of it.

    `positions`: notes about what makes other sizes possible; `in_patches`: sides are then multiples of the stride.
    """
    shelf = Shelf.of(work)
    if shelf is not None:
        shelf.take(work)
        found = find_sizes(work, picture, classes=len(bias), wishes=sizes)
    else:
        with open_shelf() as shelf:
            shelf.take(work)
            found = find_sizes(work, picture, classes=len(bias), wishes=sizes)
            found.model = whole(found.model)
    notes = list(positions) if found.height is None else []
    if found.height is None and in_patches:
        found = _in_whole_patches(found)
    _check(found.model)
    return ResponseGraph(
        model=found.model,
        bias=bias,
        stride=found.stride,
        input_name=picture,
        height=found.height,
        width=found.width,
        dynamic_batch=found.dynamic_batch,
        multi_label=False,
        notes=[*notes, *found.notes],
        base=found.base,
        smallest=found.smallest,
        multiple=found.multiple,
        per_image_bias=any(o.name == BIAS for o in found.model.graph.output),
        decomposition="mean" if method == "cam" else "none",
        method=method,
    )


def _in_whole_patches(found: Sizes) -> Sizes:
    """Sides that are multiples of the patch: what is over would be cut off, and the map not cover the picture."""
    patch = found.stride * found.multiple // gcd(found.stride, found.multiple)
    smallest, *base = (-(-side // patch) * patch for side in (found.smallest, *found.base))
    return replace(found, smallest=smallest, base=(base[0], base[1]), multiple=patch)


def _refuse_names_used_twice(model: ModelProto) -> None:
    """Two weights of one name: runtimes take one of them for both, and their errors are of what follows from that."""
    weights: dict[str, TensorProto] = {}
    folder = weights_folder(model)
    for tensor in model.graph.initializer:
        other = weights.setdefault(tensor.name, tensor)
        if other is not tensor and _differ(other, tensor, folder):
            raise ExportError(
                f"two different weights are named '{tensor.name}': the file is broken; export it again"
            )


def _differ(one: TensorProto, other: TensorProto, folder: str | None) -> bool:
    if not (folder and uses_external_data(one) and uses_external_data(other)):
        return bool(one != other)
    first, second = (values_of(t, folder) for t in (one, other))
    return first.dtype != second.dtype or not np.array_equal(first, second, equal_nan=True)


def prepare(model: ModelProto) -> ModelProto:
    """A copy with local functions inlined; raises ExportError for what no surgery can mend."""
    if not model.graph.node:
        raise ExportError("the model's graph is empty")
    _refuse_names_used_twice(model)
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
    """Refuse a node that is unknown, or lacks an input or output, so that whoever walks the graph need not ask."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        raise ExportError(
            f"{label(node)}: no operator of ONNX (opset {version}): the converter left it as it found it; export the "
            "model by another converter, or another version of it"
        ) from None
    if len(node.input) < schema.min_input or len(node.output) < max(schema.min_output, 1):
        raise ExportError(f"{label(node)}: lacks an input or an output; the model is not valid ONNX")


def _known_output(graph: Graph, name: str) -> str:
    names = [o.name for o in graph.proto.output]
    if name not in names:
        raise ExportError(f"no output '{name}'; the model has: {', '.join(names)}")
    return name


def pick_head(graph: Graph, output: str | None) -> Head:
    """The head of the named output, or of the only output that has one."""
    names = [o.name for o in graph.proto.output]
    if output is not None:
        return find_head(graph, _known_output(graph, output))
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
    for name in (RESPONSE, SCORES, AFFINITY, *([BIAS] if head.stages else [])):
        other = fresh_name(graph.model, name)
        head.poolings = [p.renamed(name, other) for p in head.poolings]
        head.logits = other if head.logits == name else head.logits
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


def _rewrite(
    graph: Graph, head: Head, keep: list[int] | None, notes: list[str], maps: MapWishes
) -> np.ndarray:
    """Replace the head in `graph.model`, which must be tidied afterwards; returns the bias, float32 (C,): zeros
    where it depends on the image."""
    model = graph.model
    build = NodeBuilder(model)
    if maps.zero_shot is not None:
        write_zero_shot(build, head, maps.zero_shot, RESPONSE, SCORES)
        _declare_outputs(model, maps.zero_shot.wanted, per_image_bias=False)
        notes.append(ZERO_SHOT_NOTE)
        return np.zeros(maps.zero_shot.wanted, np.float32)
    bias: np.ndarray | None
    if maps.recipro:
        write_recipro(build, head, keep, RESPONSE)
        notes.append(RECIPRO_NOTE)
        bias = head.bias if keep is None else head.bias[keep]
    elif not head.is_exact:
        bias = write_customary(build, head, keep, RESPONSE, attention=maps.attention)
        notes.append(_CUSTOMARY)
    elif head.stages:
        bias = write_frozen(build, head, keep, RESPONSE, BIAS)
    elif head.weight is not None:
        features = joined_maps(build, maps_of(build, head.poolings))
        rows = head.weight if keep is None else head.weight[keep]
        weight = build.constant(rows.astype(np.float32)[:, :, None, None], "response.weight")
        build.node("Conv", [features, weight], RESPONSE, kernel_shape=[1, 1])
        bias = head.bias if keep is None else head.bias[keep]
    else:
        bias = _linear_before_pooling(Graph(model), build, head, keep, notes)
    classes = len(head.bias if keep is None else keep)
    bias32 = None if bias is None else bias.astype(np.float32)
    if bias32 is not None and not np.isfinite(bias32).all():
        raise ExportError("the linear layer's bias is not finite")
    if head.is_exact and not maps.recipro:
        _add_scores(build, bias32)
    else:
        own_scores(build, head.logits, len(head.bias), keep, SCORES)
    _declare_outputs(model, classes, per_image_bias=bias32 is None)
    return np.zeros(classes, np.float32) if bias32 is None else bias32


def _add_scores(build: NodeBuilder, bias: np.ndarray | None) -> None:
    """The mean of the response plus the bias; without a constant one that of each image."""
    pooled = build.node("GlobalAveragePool", [RESPONSE], build.tensor("response.mean"))
    if bias is not None and not np.any(bias):
        build.node("Flatten", [pooled], SCORES, axis=1)
        return
    flat = build.node("Flatten", [pooled], build.tensor("response.flat"), axis=1)
    build.node("Add", [flat, BIAS if bias is None else build.constant(bias[None], "response.bias")], SCORES)


def _declare_outputs(model: ModelProto, classes: int, *, per_image_bias: bool) -> None:
    shapes: dict[str, list[str | int | None]] = {SCORES: ["N", classes], RESPONSE: ["N", classes, "h", "w"]}
    if per_image_bias:
        shapes[BIAS] = ["N", classes]
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()
    )


def _linear_before_pooling(
    graph: Graph, build: NodeBuilder, head: Head, keep: list[int] | None, notes: list[str]
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
    mapped = to_map(graph, build, tensor, pool.layout)
    if keep is None:
        build.node("Identity", [mapped], RESPONSE)
        return bias
    rows = build.constant(np.array(keep, np.int64), "response.rows")
    build.node("Gather", [mapped, rows], RESPONSE, axis=1)
    return bias[keep]


def _without_bias(build: NodeBuilder, node: NodeProto) -> str:
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
    """onnx.checker on the result, without the large weights."""
    bare = skeleton(model)
    for output, own in zip(bare.graph.output, model.graph.output, strict=True):
        output.CopyFrom(own)
    try:
        onnx.checker.check_model(bare)
    except onnx.checker.ValidationError as e:
        raise ExportError(f"the rewritten graph is not valid ONNX: {str(e).splitlines()[0]}") from None


__all__ = ["ResponseGraph", "attributes", "pick_head", "prepare", "response_graph"]
