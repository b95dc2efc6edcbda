"""How far a faster form of the network is from the fp32 graph, on real images and in the maps' own terms.

Any two networks can be compared: a TensorRT plan with ONNX Runtime, an int8 graph with the fp32 one. `Comparison`
measures, everywhere: the relative error of the responses, IoU and overlap of the maps made of them. Two ways lead
there. `compare` gives both networks the inputs that the method makes, every scale of the picture, then the same
with erased what the first map shows (method/README.md §1, §3 step 1), and tells, where ground truth is given, the
change of the best mIoU (§4). Searches that try hundreds of graphs compare one view a picture
(precision/pictures.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from infercam.engine.bundle import Manifest
from infercam.engine.common.errors import BackendError, InputError
from infercam.engine.data.images import read_image
from infercam.engine.data.sources import Item
from infercam.engine.evaluation.evaluate import read_mask
from infercam.engine.evaluation.histogram import JointHistogram
from infercam.engine.evaluation.scores import summarise
from infercam.engine.method import host_ops, reference
from infercam.engine.method.geometry import ViewSizes
from infercam.engine.method.reference import Network
from infercam.export.runtime import GraphSession, RunError

Float = NDArray[np.float32]

SCALES = (1.0, 0.5, 1.5, 2.0)
MAP_THRESHOLD = 0.3
"""Of the normalised map: what counts as the object when the overlap is taken."""
_ERASED = 0.7  # normalised response that the method erases
_NOT_FINITE = 1e9  # error of a response with infinities or NaN in it: JSON has no infinity


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tolerance(_Strict):
    """What a network may miss by, and still be used in the fp32 one's place."""

    response_error: float = Field(gt=0, description="mean over views of the largest relative difference")
    iou: float = Field(ge=0, le=1, description="least mean IoU of the thresholded maps")
    miou_drop: float = Field(ge=0, description="most percentage points of best mIoU lost")


TOLERANCES = {
    "fp32": Tolerance(response_error=1e-3, iou=0.995, miou_drop=0.1),
    "tf32": Tolerance(response_error=1e-2, iou=0.99, miou_drop=0.1),
    "fp16": Tolerance(response_error=2e-2, iou=0.99, miou_drop=0.1),
    "bf16": Tolerance(response_error=0.1, iou=0.97, miou_drop=0.3),
    "int8": Tolerance(response_error=0.3, iou=0.9, miou_drop=0.5),
    "fp8": Tolerance(response_error=0.3, iou=0.9, miou_drop=0.5),
}


class Fidelity(_Strict):
    """What a comparison found; errors relative to the larger magnitude of the two, IoU and mIoU in 0..1."""

    images: int
    views: int = Field(description="inputs that both networks were given")
    maps: int = Field(description="pairs of class maps of which at least one is not empty")
    response_error: float = Field(description="mean over views")
    worst_response_error: float
    map_threshold: float = MAP_THRESHOLD
    iou: float | None = Field(description="mean over maps; None where every map is empty")
    worst_iou: float | None
    worst_image: str | None = Field(description="the image of worst_iou")
    masks: int = Field(description="images with ground truth")
    reference_miou: float | None = None
    candidate_miou: float | None = None

    @property
    def miou_drop(self) -> float | None:
        """Percentage points of best mIoU lost; None without ground truth."""
        if self.reference_miou is None or self.candidate_miou is None:
            return None
        return 100 * (self.reference_miou - self.candidate_miou)

    def missed(self, tolerance: Tolerance) -> str | None:
        """What is out of tolerance, in a few words; None if nothing is."""
        if not self.response_error <= tolerance.response_error:
            return f"responses differ by {self.response_error:.2g} (at most {tolerance.response_error:g})"
        if self.iou is not None and not self.iou >= tolerance.iou:
            return f"IoU of the maps is {self.iou:.4f} (at least {tolerance.iou:g})"
        if self.miou_drop is not None and not self.miou_drop <= tolerance.miou_drop:
            return f"best mIoU falls by {self.miou_drop:.2f} points (at most {tolerance.miou_drop:g})"
        return None

    def line(self) -> str:
        """The figures on one line."""
        parts = [
            f"{self.images} images, {self.views} views",
            f"response error {self.response_error:.1e} (worst {self.worst_response_error:.1e})",
        ]
        if self.iou is not None:
            parts.append(f"IoU at {self.map_threshold:g}: {self.iou:.4f} (worst {self.worst_iou:.4f})")
        if self.miou_drop is not None:
            parts.append(f"best mIoU {-self.miou_drop:+.2f} points on {self.masks} masks")
        return "; ".join(parts)


@dataclass(frozen=True)
class Sample:
    """One picture to compare on."""

    id: str
    pixels: NDArray[np.uint8] = field(repr=False)
    classes: Sequence[int] | None = None
    """Whose maps are compared; None: those in `mask`, or those that the reference network predicts."""
    mask: NDArray[np.uint8] | None = field(default=None, repr=False)
    """Ground truth H×W: 0 background, c + 1 class c, 255 ignored."""


def read_samples(
    items: Iterable[Item], classes_of: Callable[[Item], list[int]] | None = None, masks: bool = True
) -> Iterator[Sample]:
    """Pictures, read one at a time, with their masks where the source has some (value c + 1 is the network's class
    c: where that is not so, `masks` is False); raises InputError."""
    for item in items:
        mask = read_mask(item.mask) if masks and item.mask is not None and item.mask.is_file() else None
        classes = None if classes_of is None else classes_of(item)
        yield Sample(item.id, read_image(item.path), classes, mask)


def compare(
    reference_network: Network,
    candidate: Network,
    samples: Iterable[Sample],
    manifest: Manifest,
    *,
    scales: Sequence[float] = SCALES,
    watch: Callable[[int], None] | None = None,
    scores: Callable[[Float], NDArray] | None = None,
) -> Fidelity:
    """Run both networks on the samples and compare responses and maps.

    Networks take N×3×h×w float32, normalised, and give N×C×h'×w' before ReLU. A graph of one fixed size gets the
    picture at that size alone. `scores`: the reference's, N×C, by which the classes of a sample without any are
    chosen; needed where they are no means of the response plus a constant, else they are made of it. Memory does not
    grow with the samples; `watch` is called with 1 after each.
    Raises InputError where there is no sample or a mask does not fit, BackendError as the networks do.
    """
    seen = _Seen(len(manifest.classes))
    for sample in samples:
        _compare_one(reference_network, candidate, sample, manifest, scales, seen, scores)
        if watch is not None:
            watch(1)
    return seen.summary()


def relative_error(a: NDArray, b: NDArray) -> float:
    """Largest difference of two arrays, relative to the larger of their magnitudes (0 if both are zero)."""
    scale = max(float(np.abs(a).max(initial=0)), float(np.abs(b).max(initial=0)))
    return float(np.abs(a - b).max(initial=0)) / scale if scale else 0.0


class OnnxNetwork:
    """A graph of the bundle in ONNX Runtime on all cores: a Network; raises MissingExtra or BackendError."""

    def __init__(self, graph: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        try:
            self._session = GraphSession(graph)
        except RunError as e:
            raise BackendError(f"{graph}: ONNX Runtime cannot load it: {e}") from None

    def __call__(self, x: Float) -> Float:
        return np.asarray(self._session.run(x, [self._manifest.response])[0], np.float32)

    def scores(self, x: Float) -> Float:
        """N×C, of normalised pictures N×3×h×w."""
        return np.asarray(self._session.run(x, [self._manifest.scores])[0], np.float32)


def predicted(scores: NDArray, multi_label: bool = True) -> list[int]:
    """The classes whose maps are compared where nobody names them: those that the scores predict, the best one where
    they predict none (method/README.md §1).

    scores: logits (C,). Positive logits are probabilities above a half; a single-label classifier has one class.
    """
    positive = np.flatnonzero(scores > 0).tolist() if multi_label else []
    return positive or [int(scores.argmax())]


def maps_of(responses: Sequence[Float], shape: tuple[int, int]) -> Float:
    """Normalised maps K×H×W in 0..1 at `shape` (H, W), of one picture's responses K×h×w before ReLU, one a view."""
    count = len(responses[0])
    total = host_ops.sum_views([(r, None) for r in responses], count, *shape)
    return reference.normalised(total) if count else total


@dataclass(frozen=True)
class Agreement:
    """Of some pictures' maps with the reference's (1 is perfect, but for the errors, where 0 is)."""

    views: int
    maps: int
    """Pairs of maps of which at least one is not empty at MAP_THRESHOLD; without any, the maps agree."""
    error: float
    """Largest difference of the responses relative to the largest response, mean over views."""
    worst_error: float
    iou: float
    """Intersection over union of the maps above MAP_THRESHOLD, mean over maps."""
    worst_iou: float
    worst_image: str | None
    """The picture of worst_iou; None without maps."""
    overlap: float
    """Sum of the smaller over sum of the larger map value, mean over maps: the smooth form of `iou`."""


class Comparison:
    """Gathers the agreement over pictures, one `add` each."""

    def __init__(self) -> None:
        self._errors: list[float] = []
        self._maps: list[tuple[float, str, float]] = []  # IoU, picture, overlap

    def add(
        self,
        id: str,
        views: Sequence[tuple[Float, Float]],
        classes: Sequence[int],
        shape: tuple[int, int],
    ) -> tuple[Float, Float]:
        """Both networks' responses C×h×w to each view of one picture of `shape` (H, W); `classes`: whose maps count.

        Returns both maps K×H×W. A candidate that is not finite (an overflow) agrees on nothing.
        """
        finite = all(np.isfinite(b).all() for _, b in views)
        self._errors += [relative_error(a, b) if np.isfinite(b).all() else _NOT_FINITE for a, b in views]
        kept = list(classes)
        ours = maps_of([a[kept] for a, _ in views], shape)
        theirs = maps_of([b[kept] if finite else np.zeros_like(b[kept]) for _, b in views], shape)
        for a, b in zip(ours, theirs, strict=True):
            x, y = a > MAP_THRESHOLD, b > MAP_THRESHOLD
            union = np.count_nonzero(x | y)
            if union:
                overlap = float(np.minimum(a, b).sum()) / float(np.maximum(a, b).sum())
                self._maps.append((float(np.count_nonzero(x & y) / union), id, overlap))
        return ours, theirs

    def result(self) -> Agreement:
        """Raises InputError where nothing was compared."""
        if not self._errors:
            raise InputError("no images to compare on")
        worst = min(self._maps, default=(1.0, None, 1.0))
        ious, overlaps = [m[0] for m in self._maps], [m[2] for m in self._maps]
        return Agreement(
            views=len(self._errors),
            maps=len(self._maps),
            error=float(np.mean(self._errors)),
            worst_error=max(self._errors),
            iou=float(np.mean(ious)) if ious else 1.0,
            worst_iou=worst[0],
            worst_image=worst[1],
            overlap=float(np.mean(overlaps)) if overlaps else 1.0,
        )


class _Seen:
    """What has been compared so far."""

    def __init__(self, classes: int) -> None:
        self.images = 0
        self.agreement = Comparison()
        self.classes = classes
        self.histograms: tuple[JointHistogram, ...] = ()  # where there is ground truth: it allows 254 classes
        self.masks = 0

    def count(self, maps: Sequence[Float], classes: list[int], mask: NDArray[np.uint8], id: str) -> None:
        """Both networks' maps of one picture against its ground truth; raises InputError where that does not fit."""
        self.histograms = self.histograms or (JointHistogram(self.classes), JointHistogram(self.classes))
        for histogram, m in zip(self.histograms, maps, strict=True):
            histogram.add(m, classes, mask, id)
        self.masks += 1

    def summary(self) -> Fidelity:
        found = self.agreement.result()
        # Masks without any class tell nothing of the maps: no figure of theirs.
        scored = bool(self.histograms) and bool(self.histograms[0].true[:, 1:].any())
        mious = [summarise(h).all.miou for h in self.histograms] if scored else [None, None]
        return Fidelity(
            images=self.images,
            views=found.views,
            maps=found.maps,
            response_error=found.error,
            worst_response_error=found.worst_error,
            iou=found.iou if found.maps else None,
            worst_iou=found.worst_iou if found.maps else None,
            worst_image=found.worst_image,
            masks=self.masks,
            reference_miou=mious[0],
            candidate_miou=mious[1],
        )


def _compare_one(
    reference_network: Network,
    candidate: Network,
    sample: Sample,
    manifest: Manifest,
    scales: Sequence[float],
    seen: _Seen,
    scores: Callable[[Float], NDArray] | None,
) -> None:
    """One picture: its plain views, then the views with erased what the reference's map shows."""
    spec = manifest.input
    height, width = sample.pixels.shape[:2]
    of_network = ViewSizes.of_network(spec)
    sizes = list(dict.fromkeys(of_network.of(height, width, scale) for scale in scales))
    inputs = [reference.normalise(reference.resize_pixels(sample.pixels, *size), spec) for size in sizes]
    classes: list[int] | None = None if sample.classes is None else list(sample.classes)
    left: NDArray[np.bool_] | None = None
    for _ in range(2):
        pairs: list[tuple[Float, Float]] = []
        for x, size in zip(inputs, sizes, strict=True):
            view = x if left is None else reference.erase(x, reference.resize_nearest(left, *size))
            pairs.append((reference_network(view[None])[0], candidate(view[None])[0]))
        if classes is None:
            given = None if scores is None or sample.mask is not None else scores(inputs[0][None])[0]
            classes = _classes(sample, pairs[0][0], manifest, given)
        maps = seen.agreement.add(sample.id, pairs, classes, (height, width))
        if left is None and sample.mask is not None:
            seen.count(maps, classes, sample.mask, sample.id)
        left = maps[0].max(axis=0, initial=0) < np.float32(_ERASED)
    seen.images += 1


def _classes(sample: Sample, response: Float, manifest: Manifest, scores: NDArray | None) -> list[int]:
    """The classes in the mask; without one those that the scores predict, or the response, one at least."""
    if sample.mask is not None:
        return [int(v) - 1 for v in np.unique(sample.mask) if 0 < v <= len(manifest.classes)]
    if scores is None:
        if not manifest.scores_are_means:
            raise InputError("the bundle's scores are not made of its response: give the network's own")
        scores = response.mean(axis=(1, 2), dtype=np.float64) + manifest.bias
    return predicted(scores, manifest.multi_label)


class FidelityReport(_Strict):
    """report.json: the figures, the tolerance, and what misses it (None: nothing)."""

    missed: str | None
    fidelity: Fidelity
    tolerance: Tolerance

    @classmethod
    def of(cls, fidelity: Fidelity, tolerance: Tolerance) -> FidelityReport:
        return cls(missed=fidelity.missed(tolerance), fidelity=fidelity, tolerance=tolerance)
