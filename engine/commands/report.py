"""`infercam report`: options and progress; the work is in build.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from infercam.engine.common.paths import check_folder, check_id, existing
from infercam.engine.common.progress import counting_bar

if TYPE_CHECKING:
    from infercam.engine.data.sources import Item
    from infercam.engine.report.build import PageSummary

console = Console(stderr=True, highlight=False, markup=False)


def register(app: typer.Typer) -> None:
    app.command("report")(report)


def report(
    maps: Annotated[
        list[Path], typer.Argument(help="Map stores or folders of label PNGs; the first is compared to.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("report.html"),
    images: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    voc: Annotated[
        Path | None, typer.Option(help="VOC tree; with --split. Its masks are the ground truth.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the VOC tree: train, val, …")] = None,
    list_file: Annotated[Path | None, typer.Option("--list", help="List of paths or ids, or psa's.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that --list is relative to.")] = None,
    gt: Annotated[
        Path | None, typer.Option(help="Folder of <id>.png masks, in place of the tree's own.")
    ] = None,
    gt_values: Annotated[
        str | None, typer.Option(help="Mask values of background, the first class, …, as for eval.")
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Response maps",
    embed: Annotated[
        int,
        typer.Option(
            min=0, help="Keep the pictures of so many images in the page; the others lie beside it."
        ),
    ] = 200,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Keep all pictures in the page.")
    ] = False,
    max_images: Annotated[
        int | None,
        typer.Option(min=1, help="List only so many images: worst, best, most changed. All are scored."),
    ] = None,
    size: Annotated[int, typer.Option(min=32, max=2048, help="Longest side of the pictures, pixels.")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the photos.")] = 72,
    format: Annotated[
        str | None, typer.Option("--format", help="psa or irn: the maps are of those tools.")
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="Class names, for folders of other tools.")] = None,
    min_images: Annotated[
        int, typer.Option(min=1, help="Also average only classes in at least so many images.")
    ] = 7,
    bootstrap: Annotated[int, typer.Option(min=0, help="Resamples for the intervals; 0: none.")] = 1000,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 4_000_000,
) -> None:
    """Make a page to look at runs: curves, classes, and every image's maps under a live threshold.

    The page needs no network and no server. Up to --embed images it is one file; more lie beside it in
    PAGE_files. Run it again after a stop to go on.
    """
    from infercam.engine.evaluation.mask_values import MaskValues
    from infercam.engine.inputs import SourceSettings
    from infercam.engine.report.build import PageOptions, build_report
    from infercam.engine.report.runs import open_runs

    source = SourceSettings(images=images, voc=voc, split=split, list_file=list_file, root=root).open()
    for note in source.notes:
        console.print(f"note: {note}", soft_wrap=True)
    items: list[Item] = list(source)
    if gt is not None:
        check_folder(gt)
        items = [replace(item, mask=existing(gt / f"{check_id(item.id)}.png", ".PNG")) for item in items]
    runs = open_runs(maps, format, classes)
    options = PageOptions(
        title=title,
        embed=None if single_file else embed,
        max_images=max_images,
        size=size,
        quality=quality,
        workers=workers or None,
        bootstrap=bootstrap,
        min_images=min_images,
        max_pixels=max_pixels,
        gt_values=None if gt_values is None else MaskValues.parse(gt_values),
    )
    with _watch() as watch:
        summary = build_report(runs, items, out, options, watch)
    _report(summary, out)


def _report(summary: PageSummary, out: Path) -> None:
    for note in summary.notes:
        console.print(f"note: {note}", soft_wrap=True)
    for line in summary.errors[:20]:
        console.print(line, style="red", soft_wrap=True)
    if len(summary.errors) > 20:
        console.print(f"… and {len(summary.errors) - 20} more", style="red")
    beside = f" and {summary.beside_bytes / 1e6:.1f} MB beside it" if summary.beside_bytes else ""
    console.print(
        f"{summary.images} images, {summary.scored} scored -> {out} ({summary.page_bytes / 1e6:.1f} MB{beside})",
        soft_wrap=True,
    )
    if summary.errors:
        raise typer.Exit(1)


class _Bars:
    """One bar for each step of the work."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, what: str, total: int) -> None:
        self._task = self._bars.add_task(what, total=total)

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._bars.advance(self._task, count)


@contextmanager
def _watch() -> Iterator[_Bars]:
    with counting_bar(console=console) as bars:
        yield _Bars(bars)
