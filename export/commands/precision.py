"""`infercam precision`: options, progress, a summary; the work is in precision.py and runtime.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from infercam.engine.common.atomic import write_json

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    """Add the precision command to the `infercam` app."""
    app.command("precision")(precision)


def precision(
    bundle: Annotated[Path, typer.Argument(help="Bundle made by `infercam export`.")],
    to: Annotated[list[str], typer.Option(help="fp16, bf16, int8 or fp8; may be repeated.")],
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of your images: half of those used choose, the others check."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images used, spread over the folder.")] = 32,
    longest_side: Annotated[int, typer.Option(min=16, help="Larger images are shrunk to this.")] = 512,
    rest: Annotated[
        str, typer.Option(help="With int8 and fp8: precision of all else: fp32, fp16, bf16.")
    ] = "fp32",
    half_input: Annotated[
        bool, typer.Option("--half-input", help="The graph takes float16 pictures (half the copying).")
    ] = False,
    keep: Annotated[
        list[str] | None, typer.Option(help="Layer that stays as it is, by its node's name; may be repeated.")
    ] = None,
    min_iou: Annotated[
        float | None, typer.Option(min=0, max=1, help="Least overlap of maps with fp32's, above 0.3.")
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(min=0, help="Largest difference of responses, relative.")
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="openvino: add no graph, but check this runtime's own bf16 (of the fp32 graph) or int8 (of that "
            "graph) here, and record it for `--backend auto`."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the reports here ('-': standard output).")
    ] = None,
) -> None:
    """Add graphs of other precisions to a bundle, each checked against the fp32 graph by its response maps.

    Layers that cost the maps too much stay in higher precision. A graph that misses the tolerance is refused and
    the bundle stays as it was. With --runtime no graph is added: a runtime's own arithmetic is checked in the same
    way, and recorded where it is faster.
    """
    from infercam.export.requirements import require_onnx

    require_onnx()
    from infercam.engine.bundle import Bundle
    from infercam.export.compare import TOLERANCES
    from infercam.export.precision import runtime as by_runtime
    from infercam.export.precision.pictures import read_pictures
    from infercam.export.precision.precision import PRECISIONS, PrecisionSettings, add_precision
    from infercam.export.precision.shown import Trying, report_table

    settings = []
    for name in dict.fromkeys(to):
        changes = {"iou": min_iou, "response_error": max_error}
        tolerance = TOLERANCES[name if name in PRECISIONS else "fp32"].model_copy(
            update={k: v for k, v in changes.items() if v is not None}
        )
        own = PrecisionSettings(name, rest, half_input, tolerance, tuple(keep or ()), longest_side)
        settings.append(own.checked() if runtime is None else by_runtime.checked(own, runtime))
    loaded, pictures = Bundle.load(bundle), read_pictures(images, count, _passed_over)
    add = add_precision if runtime is None else by_runtime.add_runtime
    reports = {}
    for one in settings:
        with stderr.status(one.precision) as status:
            report = add(loaded, one, pictures, Trying(status, one.precision))
        reports[one.precision] = report
        if str(json_file) != "-":
            what = (
                f"{one.precision} to {bundle}"
                if runtime is None
                else f"{runtime} {one.precision} to {bundle}"
            )
            stdout.print(f"[green]added[/green] {escape(what)}", soft_wrap=True)
            stdout.print(report_table(Bundle.load(bundle).manifest, one.precision, report))
    if json_file is not None:
        found = {name: r.model_dump(mode="json") for name, r in reports.items()}
        if str(json_file) == "-":
            typer.echo(json.dumps(found, indent=1))
        else:
            write_json(json_file, found)


def _passed_over(reason: str) -> None:
    stderr.print(f"note: passed over: {escape(reason)}", soft_wrap=True)
