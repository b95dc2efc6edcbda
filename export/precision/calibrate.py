"""What the tensors of a graph hold on real pictures: their largest magnitudes, and where to cut them to quantise.

Magnitudes are counted in bins of equal ratio (1.1 % wide), so that nothing need be known of their range
beforehand. The graph itself takes the maxima, and a grid of pixels of every tensor for the counts, so that memory
stays small however large the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from infercam.engine.common.errors import ExportError
from infercam.export.graph.index import Graph, fresh_name
from infercam.export.precision.quantise import QuantisedType, rounding
from infercam.export.runtime import GraphSession, RunError

_LOWEST, _HIGHEST = -24, 40  # powers of two
_PER_OCTAVE = 64
_STEP = 3  # every third pixel of every third row is counted

CLIPS = ("largest", "99.99 %", "99.9 %", "least squares")
"""Rules for where to cut a tensor; see Magnitudes.clip."""


@dataclass
class Magnitudes:
    """Counts of one tensor's absolute values over all images."""

    largest: float = 0.0
    counts: np.ndarray = field(
        default_factory=lambda: np.zeros((_HIGHEST - _LOWEST) * _PER_OCTAVE, dtype=np.int64)
    )
    zeros: int = 0
    """Values too small to count, zero among them."""

    def add(self, sample: np.ndarray, largest: float) -> None:
        values = np.abs(sample[np.isfinite(sample)]).astype(np.float64)
        seen = values[values >= 2.0**_LOWEST]
        bins = ((np.log2(seen) - _LOWEST) * _PER_OCTAVE).astype(np.int64)
        self.counts += np.bincount(np.minimum(bins, len(self.counts) - 1), minlength=len(self.counts))
        self.zeros += values.size - seen.size
        self.largest = max(self.largest, largest)

    def clip(self, rule: str, kind: QuantisedType) -> float:
        """Where `rule` cuts: at the largest magnitude, a percentile, or with the least squared error."""
        if rule == "largest" or not self.counts.any():
            return self.largest
        if rule == "least squares":
            return self._least_squares(kind)
        return self._percentile(float(rule.removesuffix(" %")) / 100)

    def _percentile(self, share: float) -> float:
        upto = self.zeros + np.cumsum(self.counts)
        at = int(np.searchsorted(upto, share * upto[-1]))
        return min(self.largest, float(_edges()[at + 1]))

    def _least_squares(self, kind: QuantisedType) -> float:
        used = np.flatnonzero(self.counts)
        edges = _edges()
        centres = np.sqrt(edges[used] * edges[used + 1])
        weights = self.counts[used]
        candidates = self.largest * 2.0 ** -np.arange(0, 4, 0.125)
        errors = [(weights * (rounding(centres, c, kind) - centres) ** 2).sum() for c in candidates]
        return float(candidates[int(np.argmin(errors))])


def _edges() -> np.ndarray:
    return 2.0 ** (np.arange((_HIGHEST - _LOWEST) * _PER_OCTAVE + 1) / _PER_OCTAVE + _LOWEST)


def magnitudes(
    model: ModelProto,
    tensors: Sequence[str],
    inputs: Iterable[np.ndarray],
    watch: Callable[[], None] = lambda: None,
) -> dict[str, Magnitudes]:
    """Magnitudes of float32 `tensors` over normalised pictures (each float32 1×3×H×W); `watch` after each one.

    Raises ExportError where the graph does not run.
    """
    found = {t: Magnitudes() for t in tensors}
    try:
        session = GraphSession(_watching(model, list(found)))
        for x in inputs:
            outputs = session.run(x)
            for i, name in enumerate(found):
                found[name].add(outputs[2 * i + 1], float(outputs[2 * i]))
            watch()
    except RunError as e:
        raise ExportError(f"calibration: the graph does not run: {e}") from None
    return found


def _watching(model: ModelProto, tensors: list[str]) -> ModelProto:
    """A copy whose outputs are, for each tensor, its largest magnitude and a grid of its values."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = Graph(model)
    constants = {"starts": [0, 0], "ends": [1 << 40] * 2, "axes": [2, 3], "steps": [_STEP] * 2}
    names = {k: fresh_name(copy, f"grid.{k}") for k in constants}
    for key, value in constants.items():
        copy.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), names[key]))
    del copy.graph.output[:]
    for tensor in tensors:
        size, peak = fresh_name(copy, f"{tensor}.abs"), fresh_name(copy, f"{tensor}.peak")
        copy.graph.node.append(helper.make_node("Abs", [tensor], [size]))
        copy.graph.node.append(helper.make_node("ReduceMax", [size], [peak], keepdims=0))
        values = tensor
        if graph.rank(tensor) == 4:
            values = fresh_name(copy, f"{tensor}.grid")
            copy.graph.node.append(helper.make_node("Slice", [tensor, *names.values()], [values]))
        else:
            values = fresh_name(copy, f"{tensor}.values")
            copy.graph.node.append(helper.make_node("Identity", [tensor], [values]))
        for name in (peak, values):
            copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    del copy.graph.value_info[:]
    return copy


def float_tensors(model: ModelProto) -> list[str]:
    """Float32 tensors that the graph's nodes make, those of constants left out."""
    graph = Graph(model)
    return [
        o
        for n in graph.proto.node
        if n.op_type != "Constant"
        for o in n.output
        if o and graph.elem_type(o) == TensorProto.FLOAT
    ]
