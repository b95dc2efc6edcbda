"""Running a model in ONNX Runtime on the CPU, whatever its size: for probing and verifying an export."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import onnx
from onnx.external_data_helper import set_external_data, uses_external_data

from infercam.engine.common.errors import MissingExtra
from infercam.engine.runners.ort_errors import problem

IN_MEMORY = 1 << 30  # protobuf cannot serialise 2 GB; half of that leaves room for a copy
_LARGE = 1 << 28
"""Bytes of weights from which on a model that is run a few times is not packed for ONNX Runtime's products: of a
ViT-L (1.2 GB) packing takes 2 CPU seconds and as much memory again, and saves 0.4 at each run. A file, which the
trials run dozens of times, always is."""
_ALIGNED = 64
"""Bytes at whose multiples weights begin in a file that is mapped into memory."""

WEIGHTS_FOLDER = "infercam.weights"
"""In the metadata of a model whose large weights are in a file (graph/shelf.py): the file's folder."""


def weights_folder(model: onnx.ModelProto) -> str | None:
    """Where the weights of such a model are; None for a model that has its own."""
    return next((p.value for p in model.metadata_props if p.key == WEIGHTS_FOLDER), None)


class RunError(Exception):
    """ONNX Runtime refused the model or failed in it; `node` names where, when it says."""

    def __init__(self, message: str) -> None:
        found = problem(message)
        self.node = found.node
        super().__init__(str(found))


class GraphSession:
    """One loaded model, or file of one; `run` takes one float32 array and returns outputs as arrays.

    Raises MissingExtra without ONNX Runtime, RunError where it cannot load the model.
    """

    def __init__(self, model: onnx.ModelProto | Path, threads: int = 0) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise MissingExtra("onnxruntime", "cpu", "running a graph on the CPU") from None

        options = ort.SessionOptions()
        options.log_severity_level = 4  # failures are caught and reported by us
        # Q/DQ nodes compute what they say: fused into integer kernels they round otherwise, and fp8 has none.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.enable_mem_pattern = False  # nearly every call has another shape
        # Threads that wait by spinning took a third of the CPU time of a Swin.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        weights = weights_of(model) if isinstance(model, onnx.ModelProto) else None
        options.intra_op_num_threads = threads or threads_for(weights)
        if weights is not None and weights > _LARGE:
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            self._session = self._load(ort, options, model)
        except Exception as e:  # ONNX Runtime's exceptions share no base below Exception
            raise RunError(str(e)) from None
        self.input = self._session.get_inputs()[0].name

    @staticmethod
    def _load(ort: Any, options: Any, model: onnx.ModelProto | Path) -> Any:
        make = ort.InferenceSession
        providers = ["CPUExecutionProvider"]
        if isinstance(model, Path):
            return make(str(model), options, providers=providers)
        folder = weights_folder(model)
        if folder is None and weights_of(model) < IN_MEMORY:
            return make(model.SerializeToString(), options, providers=providers)
        with tempfile.TemporaryDirectory(prefix="infercam-") as other:
            file = Path(folder or other) / f"{uuid4().hex}.onnx"
            save(model, file)
            try:
                return make(str(file), options, providers=providers)
            finally:
                file.unlink()

    def run(self, x: np.ndarray, outputs: list[str] | None = None) -> list[np.ndarray]:
        """The outputs of those names (all by default) for one input array; raises RunError."""
        try:
            return [np.asarray(y) for y in self._session.run(outputs, {self.input: x})]
        except Exception as e:
            raise RunError(str(e)) from None


def threads_for(weights: int | None) -> int:
    """How many threads a session of that many bytes of weights is given; 0: as many as there are cores."""
    return 1 if weights is not None and weights < 1 << 20 else 0


def write_basic(file: Path, out: Path, *, without: Sequence[str] = ()) -> None:
    """Write what ONNX Runtime's basic level makes of a graph (constants folded, nodes left out), without some of its
    optimisations; raises RunError."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(without)
        )
    except Exception as e:  # ONNX Runtime's exceptions share no base below Exception
        raise RunError(str(e)) from None


def weight_bytes(tensor: onnx.TensorProto) -> int:
    """What a weight takes, by its dimensions and type: protobuf's own ByteSize walks through all of it."""
    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):  # strings, and types that are newer than the library
        return tensor.ByteSize()
    return int(np.prod(tensor.dims, dtype=np.int64)) * itemsize


def weights_of(model: onnx.ModelProto) -> int:
    """Bytes of the weights."""
    return sum(map(weight_bytes, model.graph.initializer))


def with_weights(model: onnx.ModelProto, weights: Iterable[onnx.TensorProto]) -> onnx.ModelProto:
    """A copy with these weights in the place of its own, which are not copied; without doc strings and metadata of
    its graph, nodes and values."""
    bare = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            copied = bare.graph
            for inner, part in value.ListFields():
                if inner.name in ("initializer", "doc_string", "metadata_props"):
                    continue
                if hasattr(part, "extend"):
                    getattr(copied, inner.name).extend(part)
                else:
                    setattr(copied, inner.name, part)
        elif hasattr(value, "extend"):
            getattr(bare, field.name).extend(value)
        else:
            setattr(bare, field.name, value)
    graph = bare.graph
    for kept in (*graph.node, *graph.value_info, *graph.input, *graph.output):
        kept.ClearField("doc_string")
        del kept.metadata_props[:]
    for weight in weights:
        graph.initializer.append(weight)
    return bare


def save(model: onnx.ModelProto, file: Path, *, limit: int = IN_MEMORY, inline: int = 1024) -> list[Path]:
    """Write a model; where its weights take `limit` bytes, those above `inline` go to `<file>.data` beside it.

    Returns the files written. What the exporter noted at each node (names and lines of the source files it was
    traced from, folders of that machine included) does not go with it. Weights that are on a shelf go into the file
    all the same, unless that is in the shelf's own folder.
    """
    folder = weights_folder(model)
    weights = model.graph.initializer
    if folder == str(file.parent):
        file.write_bytes(with_weights(model, weights).SerializeToString())
        return [file]
    if weights_of(model) < limit:
        file.write_bytes(whole(model).SerializeToString())
        return [file]
    data = file.with_name(f"{file.name}.data")
    with data.open("wb") as f:
        large = (weight_bytes(t) > inline and (folder or not uses_external_data(t)) for t in weights)
        moved = (moved_to(f, t, folder) if out else t for t, out in zip(weights, large, strict=True))
        bare = with_weights(model, moved)
    forget_folder(bare)
    file.write_bytes(bare.SerializeToString())
    return [file, data]


def whole(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the weights that are on a shelf in it."""
    folder = weights_folder(model)
    copy = with_weights(model, (_inline(t, folder) if folder else t for t in model.graph.initializer))
    forget_folder(copy)
    return copy


def _inline(tensor: onnx.TensorProto, folder: str) -> onnx.TensorProto:
    if not uses_external_data(tensor):
        return tensor
    values = _bytes_of(tensor, folder).tobytes()
    return onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=values)


def forget_folder(model: onnx.ModelProto) -> None:
    """Take the note of where its weights are out of a model; in place."""
    kept = [p for p in model.metadata_props if p.key != WEIGHTS_FOLDER]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)


def values_of(tensor: onnx.TensorProto, folder: str | None) -> np.ndarray:
    """A weight's values; of one in that folder they are mapped into memory, not read."""
    if not uses_external_data(tensor):
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    assert folder is not None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return _bytes_of(tensor, folder).view(dtype).reshape(tuple(tensor.dims))


def _bytes_of(tensor: onnx.TensorProto, folder: str) -> np.ndarray:
    where = {e.key: e.value for e in tensor.external_data}
    file, shape = Path(folder, where["location"]), (int(where["length"]),)
    return np.asarray(np.memmap(file, np.uint8, "r", int(where["offset"]), shape))


def moved_to(f: BinaryIO, tensor: onnx.TensorProto, folder: str | None = None) -> onnx.TensorProto:
    """The tensor with its values at the end of that file: `tensor` itself is not changed, and nothing else copied."""
    value: bytes | memoryview = tensor.raw_data
    if not value:
        value = np.ascontiguousarray(values_of(tensor, folder)).reshape(-1).view(np.uint8).data
    return reference_to(tensor, Path(f.name).name, append(f, value), len(value))


def append(f: BinaryIO, value: bytes | memoryview) -> int:
    """Write bytes to the end of a file of weights; where they begin."""
    f.write(bytes(-f.tell() % _ALIGNED))
    begin = f.tell()
    f.write(value)
    return begin


def reference_to(
    tensor: onnx.TensorProto, location: str, offset: int | None = None, length: int | None = None
) -> onnx.TensorProto:
    """What stands for a tensor whose values are in a file."""
    reference = onnx.TensorProto(
        name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, raw_data=b" "
    )
    set_external_data(reference, location, offset, length)
    reference.ClearField("raw_data")
    return reference
