"""`infercam build`: options, progress, signals, summary. The work is in build.py, profiles.py and fidelity.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TypeVar, cast, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infercam.engine.common.errors import InputError
from infercam.engine.common.progress import counting_bar

if TYPE_CHECKING:
    from infercam.engine.bundle import Bundle
    from infercam.engine.data.sources import Source
    from infercam.engine.device.driver import Driver
    from infercam.engine.method.recipe import Mode, Recipe
    from infercam.engine.method.scheduler import Limits
    from infercam.engine.runners.plan import Options, Precision, Profile
    from infercam.export.fidelity import Tolerance
    from infercam.export.plan.build import Built, Watch
    from infercam.export.plan.profiles import ClassesOf, Reach, Shapes

T = TypeVar("T")
_LOOKED_AT = 20_000  # headers read to find the largest image: a few seconds
stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add the build command to the `infercam` app."""
    app.command("build")(build)


def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by `infercam export`.")],
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, tf32, fp16, bf16, int8 or fp8; but for the first two the bundle needs a graph of it "
            "(`infercam precision`)."
        ),
    ] = "fp16",
    images: Annotated[Path | None, typer.Option(help="Folder of images like those to come.")] = None,
    voc: Annotated[Path | None, typer.Option(help="VOC tree; with --split.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the VOC tree: train, val, …")] = None,
    list_file: Annotated[Path | None, typer.Option("--list", help="List of paths or ids, or psa's.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that --list is relative to.")] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="The images' classes, as in `infercam run`; default: their numbers are drawn."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Recipe whose batches the plan is for.")] = "released",
    mode: Annotated[str, typer.Option(help="baseline, split, erase, both.")] = "both",
    limit: Annotated[
        int, typer.Option(min=1, help="Sizes of so many images, spread over all, are looked at.")
    ] = 200,
    profiles: Annotated[int, typer.Option(min=1, max=16, help="Optimisation profiles, at most.")] = 4,
    batch_pixels: Annotated[
        int, typer.Option(min=1, help="Network pixels in one batch, at most.")
    ] = 4_000_000,
    centres: Annotated[
        str,
        typer.Option(
            help="Where tiles are split: `drawn`, or `cpu`: by running --check-images images on the CPU."
        ),
    ] = "drawn",
    check_images: Annotated[int, typer.Option(min=1, help="The plan is compared on so many images.")] = 16,
    max_error: Annotated[
        float | None, typer.Option(min=0, help="Largest mean relative error of the responses.")
    ] = None,
    min_iou: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least mean IoU of the maps at threshold 0.3.")
    ] = None,
    max_miou_drop: Annotated[
        float | None, typer.Option(min=0, help="Most points of best mIoU lost, where there are masks.")
    ] = None,
    workspace: Annotated[
        int | None, typer.Option(min=1, help="Megabytes of scratch memory that a layer may take.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For the lean runtime of later versions too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="For every GPU of compute capability 8.0 or later.")
    ] = False,
    strip_weights: Annotated[
        bool, typer.Option("--strip-weights", help="A small plan: weights come from the bundle on loading.")
    ] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit", help="Refittable: weights of a classifier trained again go in without a build."
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for plans, of several bundles if you like (`infercam run` looks where INFERCAM_PLANS says); "
            "default BUNDLE/plans."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build even where a plan that fits is there.")
    ] = False,
    device: Annotated[int, typer.Option(min=0, help="Number of the GPU.")] = 0,
) -> None:
    """Build a TensorRT plan of the bundle for this GPU, tuned for your images and checked on them.

    The plan is compared with the fp32 graph in ONNX Runtime before it is installed; one that misses the tolerance
    is kept aside with its report, and the exit code is 1.
    """
    from infercam.engine.bundle import Bundle
    from infercam.engine.inputs import SourceSettings
    from infercam.engine.runners.tensorrt_api import require_tensorrt
    from infercam.export import fidelity
    from infercam.export.plan import build as builder
    from infercam.export.plan.builder import Cancelled
    from infercam.export.plan.profiles import DEVICE_LIMITS, choose_profiles

    if centres not in ("drawn", "cpu"):
        raise InputError(f"--centres {centres}: there are `drawn` and `cpu`")
    checked = _precision(precision)
    within = _tolerance(fidelity.TOLERANCES[checked], max_error, min_iou, max_miou_drop)
    options = _options(version_compatible, hardware_compatible, strip_weights, refit, workspace)
    chosen, checked_mode = _recipe(recipe, mode)
    source = SourceSettings(images=images, voc=voc, split=split, list_file=list_file, root=root).open()
    loaded = Bundle.load(bundle)
    require_tensorrt("infercam build")  # before anything that takes time
    gpu = _open_driver(device)
    try:
        check, masks = spread(source, check_images), _masks_fit(source, loaded)
        classes_of = _classes_of(labels, loaded, voc or root)
        limits = replace(DEVICE_LIMITS, batch_pixels=batch_pixels)
        if centres == "cpu":
            shapes = _replayed(loaded, check, chosen, checked_mode, limits, classes_of)
        else:
            shapes = _simulated(loaded, spread(source, limit), chosen, checked_mode, limits, classes_of)
        tuned = choose_profiles(shapes, loaded.manifest, profiles, _reach(loaded, source, chosen, shapes))
        request = builder.Request(
            loaded,
            checked,
            tuned,
            lambda: fidelity.read_samples(check, classes_of, masks),
            options,
            within,
            scales=chosen.views.scales,
            cache=cache,
            force=force,
        )
        with _watching(len(check)) as (watch, caught):
            built = _responsive(lambda: builder.build_plan(request, gpu, watch))
    except Cancelled as e:
        stderr.print(escape(str(e)), soft_wrap=True)
        raise typer.Exit(128 + caught[0]) from None
    finally:
        gpu.close()
    _summary(built, shapes)


# -- options ---------------------------------------------------------------------------------------------------
def _precision(name: str) -> Precision:
    from infercam.engine.runners.plan import Precision

    if name not in get_args(Precision):
        raise InputError(f"no precision {name!r}; there are: {', '.join(get_args(Precision))}")
    return cast("Precision", name)


def _tolerance(usual: Tolerance, error: float | None, iou: float | None, drop: float | None) -> Tolerance:
    given = {"response_error": error, "iou": iou, "miou_drop": drop}
    return usual.model_copy(update={k: v for k, v in given.items() if v is not None})


def _options(version: bool, hardware: bool, strip: bool, refit: bool, workspace: int | None) -> Options:
    from infercam.engine.runners.plan import Options

    if version and strip:
        raise InputError(
            "--strip-weights needs the full TensorRT to put the weights back, --version-compatible runs on the lean "
            "runtime: take one of the two"
        )
    return Options(
        version_compatible=version,
        hardware_compatible=hardware,
        stripped=strip,
        refittable=refit,
        workspace_mb=workspace,
    )


def _recipe(name: str, mode: str) -> tuple[Recipe, Mode]:
    from infercam.engine.method.recipe import MODES, recipe

    if mode not in MODES:
        raise InputError(f"no mode {mode!r}; there are: {', '.join(MODES)}")
    return recipe(name), mode


def _open_driver(device: int) -> Driver:
    from infercam.engine.device.cuda import CudaDriver

    return CudaDriver(device)


def spread(source: Source, count: int) -> Source:
    """At most `count` items, evenly spread over the source."""
    if len(source) <= count:
        return source
    return source[:: len(source) // count][:count]


def _masks_fit(source: Source, bundle: Bundle) -> bool:
    """Whether the source's masks are of the bundle's classes: VOC's are only where the classes are VOC's."""
    from infercam.engine.data import voc

    fit = source.kind != "voc" or bundle.manifest.classes == voc.CLASSES
    if not fit:
        stderr.print("note: the bundle's classes are not VOC's, so its masks are not compared with")
    return fit


# -- shapes ----------------------------------------------------------------------------------------------------
def _classes_of(labels: str | None, bundle: Bundle, voc: Path | None) -> ClassesOf | None:
    """An image's classes by its labels; None where no labels are given."""
    if labels is None:
        return None
    from infercam.engine.data.labels import load_labels

    found = load_labels(labels, bundle.manifest.classes, voc_root=voc)
    return lambda item: found.lookup(item.id)


def _simulated(
    bundle: Bundle, sample: Source, recipe: Recipe, mode: Mode, limits: Limits, classes_of: ClassesOf | None
) -> Shapes:
    """The batches of the sample, from the images' sizes."""
    from infercam.engine.data.images import image_size
    from infercam.export.plan.profiles import ImageSize, measure_shapes

    with stderr.status(f"forming the batches of {len(sample)} images"):
        counts = ((item, None if classes_of is None else len(classes_of(item))) for item in sample)
        sizes = [ImageSize(item.id, *image_size(item.path), classes=count) for item, count in counts]
        return measure_shapes(bundle, sizes, recipe, mode, limits)


def _reach(bundle: Bundle, source: Source, recipe: Recipe, shapes: Shapes) -> Reach:
    """What the plan must take beside the sample's shapes: the recipe's smallest tile, the source's largest image."""
    from infercam.engine.data.images import image_size
    from infercam.export.fidelity import onnx_network
    from infercam.export.plan.profiles import Reach, smallest_that_runs, smallest_view

    largest = 1
    for item in spread(source, _LOOKED_AT):
        with suppress(InputError):  # a picture that cannot be read is a matter of the run, not of the plan
            largest = max(largest, *image_size(item.path))
    network = onnx_network(bundle.graph("fp32"), bundle.manifest)
    seen = min(min(shape[1:]) for shape in shapes)
    smallest = smallest_that_runs(network, smallest_view(recipe), seen)
    return Reach(smallest, round(largest * max(recipe.views.scales)))


def _replayed(
    bundle: Bundle, check: Source, recipe: Recipe, mode: Mode, limits: Limits, classes_of: ClassesOf | None
) -> Shapes:
    """The batches of the images to check on, from what the CPU engine finds in them."""
    from infercam.export.plan.profiles import measure_shapes, record

    with counting_bar(None, stderr, transient=False) as bar:
        task = bar.add_task("centres on the CPU", total=len(check))
        sizes, recording = record(bundle, check, recipe, mode, classes_of, lambda n: bar.advance(task, n))
    return measure_shapes(bundle, sizes, recipe, mode, limits, recording)


# -- while it runs ---------------------------------------------------------------------------------------------
def _responsive(call: Callable[[], T]) -> T:
    """Run it in a thread, so that this one can take signals while TensorRT's builder is busy for minutes."""
    with ThreadPoolExecutor(1, thread_name_prefix="infercam-build") as pool:
        future = pool.submit(call)
        while not wait([future], timeout=0.2).done:
            pass
        return future.result()


@contextmanager
def _watching(images: int) -> Iterator[tuple[Watch, list[int]]]:
    """Bars for the two long parts, and the signals caught: SIGINT and SIGTERM stop the build and keep its timings,
    a second one ends the process at once."""
    from infercam.export.plan.build import Watch

    bar = counting_bar(None, stderr, transient=False)

    class Shown(Watch):
        def __init__(self) -> None:
            super().__init__()
            self.build = bar.add_task("building", total=None)
            self.check = bar.add_task("checking", total=images, visible=False)

        def building(self, phase: str, done: int, total: int) -> None:
            bar.update(self.build, description=f"building: {phase}", completed=done, total=total or None)

        def checking(self, images: int) -> None:
            bar.update(self.check, advance=images, visible=True)

    watch = Shown()
    caught: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if caught:
            os._exit(
                128 + number
            )  # the builder's thread cannot be interrupted; its folder is removed next time
        caught.append(number)
        watch.stopped.set()
        stderr.print("stopping: TensorRT ends the step it is in (once more to stop at once)")

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        with bar:
            yield watch, caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- in the end ------------------------------------------------------------------------------------------------
def _summary(built: Built, shapes: Shapes) -> None:
    from infercam.export.plan.profiles import coverage

    r = built.plan.record
    took = (
        f" in {built.seconds:.0f} s" if built.how != "kept" else " (nothing changed; --force builds it anew)"
    )
    stdout.print(
        f"[green]{built.how}[/green] {r.precision} plan for {escape(r.gpu)}, TensorRT {escape(r.tensorrt)}, "
        f"{r.plan.size / 1e6:.1f} MB{took} -> {escape(str(built.plan.folder))}",
        soft_wrap=True,
    )
    stdout.print(f"against ONNX Runtime fp32: {built.report.fidelity.line()}", soft_wrap=True)
    stdout.print(_table(r.profiles, coverage(r.profiles, shapes)))


def _table(profiles: Sequence[Profile], shares: Sequence[float]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("profile", "takes", "tuned for", "batches"):
        table.add_column(name)
    for i, (p, share) in enumerate(zip(profiles, shares, strict=True)):
        n, h, w = p.best
        table.add_row(str(i), str(p), f"{n} of {h}x{w}", f"{share:.1%}")
    none = 1 - sum(shares)
    if none > 5e-4:
        table.add_row("-", "larger batches, run in parts", "", f"{none:.1%}")
    return table
