"""`infercam demo`: options, progress, what is printed. The work is in ablation.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import TaskID

from infercam.engine.common.progress import counting_bar

if TYPE_CHECKING:
    from infercam.engine.demo.ablation import Progress as Report

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder to write: new, empty, or an earlier demo's, which is replaced.")
    ] = Path("infercam-demo"),
    images: Annotated[int, typer.Option(min=1, max=20_000, help="Number of scenes.")] = 48,
    recipe: Annotated[str, typer.Option(help="paper, released, corrected, fast, best.")] = "released",
    seed: Annotated[int | None, typer.Option(min=0, help="Other scenes than the usual ones.")] = None,
    backend: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Worker threads (default: all cores).")] = None,
) -> None:
    """Run the method on synthetic scenes with the embedded classifier: baseline, split, erase, both.

    Prints seconds and best mIoU of each mode, and writes OUT/gallery.png, OUT/results.json, the scenes as a
    VOC tree (OUT/voc) and the maps of each mode (OUT/maps).
    """
    from infercam.engine.api import Engine
    from infercam.engine.demo import report
    from infercam.engine.demo.ablation import BUNDLE, DEMO_SEED, GALLERY, RESULTS, SPLIT, ablation
    from infercam.engine.demo.gallery import write_gallery
    from infercam.engine.method.recipe import recipe as named

    chosen, used_seed = named(recipe), DEMO_SEED if seed is None else seed
    with Engine.load(BUNDLE, backend, threads) as engine, _progress() as progress:
        done = ablation(engine, out, images, chosen, used_seed, progress)
    write_gallery(done, out / GALLERY)
    report.write_results(done, out / RESULTS, used_seed)
    stdout.print(report.table(done))
    stdout.print(report.conclusion(done), soft_wrap=not stdout.is_terminal)
    stdout.print(f"\nLook at {out / GALLERY}; all figures are in {out / RESULTS}.", soft_wrap=True)
    stdout.print(
        f"The same by hand, for one mode:\n{_by_hand(out, chosen.name, SPLIT, BUNDLE)}", soft_wrap=True
    )


def _by_hand(out: Path, recipe: str, split: str, bundle: Path) -> str:
    voc = out / "voc"
    return (
        f"  infercam run {bundle} --voc {voc} --split {split} --labels {voc / 'labels.json'} "
        f"--recipe {recipe} --mode both -o my-maps\n"
        f"  infercam eval my-maps --voc {voc} --split {split}"
    )


@contextmanager
def _progress() -> Iterator[Report]:
    """A bar for each step; one line for each where stderr is not a terminal."""
    bar = counting_bar(None, stderr, transient=False)
    tasks: dict[str, TaskID] = {}

    def report(step: str, done: int, total: int) -> None:
        if step not in tasks:
            if not stderr.is_terminal:
                stderr.print(f"{step}: {total} images")
            tasks[step] = bar.add_task(step, total=total)
        bar.update(tasks[step], completed=done)

    with bar:
        yield report
