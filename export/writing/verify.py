"""Checking a response graph against the classifier it came from, before anything is written.

On random input and on pictures, of several sizes and batches:
    mean over h, w of response, plus bias  =  scores          (engine/method/README.md §1; each image's own bias)
    scores                                 =  the source's logits
and two different pictures must give different maps. Of a bundle without a decomposition the first is not asked;
instead the response must have the size that the stride says, and, of one input, be the same when the graph is run
again. What the trials of sizes have run before is not run again for anything else. Differences are relative to the
larger magnitude of the two arrays compared, so a tolerance means the same for logits of 0.01 and of 100. Where
float32's own rounding moves a network's logits further than that (`_rounding`), that is the tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from infercam.engine.bundle import InputSpec, Verification
from infercam.engine.common.errors import ExportError
from infercam.engine.method.geometry import ViewSizes
from infercam.engine.method.reference import normalise
from infercam.export.compare import relative_error
from infercam.export.graph.surgery import ResponseGraph
from infercam.export.graph.trials import LARGE_STEP, Trials, noise
from infercam.export.runtime import RunError

Scores = Callable[[np.ndarray], np.ndarray]

MAX_IMAGES = 8
_LONGEST_SIDE = 320
_DISTINCT = 1e-5
_HALF = 2e-2
"""Tolerance against a source that rounds every tensor to half precision."""
_ULP = 2.0**-23
_DRAWS = 3
_MARGIN = 10.0
"""Over what rounding the input alone does: every layer rounds."""
_ILL = 1e-2
"""However badly conditioned a network is, no larger difference passes."""


class Disagreement(ExportError):
    """The response graph does not compute what the source does."""


class SourceLimit(Exception):
    """The source cannot run this shape (a fixed size or batch): nothing to compare with."""


@dataclass(frozen=True)
class Trial:
    """One input: what it is called in the manifest, the array (N, 3, H, W), normalised, whether of different
    textures."""

    name: str
    array: np.ndarray
    textures: bool = False


def verify(
    graph: ResponseGraph,
    source_scores: Scores,
    spec: InputSpec,
    *,
    images: Sequence[np.ndarray] = (),
    tolerance: float = 1e-4,
) -> Verification:
    """Run every check; returns what the manifest records.

    `images` are (H, W, 3) uint8 RGB; at most MAX_IMAGES of them are used, shrunk to 320 pixels. Raises
    ExportError saying which check failed, on which input and by how much.
    """
    with Trials(graph.model) as session:
        return _verified(session, graph, source_scores, spec, images, tolerance)


def _verified(
    session: Trials,
    graph: ResponseGraph,
    source_scores: Scores,
    spec: InputSpec,
    images: Sequence[np.ndarray],
    tolerance: float,
) -> Verification:
    inputs: list[str] = []
    source_error = 0.0
    score_error = 0.0 if graph.decomposition == "mean" else None
    compared = 0
    reason = ""
    pair: np.ndarray | None = None
    for i, trial in enumerate(trials(graph, spec, images)):
        scores, response, bias = _run(session, trial, graph)
        if trial.textures and len(response) > 1:
            pair = response[:2]
        if score_error is None:
            _check_map(trial, graph, response)
            if not i and not np.array_equal(response, _run(session, trial, graph, again=True)[1]):
                raise Disagreement(f"verification: the response differs between two runs on {trial.name}")
        else:
            score_error = max(score_error, _check_mean(trial, scores, response, bias, tolerance))
        try:
            theirs = np.asarray(source_scores(trial.array), np.float32)
        except SourceLimit as e:
            reason = str(e)
            inputs.append(f"{trial.name} (not compared: {reason})")
            continue
        error = _source_error(trial, scores, theirs)
        allowed = max(tolerance, _HALF) if {"float16", "bfloat16"} & set(graph.types) else tolerance
        remark = ""
        if not error <= allowed:
            rounding = _rounding(trial, (lambda x: session.run(x)[0], source_scores), (scores, theirs))
            if not error <= min(_MARGIN * rounding, _ILL):
                raise Disagreement(
                    f"verification: the scores differ from the source's by {error:.2g} (relative; at most "
                    f"{allowed:g}) on {trial.name}"
                )
            remark = f" (rounding its input alone moves the scores by {rounding:.1g})"
        source_error = max(source_error, error)
        inputs.append(trial.name + remark)
        compared += 1
    if not compared:
        raise ExportError(f"verification: the source ran on none of the inputs: {reason}")
    _check_distinct(_two_textures(session, graph, spec) if pair is None else pair)
    return Verification(
        inputs=inputs, tolerance=tolerance, max_score_error=score_error, max_source_error=source_error
    )


def trials(graph: ResponseGraph, spec: InputSpec, images: Sequence[np.ndarray] = ()) -> Iterator[Trial]:
    """Random arrays, generated textures and the given images, as far as the graph's free dimensions go."""
    sizes = _sizes(graph)
    batches = (1, 2, 3) if graph.dynamic_batch else (1, 1, 1)
    if graph.height is None:
        noises = textures = list(zip(batches, sizes, strict=True))
        textures = list(zip(reversed(batches), sizes, strict=True))
    else:  # of one size only what differs
        noises = [(batches[0], sizes[0]), (batches[2], sizes[0])]
        textures = [(batches[1], sizes[0])] * (1 if graph.dynamic_batch else 2)
    for seed, (n, (h, w)) in enumerate(noises):
        yield Trial(f"random {n}x3x{h}x{w}", _noise(n, h, w, seed, graph))
    for seed, (n, (h, w)) in enumerate(textures):
        yield _textures(n, h, w, spec, seed if graph.height else 0)
    if graph.source_size is not None and graph.height is None and graph.source_size != graph.base:
        h, w = graph.source_size
        yield Trial(f"random 1x3x{h}x{w}", _noise(1, h, w, 0, graph))
        yield _textures(1, h, w, spec)
    for i, image in enumerate(images[:MAX_IMAGES]):
        array = normalise(_fit(image, graph), spec)[None]
        yield Trial(f"image {i + 1}: {'x'.join(map(str, array.shape))}", array)


def _noise(n: int, height: int, width: int, seed: int, graph: ResponseGraph) -> np.ndarray:
    """Random numbers such as the source takes: those of the trials of sizes, which need not be run again."""
    if graph.whole_numbers:
        return np.random.default_rng(seed).integers(0, 256, (n, 3, height, width)).astype(np.float32)
    return noise(n, height, width, seed)


def _textures(n: int, height: int, width: int, spec: InputSpec, first: int = 0) -> Trial:
    array = np.stack([normalise(texture(height, width, first + i), spec) for i in range(n)])
    return Trial(f"textures {n}x3x{height}x{width}", array, textures=True)


def _sizes(graph: ResponseGraph) -> list[tuple[int, int]]:
    if graph.height is not None and graph.width is not None:
        return [(graph.height, graph.width)] * 3
    h, w = graph.base
    step, many = graph.stride, graph.multiple
    if many > 1:
        return [(h, w), (h + many, w), (h, w + (2 if many < LARGE_STEP else 1) * many)]
    # Maps of other sizes than those that were probed, and pictures that are no multiple of the stride.
    return [(h, w), (h + 4 * step + 1, w + 3 * step + step // 2), (h + step - 1, w + 5 * step)]


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """A generated uint8 RGB picture: gratings, discs and a little noise, different for every seed."""
    rng = np.random.default_rng(1000 + seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    picture = np.empty((height, width, 3))
    for c in range(3):
        fy, fx, phase = [*rng.uniform(-0.4, 0.4, 2), rng.uniform(0, 6.3)]
        picture[..., c] = 128 + 70 * np.sin(fy * y + fx * x + phase)
    for _ in range(4):
        cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.1, 0.3) * min(height, width)
        picture[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = rng.uniform(0, 255, 3)
    picture += rng.normal(0, 8, picture.shape)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _fit(image: np.ndarray, graph: ResponseGraph) -> np.ndarray:
    """Shrink to a cheap size (never below the smallest one that runs), or to the only size that runs."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ExportError(
            f"verification images must be (H, W, 3) uint8, not {image.shape} {image.dtype.name}"
        )
    if graph.height is not None and graph.width is not None:
        size = (graph.width, graph.height)
    else:
        ratio = min(1.0, _LONGEST_SIDE / max(image.shape[:2]))
        taken = ViewSizes(smallest=max(graph.smallest, min(graph.base)), multiple=graph.multiple)
        size = taken.of(image.shape[0], image.shape[1], ratio)[::-1]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


# --- the checks --------------------------------------------------------------------------------------------


def _run(
    session: Trials, trial: Trial, graph: ResponseGraph, *, again: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (N, C), response (N, C, h, w), and the bias: (C,), or (N, C) where it depends on the image."""
    try:
        scores, response, *more = session.run(trial.array, again=again)
    except RunError as e:
        raise ExportError(f"verification: the response graph fails on {trial.name}: {e}") from None
    n, classes = len(trial.array), graph.classes
    bias = more[0] if graph.per_image_bias else graph.bias
    if graph.affinity is not None:
        _check_affinity(trial, more[-1], response)
    shapes = (scores.shape, response.shape[:2], bias.shape)
    wanted = ((n, classes), (n, classes), (n, classes) if graph.per_image_bias else (classes,))
    if shapes != wanted or response.ndim != 4:
        raise ExportError(
            f"verification: {trial.name} gives scores {scores.shape}, a response {response.shape} and a bias "
            f"{bias.shape} for {classes} classes"
        )
    if not all(np.isfinite(x).all() for x in (scores, response, bias)):
        raise ExportError(
            f"verification: {trial.name} gives scores, a response or a bias that are not finite"
        )
    return scores, response, bias


def _check_affinity(trial: Trial, affinity: np.ndarray, response: np.ndarray) -> None:
    """A weight of at most 1 for every pair of the response's positions, the same in both directions."""
    n, positions = len(response), response.shape[2] * response.shape[3]
    good = affinity.shape == (n, positions, positions) and bool(
        np.all((affinity >= 0) & (affinity <= 1 + 1e-5))
    )
    if not good or relative_error(affinity, affinity.transpose(0, 2, 1)) > _DISTINCT:
        raise ExportError(
            f"verification: the affinity of {trial.name} is no symmetric table of weights for {positions} positions"
        )


def _check_mean(
    trial: Trial, scores: np.ndarray, response: np.ndarray, bias: np.ndarray, tolerance: float
) -> float:
    mean = response.astype(np.float64).mean(axis=(2, 3)) + bias
    error = relative_error(mean, scores)
    # Large responses that cancel in the mean leave their rounding.
    cancelled = _MARGIN * _ULP * float(np.abs(response).max()) / max(float(np.abs(scores).max()), 1e-30)
    if not error <= max(tolerance, min(cancelled, _ILL)):
        raise Disagreement(
            f"verification: mean of the response plus bias differs from the scores by {error:.2g} (relative; "
            f"at most {tolerance:g}) on {trial.name}"
        )
    return error


def _check_map(trial: Trial, graph: ResponseGraph, response: np.ndarray) -> None:
    """What a customary map must be: one cell for every `stride` pixels."""
    cells = tuple(side // graph.stride for side in trial.array.shape[2:])
    if response.shape[2:] != cells and graph.method != "recipro":  # whose one size was measured (dynamic.py)
        raise Disagreement(
            f"verification: the response is {response.shape[2:]} on {trial.name}, not {cells} (stride {graph.stride})"
        )


def _source_error(trial: Trial, scores: np.ndarray, theirs: np.ndarray) -> float:
    if theirs.shape != scores.shape:
        raise Disagreement(
            f"verification: the source gives scores {theirs.shape}, the response graph {scores.shape}, "
            f"on {trial.name}"
        )
    return relative_error(scores, theirs)


def _rounding(trial: Trial, networks: Sequence[Scores], scores: Sequence[np.ndarray]) -> float:
    """How far the scores move where the input is rounded otherwise: what float32 leaves undecided in a network."""
    rng = np.random.default_rng(0)
    found = 0.0
    for _ in range(_DRAWS):
        near = trial.array * (1 + _ULP * rng.choice([-1, 1], trial.array.shape)).astype(np.float32)
        for network, at in zip(networks, scores, strict=True):
            try:
                found = max(found, relative_error(np.asarray(network(near), np.float32), at))
            except (SourceLimit, RunError):  # it takes whole numbers only, say
                continue
    return found if np.isfinite(found) else 0.0


def _two_textures(session: Trials, graph: ResponseGraph, spec: InputSpec) -> np.ndarray:
    """The maps of two pictures, of a graph that takes one at a time."""
    h, w = graph.base if graph.height is None else (graph.height, graph.width or graph.height)
    return np.concatenate([_run(session, _textures(1, h, w, spec, seed), graph)[1] for seed in (0, 1)])


def _check_distinct(maps: np.ndarray) -> None:
    """A dead network (all weights zero, an input that is ignored) would pass every other check."""
    difference = relative_error(maps[0], maps[1])
    if difference < _DISTINCT:
        raise ExportError(
            f"verification: two different pictures give the same response (relative difference "
            f"{difference:.2g}): the classifier ignores its input, or its weights are empty"
        )
