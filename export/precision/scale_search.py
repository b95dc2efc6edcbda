"""Which layers to quantise and where to cut their inputs, chosen by how well the response maps agree with fp32's.

First one rule for the whole graph; then, group of layers by group, whichever rule serves the maps best; then, if
the aim is missed, the layers that cost most on their own are left out, as few as reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from infercam.engine.common.errors import ExportError
from infercam.export.compare import Agreement
from infercam.export.precision.calibrate import CLIPS, Magnitudes
from infercam.export.precision.leave_out import fewest_left_out
from infercam.export.precision.pictures import Reference
from infercam.export.precision.quantise import Layer, QuantisedType, quantised
from infercam.export.runtime import GraphSession, RunError

_GROUPS = 6
ALONE = 3
"""Pictures on which each layer is tried alone: of the scales 1, 0.5 and 1.5."""
_WORTH = 1e-4  # of overlap, for a group's rule to be changed

Finish = Callable[[ModelProto], ModelProto]


def unchanged(model: ModelProto) -> ModelProto:
    """The Finish of a graph that needs none."""
    return model


@dataclass(frozen=True)
class ScaleChoice:
    """The outcome: layers to quantise, where to cut each activation, and what was left out."""

    layers: list[Layer]
    clips: dict[str, float]
    rules: dict[str, str]
    """Activation -> the name of its rule."""
    left_out: dict[str, float]
    """Layer -> the overlap of the maps when it alone was quantised."""
    agreement: Agreement
    """On the calibration pictures."""


class ScaleSearch:
    """`search()` does it. `finish` turns a quantised graph into one that runs here (see half.emulated)."""

    def __init__(
        self,
        model: ModelProto,
        kind: QuantisedType,
        layers: Sequence[Layer],
        magnitudes: Mapping[str, Magnitudes],
        reference: Reference,
        *,
        half_scales: bool = False,
        finish: Finish = unchanged,
        watch: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.model = model
        self.kind = kind
        self.layers = list(layers)
        self.reference = reference
        self.half_scales = half_scales
        self.finish = finish
        self.watch = watch
        self._clips = {
            (name, rule): found.clip(rule, kind) for name, found in magnitudes.items() for rule in CLIPS
        }

    def search(self, aim: float) -> ScaleChoice:
        """Choose; `aim` is the IoU of maps below which layers are left out. Raises ExportError."""
        rules, agreement = self._refined(*self._one_rule())
        by_label = {layer.label: layer for layer in self.layers}
        chosen, left_out, agreement = fewest_left_out(
            list(by_label),
            lambda labels: self._try([by_label[x] for x in labels], rules, f"{len(labels)} layers"),
            lambda one: self._try([by_label[one]], rules, f"{one} alone", ALONE).overlap,
            aim,
            agreement,
        )
        clips = {a: self._clips[a, r] for a, r in rules.items()}
        return ScaleChoice([by_label[x] for x in chosen], clips, rules, left_out, agreement)

    def _one_rule(self) -> tuple[dict[str, str], Agreement]:
        tried = []
        for rule in CLIPS:
            rules = {layer.activation: rule for layer in self.layers}
            tried.append((rules, self._try(self.layers, rules, f"all layers cut at {rule}")))
        return max(tried, key=lambda t: t[1].overlap)

    def _refined(self, rules: dict[str, str], best: Agreement) -> tuple[dict[str, str], Agreement]:
        activations = list(dict.fromkeys(layer.activation for layer in self.layers))
        for group in np.array_split(np.array(activations, dtype=object), min(_GROUPS, len(activations))):
            for rule in CLIPS:
                changed = rules | dict.fromkeys(group.tolist(), rule)
                if self._same(changed, rules):
                    continue
                found = self._try(self.layers, changed, f"layers from {group[0]}: {rule}")
                if found.overlap > best.overlap + _WORTH:
                    rules, best = changed, found
        return rules, best

    def _same(self, a: Mapping[str, str], b: Mapping[str, str]) -> bool:
        return all(self._clips[name, a[name]] == self._clips[name, b[name]] for name in a)

    def _try(
        self, layers: Sequence[Layer], rules: Mapping[str, str], what: str, limit: int | None = None
    ) -> Agreement:
        self.watch(what)
        clips = {name: self._clips[name, rule] for name, rule in rules.items()}
        graph = quantised(self.model, self.kind, layers, clips, half_scales=self.half_scales)
        try:
            session = GraphSession(self.finish(graph))
        except RunError as e:
            raise ExportError(f"the quantised graph does not load: {e}") from None
        return self.reference.agreement(session, limit)
