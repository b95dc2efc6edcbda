"""A model's large weights kept in one file while the model is copied, changed and run many times.

The models then hold places in the file in their stead: a copy costs nothing, ONNX Runtime maps the file, and so does
whoever asks for a weight's values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import uses_external_data

from infercam.export.runtime import (
    WEIGHTS_FOLDER,
    append,
    forget_folder,
    moved_to,
    reference_to,
    weight_bytes,
    weights_folder,
    with_weights,
)

LARGE = 1 << 16
"""Bytes from which on a weight is put on a shelf."""


@contextmanager
def open_shelf() -> Iterator[Shelf]:
    """A shelf of its own; its folder goes in the end."""
    with tempfile.TemporaryDirectory(prefix="infercam-") as folder:
        yield Shelf(folder)


class Shelf:
    """A folder with one file of weights, which any number of models share."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.file = Path(folder, f"{Path(folder).name}.bin")  # a name that no model's own weights have

    @classmethod
    def of(cls, model: ModelProto) -> Shelf | None:
        """The shelf that has a model's weights, if one has."""
        folder = weights_folder(model)
        return cls(folder) if folder else None

    def taken(self, model: ModelProto) -> ModelProto:
        """A copy without what the exporter noted, its large weights here."""
        with self.file.open("ab") as f:
            weights = (moved_to(f, t) if _is_large(t) else t for t in model.graph.initializer)
            light = with_weights(model, weights)
        self.note(light)
        return light

    def take(self, model: ModelProto) -> None:
        """Put a model's large weights here; in place."""
        with self.file.open("ab") as f:
            for tensor in filter(_is_large, model.graph.initializer):
                tensor.CopyFrom(moved_to(f, tensor))
        self.note(model)

    def put(self, tensor: TensorProto, values: bytes | memoryview) -> TensorProto:
        """What stands for a tensor of these bytes, put here."""
        with self.file.open("ab") as f:
            return reference_to(tensor, self.file.name, append(f, values), len(values))

    def has(self, tensor: TensorProto) -> bool:
        """Whether it was put here."""
        return any(e.key == "location" and e.value == self.file.name for e in tensor.external_data)

    def note(self, model: ModelProto) -> None:
        """Say in a model, some of whose weights were put here, where they are; in place."""
        forget_folder(model)
        model.metadata_props.add(key=WEIGHTS_FOLDER, value=self.folder)


def _is_large(tensor: TensorProto) -> bool:
    return weight_bytes(tensor) > LARGE and not uses_external_data(tensor)
