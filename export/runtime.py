"""Running a model in ONNX Runtime on the CPU, whatever its size: for probing and verifying an export."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
import onnx
from onnx.external_data_helper import set_external_data

from infercam.engine.common.errors import MissingExtra
from infercam.engine.runners.ort_errors import problem

_IN_MEMORY = 1 << 30  # protobuf cannot serialise 2 GB; half of that leaves room for a copy
_LARGE = 1 << 28
"""Bytes of weights from which on ONNX Runtime keeps no second copy of them, packed for its products."""
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
        small = isinstance(model, onnx.ModelProto) and weights_of(model) < 1 << 20
        options.intra_op_num_threads = threads or (1 if small else 0)
        weights = model.stat().st_size if isinstance(model, Path) else weights_of(model)
        if weights > _LARGE:
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
        if folder is None and weights_of(model) < _IN_MEMORY:
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


def _without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without weights, and without doc strings and metadata of its graph, nodes and values."""
    bare = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name == "graph":
            copied = bare.graph
            for inner, part in value.ListFields():
                if inner.name == "initializer":
                    continue
                if hasattr(part, "extend"):
                    getattr(copied, inner.name).extend(part)
                elif inner.name != "doc_string":
                    setattr(copied, inner.name, part)
        elif hasattr(value, "extend"):
            getattr(bare, field.name).extend(value)
        else:
            setattr(bare, field.name, value)
    graph = bare.graph
    for kept in (*graph.node, *graph.value_info, *graph.input, *graph.output):
        kept.ClearField("doc_string")
        del kept.metadata_props[:]
    return bare


def save(model: onnx.ModelProto, file: Path, *, limit: int = _IN_MEMORY, inline: int = 1024) -> list[Path]:
    """Write a model; where its weights take `limit` bytes, those above `inline` go to `<file>.data` beside it.

    Returns the files written. What the exporter noted at each node (names and lines of the source files it was
    traced from, folders of that machine included) does not go with it.
    """
    bare = _without_notes(model)
    if weights_of(model) < limit or weights_folder(model):
        bare.graph.initializer.extend(model.graph.initializer)
        file.write_bytes(bare.SerializeToString())
        return [file]
    data = file.with_name(f"{file.name}.data")
    with data.open("wb") as f:
        for tensor in model.graph.initializer:
            small = weight_bytes(tensor) <= inline or tensor.data_location == onnx.TensorProto.EXTERNAL
            bare.graph.initializer.append(tensor if small else moved_to(f, tensor))
    file.write_bytes(bare.SerializeToString())
    return [file, data]


def moved_to(f: BinaryIO, tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The tensor with its values at the end of that file: `tensor` itself is not changed, and nothing else copied."""
    f.write(bytes(-f.tell() % _ALIGNED))
    value = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
    moved = reference_to(tensor, Path(f.name).name, f.tell(), len(value))
    f.write(value)
    return moved


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
