"""`infercam coco`: options, progress, exit code; the work is in convert.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infercam.engine.common.errors import shown
from infercam.engine.common.progress import counting_bar
from infercam.engine.common.signals import caught_signals
from infercam.engine.store.failure_groups import grouped
from infercam.engine.store.failures import FAILURES
from infercam.engine.store.output_folder import check_output

console = Console(stderr=True, highlight=False, markup=False)


def register(app: typer.Typer) -> None:
    app.command("coco")(coco)


def coco(
    source: Annotated[
        Path, typer.Argument(metavar="ROOT|ANNOTATIONS", help="COCO tree, or an instances_*.json.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write.")],
    split: Annotated[
        str | None, typer.Option(help="train2014, val2014, train2017, val2017; of a file: its name's.")
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Write masks.")] = False,
    lists: Annotated[bool, typer.Option("--lists", help="Write the list of ids.")] = False,
    labels: Annotated[bool, typer.Option("--labels", help="Write labels.json.")] = False,
    crowd: Annotated[
        str, typer.Option(help="Crowd regions: class (painted as it), ignore (255), skip (not painted).")
    ] = "class",
    order: Annotated[
        str, typer.Option(help="Of overlapping objects: area (smaller on top), file (later on top).")
    ] = "area",
    empty: Annotated[
        str, typer.Option(help="Images without annotations: skip, or keep (all background, no labels).")
    ] = "skip",
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one per core.")] = 0,
) -> None:
    """Turn COCO's annotations into VOC-like masks, a list of ids, and image labels (all three if none is named).

    Run it again to go on: masks that are there, made with the same settings, are kept. Images that fail are listed in
    OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.engine.coco.convert import WHAT, convert
    from infercam.engine.coco.masks import CocoMasks
    from infercam.engine.coco.tree import notes, open_source

    annotations, name, images = open_source(source, split)
    check_output(out, [] if images is None else [images], [source])
    painter = CocoMasks(annotations, crowd, order)
    for note in notes(annotations, empty=empty):
        console.print(f"note: {note}", soft_wrap=True)
    what = [w for w, chosen in zip(WHAT, (masks, lists, labels), strict=True) if chosen] or list(WHAT)
    total = len(annotations.names(empty=empty == "keep"))
    with counting_bar(console=console) as bar, caught_signals() as caught:
        task = bar.add_task("masks", total=total, visible="masks" in what)
        done = convert(
            painter,
            name,
            out,
            what=what,
            empty=empty,
            images=images,
            workers=workers or None,
            progress=lambda n: bar.update(task, advance=n),
            stop=lambda: caught,
        )
    made = f"{done.written} masks written, {done.kept} kept, " if "masks" in what else ""
    console.print(
        f"{done.images} images of {name}: {made}{len(done.failures)} failed, {done.seconds:.1f} s -> {shown(out)}",
        soft_wrap=True,
    )
    if done.failures:
        console.print(f"see {shown(out / FAILURES)}", style="red", soft_wrap=True)
        for line in grouped(done.failures.items()).lines():
            console.print(f"  {line}", soft_wrap=True)
    if done.stopped:
        console.print("stopped; run the same command again to go on")
        raise typer.Exit(128 + caught[0])
    if done.failures:
        raise typer.Exit(1)
