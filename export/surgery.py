"""Graph surgery: an ONNX classifier with global average pooling becomes a response graph (stub)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx


@dataclass(frozen=True)
class ResponseGraph:
    """A response graph in memory; see `response_graph`."""

    model: onnx.ModelProto
    bias: np.ndarray
    stride: int
    input_name: str
    height: int | None
    width: int | None
    dynamic_batch: bool
    multi_label: bool
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> int:
        return int(self.bias.shape[0])


def response_graph(
    model: onnx.ModelProto, *, keep_classes: Sequence[int] | None = None, output: str | None = None
) -> ResponseGraph:
    """Turn a classifier into its response graph."""
    raise NotImplementedError
