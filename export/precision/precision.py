"""Graphs of other precisions for a bundle: fp16, bf16, int8, fp8, made from its fp32 graph and checked against it.

The precision is in the graph itself (types, Q/DQ nodes), so that TensorRT and ONNX Runtime run the same thing. All
choices (what stays in fp32, where activations are cut) are made by the agreement of response maps with the fp32
graph's on some of the images, and what comes out is checked on the others, on the CPU. A graph that misses its
tolerance is not put into the bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto

from infercam.engine.bundle import Bundle, PrecisionReport
from infercam.engine.common.errors import ExportError
from infercam.engine.method.reference import Network
from infercam.export.compare import TOLERANCES, Agreement, Fidelity, Sample, Tolerance, compare
from infercam.export.precision.calibrate import float_tensors, magnitudes
from infercam.export.precision.half import HALVES, HalfType, emulated, linear_layers, to_half
from infercam.export.precision.leave_out import fewest_left_out
from infercam.export.precision.pictures import LONGEST_SIDE, Reference, pictures, shrunk, textures
from infercam.export.precision.quantise import QUANTISED, QuantisedType, layers, prepared, quantised
from infercam.export.precision.scale_search import ALONE, Finish, ScaleChoice, ScaleSearch, unchanged
from infercam.export.runtime import GraphSession, RunError
from infercam.export.writing.bundle_update import put_graph

PRECISIONS = (*HALVES, *QUANTISED)
FEWEST_IMAGES = 8
CHECKED = 12
"""Images of the final check, at most: it looks at each in all views, plain and erased."""

Watch = Callable[[str], None]


def aim_of(tolerance: Tolerance) -> float:
    """The IoU of maps that the choice aims at: a third of the way from the least to 1, so that other images pass."""
    return tolerance.iou + (1 - tolerance.iou) / 3


@dataclass(frozen=True)
class PrecisionSettings:
    """How a graph is made. `rest`: precision of what is not quantised (fp32, fp16 or bf16)."""

    precision: str
    rest: str = "fp32"
    half_input: bool = False
    tolerance: Tolerance | None = None
    keep: tuple[str, ...] = ()
    """Nodes (by name) that stay in fp32 whatever the maps say."""
    longest_side: int = LONGEST_SIDE

    def checked(self) -> PrecisionSettings:
        """Itself; raises ExportError where the settings do not go together."""
        if self.precision not in PRECISIONS:
            raise ExportError(f"no precision '{self.precision}'; there are: {', '.join(PRECISIONS)}")
        if self.rest not in ("fp32", *HALVES):
            raise ExportError(f"the rest of a quantised graph is fp32, fp16 or bf16, not '{self.rest}'")
        if self.precision in HALVES and self.rest != "fp32":
            raise ExportError(f"--rest goes with int8 and fp8, not with {self.precision}")
        if self.half_input and self.half is None:
            raise ExportError("a float16 input goes with fp16 or bf16, or --rest fp16")
        return self

    @property
    def half(self) -> HalfType | None:
        return HALVES.get(self.precision) or HALVES.get(self.rest)

    @property
    def kind(self) -> QuantisedType | None:
        return QUANTISED.get(self.precision)

    @property
    def limits(self) -> Tolerance:
        return self.tolerance or TOLERANCES[self.precision]


def add_precision(
    bundle: Bundle,
    settings: PrecisionSettings,
    images: Sequence[np.ndarray] = (),
    watch: Watch = lambda what: None,
) -> PrecisionReport:
    """Make a graph of `settings.precision`, check it and put it into the bundle, replacing one of the same name.

    images: (H, W, 3) uint8 RGB, from where the classifier will be used. Every second one calibrates, the others
    check. Without any, halves are made and checked on generated textures; int8 and fp8 need at least 8.
    `watch` is told what is being tried. Raises ExportError, BundleError; nothing is written then.
    """
    settings.checked()
    if settings.kind and len(images) < FEWEST_IMAGES:
        raise ExportError(
            f"{settings.precision} is calibrated on your images: give at least {FEWEST_IMAGES} (--images)"
        )
    maker = _Maker(bundle, settings, images, watch)
    model, report = maker.make()
    put_graph(bundle.path, settings.precision, model, report)
    return report


class _Maker:
    """One graph on its way."""

    def __init__(
        self, bundle: Bundle, settings: PrecisionSettings, images: Sequence[np.ndarray], watch: Watch
    ) -> None:
        self.settings = settings
        self.manifest = bundle.manifest
        self.watch = watch
        self.given = bool(images)
        self.model = onnx.load(str(bundle.graph("fp32")))
        every = list(images) or textures()
        every = [shrunk(image, settings.longest_side) for image in every]
        self.calibration = pictures(every[::2], self.manifest)
        self.held_out = (every[1::2] or every)[:CHECKED]
        self._known = {x for n in self.model.graph.node for x in (n.name, *n.output)}

    def make(self) -> tuple[ModelProto, PrecisionReport]:
        settings = self.settings
        self.watch("the fp32 graph")
        session = self._session(self.model)
        self.reference = Reference(session, self.calibration, self.manifest)
        kept: dict[str, str] = {}
        finish: Finish = unchanged
        if settings.half is not None:
            finish, kept = self._half(settings.half)
        model = self.model
        choice = None
        if settings.kind is not None:
            emulate = (lambda m: emulated(finish(m))) if settings.half else finish
            choice, model = self._quantised(settings.kind, emulate)
            kept |= {f"{k} (not quantised)": _cost(v) for k, v in choice.left_out.items()}
        model = finish(model)
        found = self._check(session, self._session(emulated(model) if settings.half else model))
        return model, self._report(found, kept, choice)

    def _check(self, reference: GraphSession, candidate: GraphSession) -> Fidelity:
        """Compare on the images that chose nothing; raises ExportError where the tolerance is missed."""
        samples = [Sample(f"image {i + 1}", image) for i, image in enumerate(self.held_out)]
        self.watch(f"the check on {len(samples)} other images")
        try:
            scores = _scores(reference)
            found = compare(_network(reference), _network(candidate), samples, self.manifest, scores=scores)
        except RunError as e:
            raise ExportError(f"the {self.settings.precision} graph does not run: {e}") from None
        missed = found.missed(self.settings.limits)
        if missed:
            raise ExportError(
                f"the {self.settings.precision} graph is not good enough and was not added: {missed}, on "
                f"{len(samples)} images that it was not made on; give more images, keep layers with --keep, or "
                "accept it with --min-iou and --max-error"
            )
        return found

    def _half(self, half: HalfType) -> tuple[Finish, dict[str, str]]:
        """What turns a graph into one of that type, with the nodes that must stay in fp32 found by the maps."""
        self.watch("ranges of all tensors")
        found = magnitudes(self.model, float_tensors(self.model), self._arrays())
        ranges = {name: m.largest for name, m in found.items()}
        layers = linear_layers(self.model)
        forced = dict.fromkeys(self._asked(layers), "as asked")

        def convert(model: ModelProto, kept: dict[str, str]) -> ModelProto:
            return to_half(model, half, ranges=ranges, keep=kept, half_input=self.settings.half_input).model

        def lowered(parts: Sequence[str], limit: int | None = None) -> Agreement:
            self.watch(f"{len(parts)} of {len(layers)} layers in {half.name}" if len(parts) > 1 else parts[0])
            kept = forced | {x: "for the maps" for x in layers if x not in parts}
            return self.reference.agreement(self._session(emulated(convert(self.model, kept))), limit)

        free = [x for x in layers if x not in forced]
        aim = aim_of(self.settings.limits if self.settings.kind is None else TOLERANCES[half.name])
        _, costs, _ = fewest_left_out(
            free, lowered, lambda one: lowered([one], ALONE).overlap, aim, lowered(free)
        )
        keep = forced | {x: _cost(v) for x, v in costs.items()}
        kept = to_half(self.model, half, ranges=ranges, keep=keep).kept
        return lambda model: convert(model, keep), kept

    def _quantised(self, kind: QuantisedType, finish: Finish) -> tuple[ScaleChoice, ModelProto]:
        base = prepared(self.model, kind)
        every = layers(base, kind)
        asked = self._asked([x.label for x in every])
        chosen = [x for x in every if x.label not in asked]
        if not chosen:
            raise ExportError(f"the graph has no layer that can be put in {kind.name}")
        self.watch("magnitudes of the layers' inputs")
        found = magnitudes(base, list(dict.fromkeys(x.activation for x in chosen)), self._arrays())
        half_scales = self.settings.half is not None
        search = ScaleSearch(
            base,
            kind,
            chosen,
            found,
            self.reference,
            half_scales=half_scales,
            finish=finish,
            watch=self.watch,
        )
        choice = search.search(aim_of(self.settings.limits))
        return choice, quantised(base, kind, choice.layers, choice.clips, half_scales=half_scales)

    def _asked(self, labels: Sequence[str]) -> list[str]:
        """Those of `labels` that the user named; raises ExportError for a name that is none of them."""
        found = []
        for name in self.settings.keep:
            own = [label for label in labels if f"'{name}'" in label]
            if not own and name not in self._known:
                raise ExportError(f"--keep {name}: the graph has no layer of that name")
            found += own
        return found

    def _arrays(self) -> Iterator[np.ndarray]:
        return (picture.array(self.manifest) for picture in self.calibration)

    @staticmethod
    def _session(model: ModelProto) -> GraphSession:
        try:
            return GraphSession(model)
        except RunError as e:
            raise ExportError(f"ONNX Runtime cannot load the graph: {e}") from None

    def _report(self, found: Fidelity, kept: dict[str, str], choice: ScaleChoice | None) -> PrecisionReport:
        settings = self.settings
        how = (
            f"{settings.half.name} emulated: every tensor rounded, sums in fp32"
            if settings.half
            else "as it is"
        )
        what = "images" if self.given else "generated textures"
        made: dict[str, object] = {
            "calibrated on": len(self.calibration),
            "longest side": settings.longest_side,
        }
        if choice:
            made["cut at"] = dict(Counter(choice.rules.values()))
        return PrecisionReport(
            input_type="float16" if settings.half_input else "float32",
            rest=settings.half.name if settings.half else "fp32",
            quantised=len(choice.layers) if choice else 0,
            kept=[f"{name}: {why}" for name, why in kept.items()],
            settings=made,
            checked=f"{found.images} {what}, {found.views} views, on the CPU ({how})",
            response_error=found.response_error,
            map_iou=found.iou,
            worst_map_iou=found.worst_iou,
            max_error=settings.limits.response_error,
            min_iou=settings.limits.iou,
        )


def _network(session: GraphSession) -> Network:
    return lambda x: session.run(x)[1]


def _scores(session: GraphSession) -> Network:
    return lambda x: session.run(x)[0]


def _cost(overlap: float) -> str:
    return f"alone it takes {1 - overlap:.1%} of the maps' overlap"
