"""What a graph of the bundle takes and gives, read from the ONNX file itself and held against the manifest."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from google.protobuf.message import DecodeError

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import ExportError

FREE = -1
"""A dimension that differs from request to request, as Triton writes it."""

_TYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16"}


@dataclass(frozen=True)
class Tensor:
    """An input or output. `dims` with the batch first; `dtype` in the Open Inference Protocol's names."""

    name: str
    dtype: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """Of a response graph: picture N×3×H×W to scores N×C and response N×C×h×w."""

    image: Tensor
    scores: Tensor
    response: Tensor

    @property
    def batched(self) -> bool:
        """Whether the graph takes any number of pictures at once."""
        return self.image.dims[0] == FREE


def read_signature(bundle: Bundle, graph: str = "fp32") -> Signature:
    """Signature of the bundle's graph of that name in `manifest.graphs`.

    Raises BundleError if there is none, ExportError naming the file where it is no ONNX file or is not what the
    manifest says: a Triton configuration made from it would be refused when the server starts.
    """
    file = bundle.graph(graph)
    try:
        model = onnx.load(str(file), load_external_data=False)
    except (OSError, DecodeError, ValueError) as e:
        raise ExportError(f"{file}: not an ONNX file ({e}); export the bundle again") from None
    m, proto = bundle.manifest, model.graph
    weights = {t.name for t in proto.initializer}
    fed = [i for i in proto.input if i.name not in weights]
    if [i.name for i in fed] != [m.input.name]:
        found = ", ".join(i.name for i in fed) or "none"
        raise ExportError(f"{file}: its inputs are {found}; the manifest says {m.input.name}")
    outputs = {o.name: o for o in proto.output}
    missing = [name for name in (m.scores, m.response) if name not in outputs]
    if missing:
        raise ExportError(f"{file}: has no output '{missing[0]}', which the manifest names")
    signature = Signature(_tensor(fed[0], 4), _tensor(outputs[m.scores], 2), _tensor(outputs[m.response], 4))
    problem = _contradiction(signature, bundle)
    if problem:
        raise ExportError(f"{file}: {problem}; export the bundle again")
    return _with_classes(signature, len(m.classes))


def _tensor(info: onnx.ValueInfoProto, rank: int) -> Tensor:
    """A graph's input or output; one without a recorded shape is free in all its dimensions."""
    kind = info.type.tensor_type
    dtype = _TYPES.get(int(kind.elem_type))
    if dtype is None:
        raise ExportError(
            f"'{info.name}' is {onnx.TensorProto.DataType.Name(kind.elem_type)}, not float32 or float16"
        )
    if not kind.HasField("shape"):
        return Tensor(info.name, dtype, (FREE,) * rank)
    dims = tuple(d.dim_value if d.HasField("dim_value") else FREE for d in kind.shape.dim)
    return Tensor(info.name, dtype, dims)


def _contradiction(found: Signature, bundle: Bundle) -> str | None:
    """What in the graph is not as the manifest has it, in a few words."""
    m = bundle.manifest
    classes = len(m.classes)
    want = (m.input.height or FREE, m.input.width or FREE)
    image, scores, response = found.image, found.scores, found.response
    if len(image.dims) != 4 or image.dims[1] != 3 or image.dims[2:] != want:
        size = "any size" if m.input.height is None else f"{m.input.height}x{m.input.width}"
        return f"'{image.name}' is {_shown(image)}; the manifest says N×3×H×W of {size}"
    if (image.dims[0] == FREE) != m.input.dynamic_batch:
        said = "any batch" if m.input.dynamic_batch else "one fixed batch"
        return f"'{image.name}' is {_shown(image)}; the manifest says {said}"
    if len(scores.dims) != 2 or scores.dims[1] not in (FREE, classes):
        return f"'{scores.name}' is {_shown(scores)}; the manifest has {classes} classes"
    if len(response.dims) != 4 or response.dims[1] not in (FREE, classes):
        return f"'{response.name}' is {_shown(response)}; the manifest has {classes} classes"
    if scores.dtype != "FP32" or response.dtype != "FP32":
        return "its outputs are not float32"
    return None


def _shown(tensor: Tensor) -> str:
    return f"{tensor.dtype} " + "×".join("any" if d == FREE else str(d) for d in tensor.dims)


def _with_classes(found: Signature, classes: int) -> Signature:
    """The number of classes is known even where the graph's own shapes leave it open; the batch is one for all."""
    batch = found.image.dims[0]
    return Signature(
        found.image,
        Tensor(found.scores.name, found.scores.dtype, (batch, classes)),
        Tensor(found.response.name, found.response.dtype, (batch, classes, *found.response.dims[2:])),
    )
