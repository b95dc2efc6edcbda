"""Running a model in ONNX Runtime on the CPU, whatever its size: for probing and verifying an export."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import onnx

from infercam.engine.common.errors import MissingExtra
from infercam.engine.runners.ort_errors import problem

_IN_MEMORY = 1 << 30  # protobuf cannot serialise 2 GB; half of that leaves room for a copy


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
        small = isinstance(model, onnx.ModelProto) and _weights(model) < 1 << 20
        options.intra_op_num_threads = threads or (1 if small else 0)
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
        if folder is None and _weights(model) < _IN_MEMORY:
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


def weight_bytes(tensor: onnx.TensorProto) -> int:
    """What a weight takes, by its dimensions and type: protobuf's own ByteSize walks through all of it."""
    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, TypeError):  # strings, and types that are newer than the library
        return tensor.ByteSize()
    return int(np.prod(tensor.dims, dtype=np.int64)) * itemsize


def _weights(model: onnx.ModelProto) -> int:
    """Bytes of the weights."""
    return sum(map(weight_bytes, model.graph.initializer))


def _without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without doc strings and metadata of its graph, nodes and values; the model itself if it has none."""
    parts = (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output)
    if not any(part.doc_string or part.metadata_props for part in parts) and not model.graph.doc_string:
        return model
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    graph.doc_string = ""
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    return bare


def save(model: onnx.ModelProto, file: Path, *, limit: int = _IN_MEMORY, inline: int = 1024) -> list[Path]:
    """Write a model; where its weights take `limit` bytes, those above `inline` go to `<file>.data` beside it.

    Returns the files written. What the exporter noted at each node (names and lines of the source files it was
    traced from, folders of that machine included) does not go with it.
    """
    model = _without_notes(model)
    if _weights(model) < limit or weights_folder(model):
        file.write_bytes(model.SerializeToString())
        return [file]
    data = file.with_name(f"{file.name}.data")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the weights out of the model it is given
    onnx.save_model(copy, str(file), save_as_external_data=True, location=data.name, size_threshold=inline)
    return [file, data] if data.exists() else [file]
