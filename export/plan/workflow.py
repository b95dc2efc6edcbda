"""A TensorRT plan from settings: the images it is tuned for and checked on, how far it may be off, what it runs on.

The work is in profiles.py (shapes), builder.py (TensorRT) and build.py (checking, installing);
`build_from_settings` is what a Python user calls.
"""

from __future__ import annotations

from collections.abc import Callable
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
from infercam.engine.device.driver import Driver
from infercam.engine.inputs import SourceSettings
from infercam.engine.method.backend import Limits
from infercam.engine.method.geometry import ViewSizes
from infercam.engine.method.recipe import Mode, Recipe, checked_mode, recipe
from infercam.engine.runners.plan import PlanOptions, Precision
from infercam.engine.runners.tensorrt_api import require_tensorrt
from infercam.export.compare import TOLERANCES, Tolerance, read_samples
from infercam.export.plan.build import BuildRequest, BuildWatch, Built, build_plan
from infercam.export.plan.profiles import (
    DEVICE_LIMITS,
    ClassesOf,
    ImageSize,
    Reach,
    Shapes,
    choose_profiles,
    record,
    simulate,
    smallest_view,
)
from infercam.export.plan.settings import BuildSettings

_LOOKED_AT = 20_000  # headers read to find the largest image: a few seconds
Run = Callable[[Callable[[], Built]], Built]


def build_from_settings(
    bundle: Path,
    precision: str,
    source: SourceSettings,
    s: BuildSettings,
    open_driver: Callable[[], Driver],
    watching: Callable[[int], tuple[BuildWatch, Run]] | None = None,
) -> tuple[Built, Shapes]:
    """Build (or keep) the plan and compare it with the fp32 graph; the plan, and the shapes it is tuned for.

    open_driver: the GPU, opened once everything else is known to be right. watching: given the number of images to
    check on, where the build reports to and how its call is made (by default here, silently).
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
    images = source.open()
    loaded = Bundle.load(bundle)
    require_tensorrt("infercam build")  # before anything that takes time
    gpu = open_driver()
    try:
        check, masks = spread(images, s.check_images), _masks_fit(images, loaded)
        classes_of = _classes_of(s.labels, loaded, source)
        limits = replace(DEVICE_LIMITS, batch_pixels=s.batch_pixels)
        if s.centres == "cpu":
            shapes = _replayed(loaded, check, chosen, mode, limits, classes_of)
        else:
            shapes = _simulated(loaded, spread(images, s.limit), chosen, mode, limits, classes_of)
        tuned = choose_profiles(shapes, loaded.manifest, s.profiles, _reach(loaded, images, chosen))
        request = BuildRequest(
            loaded,
            checked,
            tuned,
            lambda: read_samples(check, classes_of, masks),
            plan_options,
            within,
            scales=chosen.views.scales,
            cache=s.cache,
            force=s.force,
        )
        watch, run = (BuildWatch(), lambda call: call()) if watching is None else watching(len(check))
        return run(lambda: build_plan(request, gpu, watch)), shapes
    finally:
        gpu.close()


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
