"""A model's large weights kept in one file while the model is copied, changed and run many times (dynamic.py).

The models then hold places in the file in their stead: a copy costs nothing, and ONNX Runtime maps the file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnx import ModelProto
from onnx.external_data_helper import uses_external_data

from infercam.export.runtime import WEIGHTS_FOLDER, moved_to, weight_bytes

_FILE = "weights.bin"
_LARGE = 1 << 16


class Shelf:
    """Takes the weights of `model`, in place; `put_back` gives a copy of it its own again. A context manager."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._folder = tempfile.TemporaryDirectory(prefix="infercam-")

    def __enter__(self) -> Shelf:
        large = [t for t in self._model.graph.initializer if weight_bytes(t) > _LARGE]
        with Path(self._folder.name, _FILE).open("wb") as f:
            for tensor in large:
                tensor.CopyFrom(moved_to(f, tensor))
        self._model.metadata_props.add(key=WEIGHTS_FOLDER, value=self._folder.name)
        return self

    def put_back(self, model: ModelProto) -> None:
        """In place."""
        with Path(self._folder.name, _FILE).open("rb") as f:
            for tensor in model.graph.initializer:
                if uses_external_data(tensor):
                    where = {e.key: e.value for e in tensor.external_data}
                    f.seek(int(where["offset"]))
                    tensor.raw_data = f.read(int(where["length"]))
                    del tensor.external_data[:]
                    tensor.ClearField("data_location")
        kept = [p for p in model.metadata_props if p.key != WEIGHTS_FOLDER]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()
