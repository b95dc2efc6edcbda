"""The pipeline's own call of the engine: what `infercam run` does, from settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from infercam.engine.api import Engine
from infercam.engine.common.errors import InputError
from infercam.engine.common.progress import JobProgress
from infercam.engine.common.progress import stderr as console
from infercam.engine.common.signals import caught_signals
from infercam.engine.method.recipe import Recipe
from infercam.engine.run.run import Run, Summary
from infercam.engine.store.failures import FAILURES
from infercam.trainer.pipeline.pipeline import Figures

if TYPE_CHECKING:
    from infercam.trainer.pipeline.config import DataTable, MapsTable


def make_maps(bundle: Path, data: DataTable, out: Path, recipe: Recipe, table: MapsTable) -> Figures:
    """Maps of every photo into the store `out`, going on with what is there; `failed`, where some failed.

    Raises SystemExit where a signal stopped it, InputError where not one photo could be done, and what
    Engine and Run raise.
    """
    wanted = data.source()
    source = wanted.open()
    with (
        Engine.load(bundle, table.backend, table.threads) as engine,
        caught_signals() as caught,
        JobProgress("maps", len(source)) as bar,
    ):
        lookup = wanted.labels(data.labels, engine.manifest.classes)
        shown = 0

        def watch(summary: Summary, _: Any) -> None:
            nonlocal shown
            finished = summary.done + summary.kept + summary.failed
            bar.advance(finished - shown, f"{summary.failed} failed" if summary.failed else "")
            shown = finished
            if caught:
                job.stop.set()

        mode: Any = table.mode
        job = Run(engine, source, lookup, out, recipe=recipe, mode=mode, watch=watch)
        job()
    if caught:
        console.print("maps: stopped; run the same command again to go on")
        raise SystemExit(128 + caught[0])
    failed = job.summary.failed
    if failed == len(source) or job.summary.gave_up:
        commonest = job.failures.groups.lines(1)[0]
        raise InputError(
            f"none of the {failed} photos that were tried could be done ({commonest}; all in {out / FAILURES})"
        )
    return {"failed": float(failed)} if failed else {}
