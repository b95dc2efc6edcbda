"""`infercam convert`: options, progress, a summary. The work is in store/convert.py."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from infercam.engine.common.atomic import write_json
from infercam.engine.common.errors import StoreError
from infercam.engine.common.progress import counting_bar
from infercam.engine.store import convert as conversion
from infercam.engine.store.failure_groups import grouped
from infercam.engine.store.open_maps import known_format, open_maps
from infercam.engine.store.output_folder import check_output


def register(app: typer.Typer) -> None:
    app.command("convert")(convert)


def convert(
    src: Path = typer.Argument(help="A map store, or a folder of psa or irn maps.", show_default=False),
    dst: Path = typer.Argument(help="Folder of the new store; made, or resumed.", show_default=False),
    source_format: str = typer.Option(..., "--from", help="npz, psa or irn."),
    target_format: str = typer.Option(..., "--to", help="npz, psa or irn (irn needs torch)."),
    dtype: str = typer.Option("uint8", help="For npz: uint8 or float16."),
    classes: Path | None = typer.Option(
        None, help="Class names, for folders of other tools: a file, voc or coco (default voc)."
    ),
    json_file: Path | None = typer.Option(None, "--json", help="Write every figure to this file."),
) -> None:
    """Convert maps between infercam's npz and the formats of psa (SEAM, SC-CAM) and irn."""
    fmt = known_format(target_format, "--to")
    check_output(dst, option="DST")
    source = open_maps(src, source_format, classes, "--from")
    with counting_bar() as bar:
        task = bar.add_task("converting", total=len(source))
        summary = conversion.convert(source, dst, fmt, dtype, progress=lambda: bar.advance(task))
    if json_file is not None:
        write_json(json_file, summary.to_json())
    errors = Console(stderr=True, highlight=False)
    reasons = [reason for _, reason in summary.failures]
    for line in reasons if len(reasons) <= 20 else grouped(summary.failures).lines():
        errors.print(line, soft_wrap=True, markup=False)
    done = f"{summary.written} written, {summary.skipped} already there, {len(summary.failures)} failed"
    size = f"; {summary.bytes / summary.written / 1e3:.1f} KB each" if summary.written else ""
    typer.echo(f"{dst}: {done}{size}")
    if not (summary.written or summary.skipped or summary.failures):
        raise StoreError(f"{src}: no {source_format} maps in it")
    if summary.failures:
        raise typer.Exit(1)
