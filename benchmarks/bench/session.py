"""Measuring by turns: every round does every job once, so that a drift of the machine touches all alike.

What was measured is kept in the output folder, one small file a job and round; the same command goes on from there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infercam.benchmarks.bench import process
from infercam.benchmarks.bench.job import BenchJob, BenchOutcome, Measured
from infercam.engine.common.atomic import atomic_write

Say = Callable[[str, float | None], None]
"""Told what is being done, and how many seconds are about left (None: not known yet)."""
Keep = Callable[[Path], dict[str, Any]]
"""Given the folder of a job's maps; what it finds in them is kept, the maps are not."""
RATES = "measured/matrix-rate.json"
SCORE, MAPS = "score", "maps"
"""Names of looks. A look called MAPS moves the maps to MAPS/name in the output folder, and so comes last."""


@dataclass
class BenchTask:
    """A job, how often it is done, and what is to be looked up, in this order, in the maps of its first round."""

    name: str
    job: BenchJob
    rounds: int
    looks: dict[str, Keep] = field(default_factory=dict)


@dataclass
class BenchSession:
    """The output folder, and all that was measured in it."""

    folder: Path
    bundle_hash: str
    """What was measured on another bundle does not count."""
    say: Say = lambda text, left: None
    runner: Callable[[BenchJob, Path], BenchOutcome] = process.measure
    rounds: dict[str, list[Measured]] = field(default_factory=dict)
    """By job key, in the order of the rounds."""
    reasons: dict[str, str] = field(default_factory=dict)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By job key: what each of its looks found, by the look's name."""
    _walls: dict[str, float] = field(default_factory=dict)
    """Seconds that a job took, its process's start included."""

    def key(self, job: BenchJob) -> str:
        return job.key(self.bundle_hash)

    def measured(self, job: BenchJob | None) -> list[Measured]:
        return self.rounds.get(self.key(job), []) if job else []

    def forget(self) -> None:
        """Drop what earlier runs left, so that all is measured anew."""
        for name in ("measured", "scratch"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def run(
        self, tasks: Sequence[BenchTask], before_round: Callable[[int], None] = lambda number: None
    ) -> None:
        """Do every task in every one of its rounds. A job that fails once is not tried again."""
        shutil.rmtree(self.folder / "scratch", ignore_errors=True)
        tasks = self._distinct(tasks)
        last = max((t.rounds for t in tasks), default=0)
        for number in range(last):
            due = [t for t in tasks if number < t.rounds]
            missing = [t for t in due if not self._recall(t, number)]
            if missing:
                before_round(number)
            for at, task in enumerate(missing):
                if self.key(task.job) in self.reasons:
                    continue
                left = self._left(missing[at:], tasks, number)
                self.say(f"round {number + 1} of {last}: {task.name}", left)
                self._do(task, number)

    def _distinct(self, tasks: Sequence[BenchTask]) -> list[BenchTask]:
        """One task a job, for the parts share some: with the most rounds, and all that is looked up."""
        out: dict[str, BenchTask] = {}
        for task in tasks:
            there = out.setdefault(self.key(task.job), task)
            there.rounds = max(there.rounds, task.rounds)
            there.looks = {**there.looks, **task.looks}
        return list(out.values())

    def _left(self, now: Sequence[BenchTask], tasks: Sequence[BenchTask], number: int) -> float | None:
        """Seconds that are about left, once something was measured: each like the last time, or like the mean."""
        if not self._walls:
            return None
        mean = sum(self._walls.values()) / len(self._walls)
        later = [t for n in range(number + 1, max(t.rounds for t in tasks)) for t in tasks if n < t.rounds]
        keys = [self.key(t.job) for t in (*now, *later)]
        return sum(self._walls.get(key, mean) for key in keys if key not in self.reasons)

    # -- the machine's rate ------------------------------------------------------------------------------------------
    def recall_rates(self) -> dict[str, float]:
        """The matrix rates of the rounds that an earlier run measured; {} if there were none."""
        with suppress(OSError, ValueError, AttributeError):
            kept = json.loads((self.folder / RATES).read_text(encoding="utf-8"))
            return {str(device): float(rate) for device, rate in kept.items()}
        return {}

    def keep_rates(self, rates: dict[str, float]) -> None:
        with atomic_write(self.folder / RATES, "w") as f:
            json.dump(rates, f)

    # -- one job -----------------------------------------------------------------------------------------------------
    def _file(self, task: BenchTask, number: int) -> Path:
        return self.folder / "measured" / f"{self.key(task.job)}-{number}.json"

    def _recall(self, task: BenchTask, number: int) -> bool:
        """Take in what an earlier run measured; False where it is to be measured."""
        key = self.key(task.job)
        with suppress(OSError, ValueError, KeyError):
            kept = json.loads(self._file(task, number).read_text(encoding="utf-8"))
            found = kept["found"]
            gone = MAPS in found and not (self.folder / MAPS / found[MAPS]["name"]).is_dir()
            if number == 0 and (gone or not set(task.looks) <= set(found)):
                return False
            self._take(key, Measured.model_validate(kept["measured"]), found, kept["wall"])
            return True
        return False

    def _do(self, task: BenchTask, number: int) -> None:
        key, scratch = self.key(task.job), self.folder / "scratch" / self.key(task.job)
        began = time.monotonic()
        try:
            outcome = self.runner(task.job, scratch)
            wall = time.monotonic() - began
            if outcome.measured is None:
                self.reasons[key] = outcome.reason or "no reason given"
                return
            looks = task.looks if number == 0 else {}
            found = {name: look(scratch / "maps") for name, look in looks.items()}
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        content = {"name": task.name, "measured": outcome.measured.model_dump(), "found": found, "wall": wall}
        with atomic_write(self._file(task, number), "w") as f:
            json.dump(content, f, indent=1)
        self._take(key, outcome.measured, found, wall)

    def _take(self, key: str, measured: Measured, found: dict[str, Any], wall: float) -> None:
        self.rounds.setdefault(key, []).append(measured)
        self._walls[key] = wall
        self.found.setdefault(key, {}).update(found)
