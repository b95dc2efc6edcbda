"""The engine as a contestant: `infercam run` over the list, with each of its savings switchable."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from infercam.benchmarks.bench.job import BenchJob, BenchSwitches, NotMeasured
from infercam.benchmarks.bench.pictures import Lookup, Pictures
from infercam.benchmarks.bench.profiled import profiled_backend
from infercam.benchmarks.bench.running import RunningContestant
from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle
from infercam.engine.method.backend import Limits
from infercam.engine.method.recipe import recipe
from infercam.engine.method.task import Respond, Work
from infercam.engine.run.run import Run
from infercam.engine.store.failures import FAILURES


class Watched:
    """Any backend, with other limits and with a count of the shapes that its network sees."""

    def __init__(self, backend: Any, switches: BenchSwitches) -> None:
        self._backend = backend
        self._switches = switches
        self.shapes: Counter[tuple[int, int]] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    @property
    def limits(self) -> Limits:
        wanted = {"images": self._switches.images_in_flight, "batch_views": self._switches.batch_views}
        limits: Limits = self._backend.limits
        given: dict[str, Any] = {k: v for k, v in wanted.items() if v is not None}
        return dataclasses.replace(limits, **given)

    def submit(self, work: Work) -> None:
        if isinstance(work, Respond):
            self.shapes[work.views[0].shape] += len(work.views)
        self._backend.submit(work)


def engine_contestant(job: BenchJob) -> RunningContestant:
    """Raises what Engine.load raises: BundleError, BackendError, MissingExtra."""
    if job.kind == "profile":
        loaded = Bundle.load(job.bundle)
        profiled = profiled_backend(loaded, job)
        engine = Engine(loaded, profiled)
    else:
        engine = Engine.load(job.bundle, job.backend, job.threads, job.precision)
    watched = Watched(engine.backend, job.switches)
    engine.backend = watched
    chosen = recipe(job.recipe, **job.changes)

    def work(pictures: Pictures, out: Path) -> None:
        source, labels = pictures.source(len(pictures)), Lookup(pictures.labels())
        dtype = "uint8" if job.format == "npz" else "float32"
        run = Run(
            engine,
            source,
            labels,
            out,
            recipe=chosen,
            mode=job.mode,
            fmt=job.format,
            dtype=dtype,
            overlap=job.switches.overlap,
        )
        summary = run()
        if summary.done != len(pictures):
            raise NotMeasured(f"{summary.failed} of {len(pictures)} pictures failed: {_first_failure(out)}")

    def details() -> dict[str, Any]:
        stages = {"stages": profiled.measured()} if job.kind == "profile" else {}
        return {**engine.backend.describe(), **stages}

    def restart() -> None:
        if job.kind == "profile":
            profiled.restart()

    name = f"{watched.name} {watched.precision}"
    return RunningContestant(work, watched.shapes, name, details, restart, engine.close)


def _first_failure(out: Path) -> str:
    try:
        return (out / FAILURES).read_text(encoding="utf-8").splitlines()[0][:300]
    except (OSError, IndexError):
        return "no reason was recorded"
