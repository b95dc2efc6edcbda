"""Running a model in ONNX Runtime on the CPU, whatever its size: for probing and verifying an export."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

_IN_MEMORY = 1 << 30  # protobuf cannot serialise 2 GB; half of that leaves room for a copy


class RunError(Exception):
    """ONNX Runtime refused the model or failed in it; `node` names where, when it says."""

    def __init__(self, message: str) -> None:
        text = " ".join(message.split())
        found = re.search(r"[Nn]ame:'([^']+)'|[Nn]ode \(([^)]+)\)", text)
        self.node = next((g for g in found.groups() if g), None) if found else None
        if "Status Message:" in text:
            text = text.split("Status Message:", 1)[1].strip()
        # drop the C++ source location, keep what was expected
        text = re.sub(r"\S+\.(cc|h|hpp):\d+ .*?\) ?", "", text)[:300].strip(" .")
        super().__init__(f"node '{self.node}': {text}" if self.node else text)


class GraphSession:
    """One loaded model; `run` takes one float32 array and returns every output as an array."""

    def __init__(self, model: onnx.ModelProto, threads: int = 0) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4  # failures are caught and reported by us
        # Q/DQ nodes compute what they say: fused into integer kernels they round otherwise, and fp8 has none.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        weights = sum(t.ByteSize() for t in model.graph.initializer)
        options.intra_op_num_threads = threads or (1 if weights < 1 << 20 else 0)
        try:
            self._session = self._load(ort, options, model, weights)
        except Exception as e:  # ONNX Runtime's exceptions share no base below Exception
            raise RunError(str(e)) from None
        self.input = self._session.get_inputs()[0].name

    @staticmethod
    def _load(ort: Any, options: Any, model: onnx.ModelProto, weights: int) -> Any:
        make = ort.InferenceSession
        providers = ["CPUExecutionProvider"]
        if weights < _IN_MEMORY:
            return make(model.SerializeToString(), options, providers=providers)
        with tempfile.TemporaryDirectory(prefix="infercam-") as folder:
            file = Path(folder) / "model.onnx"
            save(model, file)
            return make(str(file), options, providers=providers)

    def run(self, x: np.ndarray) -> list[np.ndarray]:
        """All outputs for one input array; raises RunError."""
        try:
            return [np.asarray(y) for y in self._session.run(None, {self.input: x})]
        except Exception as e:
            raise RunError(str(e)) from None


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
    if sum(t.ByteSize() for t in model.graph.initializer) < limit:
        file.write_bytes(model.SerializeToString())
        return [file]
    data = file.with_name(f"{file.name}.data")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # saving moves the weights out of the model it is given
    onnx.save_model(copy, str(file), save_as_external_data=True, location=data.name, size_threshold=inline)
    return [file, data] if data.exists() else [file]
