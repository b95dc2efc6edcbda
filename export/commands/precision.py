"""`infercam precision`: options, progress, a summary; the work is in precision.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from infercam.engine.common.atomic import write_json

if TYPE_CHECKING:
    from infercam.engine.bundle import Bundle, PrecisionReport

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
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the reports here ('-': standard output).")
    ] = None,
) -> None:
    """Add graphs of other precisions to a bundle, each checked against the fp32 graph by its response maps.

    Layers that cost the maps too much stay in higher precision. A graph that misses the tolerance is refused and
    the bundle stays as it was.
    """
    from infercam.export.requirements import require_onnx

    require_onnx()
    from infercam.engine.bundle import Bundle
    from infercam.export.compare import TOLERANCES
    from infercam.export.precision.pictures import read_pictures
    from infercam.export.precision.precision import PRECISIONS, PrecisionSettings, add_precision

    settings = []
    for name in dict.fromkeys(to):
        changes = {"iou": min_iou, "response_error": max_error}
        tolerance = TOLERANCES[name if name in PRECISIONS else "fp32"].model_copy(
            update={k: v for k, v in changes.items() if v is not None}
        )
        own = PrecisionSettings(name, rest, half_input, tolerance, tuple(keep or ()), longest_side)
        settings.append(own.checked())
    loaded, pictures = Bundle.load(bundle), read_pictures(images, count, _passed_over)
    reports = {}
    for one in settings:
        with stderr.status(one.precision) as status:
            report = add_precision(loaded, one, pictures, _Shown(status, one.precision))
        reports[one.precision] = report
        if str(json_file) != "-":
            _summary(Bundle.load(bundle), one.precision, report)
    if json_file is not None:
        found = {name: r.model_dump(mode="json") for name, r in reports.items()}
        if str(json_file) == "-":
            typer.echo(json.dumps(found, indent=1))
        else:
            write_json(json_file, found)


def _passed_over(reason: str) -> None:
    stderr.print(f"note: passed over: {escape(reason)}", soft_wrap=True)


class _Shown:
    """Shows what is being tried, with the count of what has been."""

    def __init__(self, status: Status, precision: str) -> None:
        self.status = status
        self.precision = precision
        self.count = 0

    def __call__(self, what: str) -> None:
        self.count += 1
        self.status.update(f"{self.precision}, {self.count}: {escape(what)}")


def _summary(bundle: Bundle, name: str, report: PrecisionReport) -> None:
    manifest = bundle.manifest
    file = manifest.graphs[name]
    size, full = (manifest.files[manifest.graphs[p]].size for p in (name, "fp32"))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    if report.map_iou is not None:
        worst = f"worst {report.worst_map_iou:.3f}; at least {report.min_iou:g}"
        table.add_row("maps", f"IoU {report.map_iou:.4f} with fp32's ({worst})")
    table.add_row(
        "responses", f"differ by {report.response_error:.2g} of the largest (at most {report.max_error:g})"
    )
    table.add_row("checked on", escape(report.checked))
    table.add_row(
        "file", f"{escape(file)}, {size / 1e6:.1f} MB (fp32: {full / 1e6:.1f} MB), input {report.input_type}"
    )
    if report.quantised:
        table.add_row("quantised", f"{report.quantised} layers; all else {report.rest}")
    for line in report.kept[:12]:
        table.add_row("kept", escape(line))
    if len(report.kept) > 12:
        table.add_row("", f"and {len(report.kept) - 12} more (see the manifest)")
    stdout.print(f"[green]added[/green] {escape(name)} to {escape(str(bundle.path))}", soft_wrap=True)
    stdout.print(table)
