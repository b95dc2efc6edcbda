"""A CPU runtime's own arithmetic, checked by the maps like a graph of another precision, and against the clock.

OpenVINO computes the fp32 graph in bf16, or the bundle's int8 graph in integers: neither is in a graph that ONNX
Runtime could check. So the runtime itself is run here, on this machine, and what is within the tolerance and saves
time is recorded in the bundle's manifest, where `--backend auto` finds it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from infercam.engine.bundle import Bundle, Manifest, RuntimeReport
from infercam.engine.common.errors import ExportError
from infercam.engine.method.backend import ViewRefused
from infercam.engine.runners.cpu_network import CpuNetwork, Float
from infercam.engine.runners.openvino import LOWERED, OpenvinoNetwork, cpu_name
from infercam.engine.runners.ort_cpu import OrtCpuNetwork
from infercam.export.compare import Fidelity, Sample, Tolerance, compare
from infercam.export.precision.pictures import shrunk, textures
from infercam.export.precision.precision import CHECKED, PrecisionSettings, Watch, aim_of
from infercam.export.writing.bundle_update import put_runtime

RUNTIMES = ("openvino",)
LEAST_SPEED = 1.05
"""Less cannot be told from noise."""
KEPT = (0, 3, 6, 9, 12, 18)
"""Layers from the picture on that may stay in fp32 where bf16 is tried, the fewest first."""
CHOOSE = 8
"""Images, in two scales, by which it is chosen how many: by 4 it was chance (`mobilenetv2`: 12 layers, not 6)."""
_WORTH = 0.003  # of IoU, for more layers to be kept


def checked(settings: PrecisionSettings, runtime: str) -> PrecisionSettings:
    """`settings` themselves; raises ExportError for an unknown runtime, or what only a graph can have."""
    if runtime not in RUNTIMES:
        raise ExportError(f"--runtime {runtime}: there is {', '.join(RUNTIMES)}")
    if settings.precision not in LOWERED:
        raise ExportError(f"{runtime} computes in {', '.join(LOWERED)}, not in '{settings.precision}'")
    if settings.keep or settings.half_input or settings.rest != "fp32":
        raise ExportError("--keep, --half-input and --rest are of graphs: they do not go with --runtime")
    return settings


def add_runtime(
    bundle: Bundle,
    settings: PrecisionSettings,
    images: Sequence[NDArray[np.uint8]] = (),
    watch: Watch = lambda what: None,
) -> RuntimeReport:
    """Compare OpenVINO in `settings.precision` with ONNX Runtime in fp32 on images, and record it in the bundle.

    images: (H, W, 3) uint8 RGB: a third choose how many layers stay in fp32 (CHOOSE of them at most), of the others
    at most CHECKED are checked; without any, generated textures. Raises ExportError where the maps differ by more
    than the tolerance or no time is saved, and what the network raises (MissingExtra, BackendError, BundleError);
    nothing is written then.
    """
    precision, within = settings.precision, settings.limits
    every = [shrunk(i, settings.longest_side) for i in list(images) or textures()]
    choosing = _samples(every[::3][:CHOOSE])
    judging = _samples(([i for n, i in enumerate(every) if n % 3] or every)[:CHECKED])
    reference = TimedNetwork(OrtCpuNetwork(bundle), bundle.manifest)
    try:
        kept = _fewest_kept(bundle, reference, choosing, within, watch) if precision == "bf16" else 0
        candidate = TimedNetwork(OpenvinoNetwork(bundle, 1, precision, kept), bundle.manifest)
        watch(f"the check on {len(judging)} images")
        found = compare(reference, candidate, judging, bundle.manifest, scores=reference.scores)
    except ViewRefused as e:
        raise ExportError(f"OpenVINO in {precision} does not run: {e}") from None
    if missed := found.missed(within):
        raise ExportError(
            f"OpenVINO in {precision} is not good enough and was not recorded: {missed}, on {len(judging)} images; "
            "accept it with --min-iou and --max-error"
        )
    speed = reference.seconds / candidate.seconds
    if speed < LEAST_SPEED:
        raise ExportError(
            f"OpenVINO in {precision} saves nothing here: {speed:.2f} times as fast; not recorded"
        )
    what = "images" if images else "generated textures"
    report = _report(precision, kept, found, within, speed, what)
    put_runtime(bundle.path, report)
    return report


def _samples(images: Sequence[NDArray[np.uint8]]) -> list[Sample]:
    return [Sample(f"image {i + 1}", image) for i, image in enumerate(images)]


def _fewest_kept(
    bundle: Bundle, reference: TimedNetwork, samples: Sequence[Sample], within: Tolerance, watch: Watch
) -> int:
    """How many of the first layers stay in fp32: the fewest that reach the aim, or that come near the best."""
    aim = aim_of(within)
    ious: dict[int, float] = {}
    responses: dict[bytes, Float] = {}

    def known(x: Float) -> Float:
        key = x.tobytes()
        if key not in responses:
            responses[key] = reference(x)
        return responses[key]

    for kept in KEPT:
        watch(f"the first {kept} layers in fp32")
        candidate = TimedNetwork(OpenvinoNetwork(bundle, 1, "bf16", kept), bundle.manifest)
        found = compare(
            known, candidate, samples, bundle.manifest, scales=(1.0, 0.5), scores=reference.scores
        )
        ious[kept] = 1.0 if found.iou is None else found.iou
        if ious[kept] >= aim:
            return kept
    return next(kept for kept, iou in ious.items() if iou >= max(ious.values()) - _WORTH)


def _report(
    precision: str, kept: int, found: Fidelity, within: Tolerance, speed: float, what: str
) -> RuntimeReport:
    return RuntimeReport(
        runtime="openvino",
        precision=precision,
        version=version("openvino"),
        cpu=cpu_name(),
        kept=kept,
        checked=f"{found.images} {what}, {found.views} views",
        response_error=found.response_error,
        map_iou=found.iou,
        worst_map_iou=found.worst_iou,
        max_error=within.response_error,
        min_iou=within.iou,
        speed=round(speed, 2),
    )


class TimedNetwork:
    """A Network whose CPU seconds are counted, but for the first run of each size, which prepares kernels.

    `compare` gives every view twice, plain and with a part erased.
    """

    def __init__(self, network: CpuNetwork, manifest: Manifest) -> None:
        self.seconds = 0.0
        self._network = network
        self._manifest = manifest
        self._runs: Counter[tuple[int, ...]] = Counter()

    def __call__(self, x: Float) -> Float:
        began = time.process_time()
        response = self._network.run([self._manifest.response], x)[0]
        if self._runs[x.shape]:
            self.seconds += time.process_time() - began
        self._runs[x.shape] += 1
        return np.asarray(response, np.float32)

    def scores(self, x: Float) -> Float:
        """N×C, of normalised pictures N×3×h×w."""
        return np.asarray(self._network.run([self._manifest.scores], x)[0], np.float32)
