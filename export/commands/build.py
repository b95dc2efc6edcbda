"""`infercam build`: options, progress, signals, summary. The work is in plan/workflow.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from infercam.engine.common.options import options
from infercam.engine.common.progress import counting_bar
from infercam.engine.common.signals import handled
from infercam.export.plan.settings import BuildSettings, PlanSourceSettings

if TYPE_CHECKING:
    from infercam.engine.device.driver import Driver
    from infercam.export.plan.build import BuildWatch, Built
    from infercam.export.plan.profiles import Shapes

T = TypeVar("T")
stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add the build command to the `infercam` app."""
    app.command("build")(options(build))


def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by `infercam export`.")],
    source: PlanSourceSettings,
    settings: BuildSettings,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, tf32, fp16, bf16, int8 or fp8; but for the first two the bundle needs a graph of it "
            "(`infercam precision`)."
        ),
    ] = "fp16",
    device: Annotated[int, typer.Option(min=0, help="Number of the GPU.")] = 0,
) -> None:
    """Build a plan of the bundle: with TensorRT for this GPU, or with TensorRT-RTX for RTX cards, without a GPU.

    Its profiles come from the ladder of view sizes, or from images like those to come. TensorRT's plan is compared
    with the fp32 graph in ONNX Runtime before it is installed; one that misses the tolerance is kept aside with its
    report, and the exit code is 1. TensorRT-RTX's is not run here.
    """
    from infercam.export.requirements import require_onnx

    require_onnx("infercam build")
    from infercam.export.plan.builder import BuildCancelled
    from infercam.export.plan.workflow import build_from_settings

    caught: list[int] = []
    with ExitStack() as stack:

        def watching(images: int) -> tuple[BuildWatch, Callable[[Callable[[], Built]], Built]]:
            return stack.enter_context(_watching(images, caught)), _responsive

        try:
            built, shapes = build_from_settings(
                bundle, precision, source.settings(), settings, lambda: _open_driver(device), watching
            )
        except BuildCancelled as e:
            stderr.print(escape(str(e)), soft_wrap=True)
            raise typer.Exit(128 + caught[0]) from None
    _summary(built, shapes)


def _open_driver(device: int) -> Driver:
    from infercam.engine.device.cuda import CudaDriver

    return CudaDriver(device)


# -- while it runs ---------------------------------------------------------------------------------------------
def _responsive(call: Callable[[], T]) -> T:
    """Run it in a thread, so that this one can take signals while TensorRT's builder is busy for minutes."""
    with ThreadPoolExecutor(1, thread_name_prefix="infercam-build") as pool:
        future = pool.submit(call)
        while not wait([future], timeout=0.2).done:
            pass
        return future.result()


@contextmanager
def _watching(images: int, caught: list[int]) -> Iterator[BuildWatch]:
    """Bars for the two long parts, and the signals: SIGINT and SIGTERM stop the build and keep its timings,
    a second one ends the process at once."""
    from infercam.export.plan.build import BuildWatch

    bar = counting_bar(None, stderr, transient=False)

    class Shown(BuildWatch):
        def __init__(self) -> None:
            super().__init__()
            self.build = bar.add_task("building", total=None)
            self.check = bar.add_task("checking", total=images, visible=False)

        def building(self, phase: str, done: int, total: int) -> None:
            bar.update(self.build, description=f"building: {phase}", completed=done, total=total or None)

        def checking(self, images: int) -> None:
            bar.update(self.check, advance=images, visible=True)

    watch = Shown()

    def stop(number: int, frame: FrameType | None) -> None:
        if caught:
            os._exit(
                128 + number
            )  # the builder's thread cannot be interrupted; its folder is removed next time
        caught.append(number)
        watch.stopped.set()
        stderr.print("stopping: TensorRT ends the step it is in (once more to stop at once)")

    with handled(stop), bar:
        yield watch


# -- in the end ------------------------------------------------------------------------------------------------
def _summary(built: Built, shapes: Shapes | None) -> None:
    from infercam.engine.runners.plan import RUNTIMES
    from infercam.export.plan.profiles import coverage
    from infercam.export.plan.table import profile_table

    r = built.plan.record
    took = (
        f" in {built.seconds:.1f} s" if built.how != "kept" else " (nothing changed; --force builds it anew)"
    )
    stdout.print(
        f"[green]{built.how}[/green] {r.precision} plan for {escape(r.maker.cards)}, "
        f"{RUNTIMES[r.runtime]} {escape(r.tensorrt)}, {r.plan.size / 1e6:.1f} MB{took} "
        f"-> {escape(str(built.plan.folder))}",
        soft_wrap=True,
    )
    if built.report is not None:
        stdout.print(f"against ONNX Runtime fp32: {built.report.fidelity.line()}", soft_wrap=True)
    else:
        stdout.print("not compared with ONNX Runtime: that needs one of these cards", soft_wrap=True)
    stdout.print(profile_table(r.profiles, None if shapes is None else coverage(r.profiles, shapes)))
