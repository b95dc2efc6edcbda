"""`infercam package triton`: options and a summary; the work is in repository.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from infercam.engine.common.errors import ExportError

if TYPE_CHECKING:
    from infercam.export.triton.repository import Kind, Packaged

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add the `infercam package` group, a command a server."""
    package = typer.Typer(no_args_is_help=True, help="A bundle in the form that another server takes.")
    package.command("triton")(triton)
    app.add_typer(package, name="package")


def triton(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by `infercam export`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Model repository; made, or added to.")],
    precision: Annotated[
        str | None,
        typer.Option(help="Of the graph and of the plan: fp32, fp16, …; default: the fp32 graph, any plan."),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Most pictures in a batch (ONNX, TensorRT); they must be of one size.")
    ] = 8,
    queue_delay_us: Annotated[
        int, typer.Option(min=0, help="Microseconds to wait for a fuller batch (ONNX, TensorRT).")
    ] = 2000,
    instances: Annotated[
        int,
        typer.Option(min=1, help="Instances of each model; for the maps, processes that share no batches."),
    ] = 1,
    cpu: Annotated[
        bool | None,
        typer.Option(
            "--cpu/--gpu", help="For a server without, or with a GPU; default: as the server has it."
        ),
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Some of onnx,tensorrt,maps; default: all that the bundle has.")
    ] = None,
    plan_gpu: Annotated[
        str | None,
        typer.Option(help="The GPU whose plan is served: part of its name, or its compute capability."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of plans, as of `infercam build`; default BUNDLE/plans.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="Recipe of a request that names none (maps).")] = "fast",
    score_threshold: Annotated[
        float,
        typer.Option(min=0, max=1, help="A class is predicted above this probability, where none is given."),
    ] = 0.5,
    queue: Annotated[
        int, typer.Option(min=1, help="Requests in flight in an instance; one more is refused (maps).")
    ] = 64,
    max_pixels: Annotated[int, typer.Option(min=1, help="Of a picture (maps).")] = 4_000_000,
    name: Annotated[
        str | None, typer.Option(help="First part of the models' names; default: the bundle's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace models made by this command.")] = False,
) -> None:
    """Write a model repository for the Triton Inference Server.

    NAME_onnx and NAME_tensorrt: the classifier, normalised pictures to scores and response. NAME_maps: the whole
    method, an encoded picture to refined response maps, in the Python backend.
    """
    from infercam.engine.bundle import Bundle
    from infercam.engine.store.output_folder import check_output
    from infercam.export.requirements import require_onnx

    check_output(out, reads=[bundle])
    require_onnx()
    from infercam.export.triton import config
    from infercam.export.triton.repository import PackageRequest, package

    request = PackageRequest(
        Bundle.load(bundle),
        out,
        config.Serving(
            max_batch=max_batch,
            queue_delay_us=queue_delay_us,
            instances=instances,
            device="auto" if cpu is None else "cpu" if cpu else "gpu",
            recipe=recipe,
            score_threshold=score_threshold,
            queue=queue,
            max_pixels=max_pixels,
        ),
        precision=precision,
        only=_kinds(only),
        name=name,
        plan_gpu=plan_gpu,
        plans=cache,
        force=force,
    )
    with stderr.status(f"packaging {escape(str(bundle))}"):
        done = package(request)
    _summary(out, done, config.schema_installed())


def _kinds(text: str | None) -> tuple[Kind, ...] | None:
    """`onnx,maps` as kinds; raises ExportError."""
    from infercam.export.triton.repository import KINDS

    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [n for n in names if n not in KINDS]
    if unknown or not names:
        raise ExportError(f"--only takes some of {','.join(KINDS)}, not '{text}'")
    return cast("tuple[Kind, ...]", tuple(names))


def _summary(out: Path, done: Packaged, checked: bool) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(justify="right")
    for folder, size in done.models.items():
        table.add_row(escape(folder.name), f"{size / 1e6:.1f} MB")
    stdout.print(f"[green]wrote[/green] {escape(str(out))}", soft_wrap=True)
    stdout.print(table)
    for kind, why in done.left_out.items():
        stdout.print(f"left out {kind}: {escape(why)}", soft_wrap=True)
    if not checked:
        stdout.print("not checked against Triton's schema: pip install tritonclient", soft_wrap=True)
    for line in done.needs:
        stdout.print(escape(line), soft_wrap=True)
    portable = done.plan is not None and done.plan.record.options.version_compatible
    flags = " --backend-config=tensorrt,version-compatible=true" if portable else ""
    if any(folder.name.endswith("_maps") for folder in done.models):
        what = "infercam[cpu] or infercam[gpu] in the server's Python, 3.11 or later (Triton 24.12 or later)"
        stdout.print(f"the maps need {escape(what)}", soft_wrap=True)
    stdout.print(f"serve it: tritonserver --model-repository={escape(str(out))}{flags}", soft_wrap=True)
