"""A plan from settings: for which runtime and cards, the shapes it is tuned for, the images it is checked on, how far
it may be off.

The work is in profiles.py (shapes), builder.py (TensorRT) and build.py (checking, installing);
`build_from_settings` is what a Python user calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast, get_args

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import InputError
from infercam.engine.common.progress import counting_bar, stderr
from infercam.engine.data import voc
from infercam.engine.data.images import image_size
from infercam.engine.data.sources import Source
from infercam.engine.demo.scenes import scene, scene_id
from infercam.engine.device.driver import Driver
from infercam.engine.inputs import SourceSettings
from infercam.engine.method.backend import Limits
from infercam.engine.method.geometry import ViewSizes
from infercam.engine.method.recipe import Mode, Recipe, checked_mode, recipe
from infercam.engine.runners.plan import RUNTIMES, PlanOptions, Precision
from infercam.engine.runners.tensorrt_api import require_tensorrt
from infercam.export.compare import TOLERANCES, Sample, Tolerance, read_samples
from infercam.export.plan.build import BuildRequest, BuildWatch, Built, build_plan
from infercam.export.plan.profiles import (
    DEVICE_LIMITS,
    ClassesOf,
    ImageSize,
    Reach,
    Shapes,
    choose_profiles,
    ladder_profiles,
    record,
    simulate,
    smallest_view,
)
from infercam.export.plan.rtx import rtx_maker
from infercam.export.plan.runtimes import caution, check_options, choose_runtime
from infercam.export.plan.settings import BuildSettings
from infercam.export.precision.pictures import shrunk

_LOOKED_AT = 20_000  # headers read to find the largest image: a few seconds
Run = Callable[[Callable[[], Built]], Built]


def build_from_settings(
    bundle: Path,
    precision: str,
    source: SourceSettings,
    s: BuildSettings,
    open_driver: Callable[[], Driver],
    watching: Callable[[int], tuple[BuildWatch, Run]] | None = None,
) -> tuple[Built, Shapes | None]:
    """Build (or keep) the plan; TensorRT's is compared with the fp32 graph. Returns it, and the batches of the images
    that it is tuned for (None: the ladder's).

    source: with no field set the profiles come from the ladder of view sizes, and a plan is compared on drawn scenes.
    open_driver: the GPU, opened once everything else is known to be right; not for TensorRT-RTX. watching: given the
    number of images to check on, where the build reports to and how its call is made (by default here, silently).
    Raises InputError, BundleError, MissingExtra, BackendError, PlanError; BuildCancelled where a watch stops it.
    """
    if s.centres not in ("drawn", "cpu"):
        raise InputError(f"--centres {s.centres}: there are `drawn` and `cpu`")
    checked = _precision(precision)
    within = _tolerance(TOLERANCES[checked], s.max_error, s.min_iou, s.max_miou_drop)
    plan_options = _options(
        s.version_compatible, s.hardware_compatible, s.strip_weights, s.refit, s.workspace
    )
    chosen, mode = _recipe(s.recipe, s.mode)
    kind, why = choose_runtime(s.runtime)
    check_options(kind, plan_options, s.targets)
    images = _images(source, s)
    loaded = Bundle.load(bundle)
    trt = require_tensorrt("infercam build", kind)  # before anything that takes time
    maker = rtx_maker(s.targets) if kind == "tensorrt-rtx" else None
    stderr.print(f"runtime: {RUNTIMES[kind]} {trt.__version__} ({why})", markup=False, soft_wrap=True)
    if (said := caution(kind, checked)) is not None:
        stderr.print(f"note: {said}", soft_wrap=True)
    gpu = open_driver() if maker is None else None
    try:
        limits = replace(DEVICE_LIMITS, batch_pixels=s.batch_pixels)
        if images is None:
            m = loaded.manifest
            smallest = smallest_view(chosen, ViewSizes.of_network(m.input))
            tuned, shapes = ladder_profiles(m, s.profiles, s.largest_view, limits, smallest), None
            longest = int(max(tuned[-1].largest[1:]) / max(chosen.views.scales))
            count, samples = s.check_images, lambda: _scenes(s.check_images, longest)
        else:
            check, masks = spread(images, s.check_images), _masks_fit(images, loaded)
            classes_of = _classes_of(s.labels, loaded, source)
            if s.centres == "cpu":
                shapes = _replayed(loaded, check, chosen, mode, limits, classes_of)
            else:
                shapes = _simulated(loaded, spread(images, s.limit), chosen, mode, limits, classes_of)
            tuned = choose_profiles(shapes, loaded.manifest, s.profiles, _reach(loaded, images, chosen))
            count, samples = len(check), lambda: read_samples(check, classes_of, masks)
        request = BuildRequest(
            loaded,
            checked,
            tuned,
            samples,
            plan_options,
            within,
            scales=chosen.views.scales,
            cache=s.cache,
            force=s.force,
            rtx=maker,
        )
        watch, run = (BuildWatch(), lambda call: call()) if watching is None else watching(count)
        return run(lambda: build_plan(request, gpu, watch)), shapes
    finally:
        if gpu is not None:
            gpu.close()


def _images(source: SourceSettings, s: BuildSettings) -> Source | None:
    """The images like those to come; None where none are given."""
    if source != SourceSettings():
        return source.open()
    for option, given in (("--labels", s.labels is not None), ("--centres cpu", s.centres == "cpu")):
        if given:
            raise InputError(f"{option}: needs images (--images, --voc or --list)")
    return None


def _scenes(count: int, longest: int) -> Iterator[Sample]:
    """Drawn pictures, the same every time, for a plan to be compared on where there are no others.

    longest: side in pixels that the plan takes at the largest scale.
    """
    return (Sample(scene_id(i), shrunk(scene(i).image, longest)) for i in range(count))


def _precision(name: str) -> Precision:
    if name not in get_args(Precision):
        raise InputError(f"no precision {name!r}; there are: {', '.join(get_args(Precision))}")
    return cast("Precision", name)


def _tolerance(usual: Tolerance, error: float | None, iou: float | None, drop: float | None) -> Tolerance:
    given = {"response_error": error, "iou": iou, "miou_drop": drop}
    return usual.model_copy(update={k: v for k, v in given.items() if v is not None})


def _options(version: bool, hardware: bool, strip: bool, refit: bool, workspace: int | None) -> PlanOptions:
    if version and strip:
        raise InputError(
            "--strip-weights needs the full TensorRT to put the weights back, --version-compatible runs on the lean "
            "runtime: take one of the two"
        )
    return PlanOptions(
        version_compatible=version,
        hardware_compatible=hardware,
        stripped=strip,
        refittable=refit,
        workspace_mb=workspace,
    )


def _recipe(name: str, mode: str) -> tuple[Recipe, Mode]:
    return recipe(name), checked_mode(mode)


def spread(source: Source, count: int) -> Source:
    """At most `count` items, evenly spread over the source."""
    if len(source) <= count:
        return source
    return source[:: len(source) // count][:count]


def _masks_fit(source: Source, bundle: Bundle) -> bool:
    """Whether the source's masks are of the bundle's classes: VOC's are only where the classes are VOC's."""
    fit = source.kind != "voc" or bundle.manifest.classes == voc.CLASSES
    if not fit:
        stderr.print("note: the bundle's classes are not VOC's, so its masks are not compared with")
    return fit


def _classes_of(labels: str | None, bundle: Bundle, source: SourceSettings) -> ClassesOf | None:
    """An image's classes by its labels; None where no labels are given."""
    if labels is None:
        return None
    found = source.labels(labels, bundle.manifest.classes)
    return lambda item: found.lookup(item.id)


def _simulated(
    bundle: Bundle, sample: Source, recipe: Recipe, mode: Mode, limits: Limits, classes_of: ClassesOf | None
) -> Shapes:
    """The batches of the sample, from the images' sizes."""
    with stderr.status(f"forming the batches of {len(sample)} images"):
        counts = ((item, None if classes_of is None else len(classes_of(item))) for item in sample)
        sizes = [ImageSize(item.id, *image_size(item.path), classes=count) for item, count in counts]
        return simulate(bundle, sizes, recipe, mode, limits).shapes


def _reach(bundle: Bundle, source: Source, recipe: Recipe) -> Reach:
    """What the plan must take beside the sample's shapes: the recipe's smallest tile, the source's largest image."""
    largest = 1
    for item in spread(source, _LOOKED_AT):
        with suppress(InputError):  # a picture that cannot be read is a matter of the run, not of the plan
            largest = max(largest, *image_size(item.path))
    smallest = smallest_view(recipe, ViewSizes.of_network(bundle.manifest.input))
    return Reach(smallest, round(largest * max(recipe.views.scales)))


def _replayed(
    bundle: Bundle, check: Source, recipe: Recipe, mode: Mode, limits: Limits, classes_of: ClassesOf | None
) -> Shapes:
    """The batches of the images to check on, from what the CPU engine finds in them."""
    with counting_bar(None, stderr, transient=False) as bar:
        task = bar.add_task("centres on the CPU", total=len(check))
        sizes, recording = record(bundle, check, recipe, mode, classes_of, lambda n: bar.advance(task, n))
    return simulate(bundle, sizes, recipe, mode, limits, recording).shapes
