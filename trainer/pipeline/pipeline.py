"""A chain of steps in one folder: each is skipped where it was done with the same settings and inputs.

    DIR/settings.json   every step's settings as they were resolved, and hashes of what it reads
    DIR/state.json      per step: fingerprint, whether it is done, its figures, seconds
    DIR/STEP/           what the step wrote
    DIR/STEP.old/       what it had finished with other settings, until that happens again
    DIR/summary.json    the table at the end

A step's fingerprint covers its settings, the files it reads and the fingerprints of the steps it builds on,
so that a change re-does exactly what depends on it. A step that was stopped is called again with its folder as
it was left: every step goes on by itself. What the steps are is told by steps/.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.common.progress import stderr as console

SETTINGS, STATE, SUMMARY, OLD = "settings.json", "state.json", "summary.json", ".old"

Figures = dict[str, float]


@dataclass(frozen=True)
class PipelineStep:
    """One step: what it depends on and how it is run."""

    name: str
    run: Callable[[Path], Figures]
    """Work in the folder given, going on with what is in it; returns the figures worth a line."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All that changes the result (JSON-able), but no file: those are in `inputs`."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Hashes of what is read from outside the pipeline."""
    needs: tuple[str, ...] = ()
    """The steps it builds on."""


@dataclass
class StepOutcome:
    """A step's line in the summary."""

    step: str
    status: str
    """done (by this run), kept (done before), or left (not reached)."""
    figures: Figures
    seconds: float
    """Of all runs that worked on it."""
    fingerprint: str


class Pipeline:
    """Steps in order, in a folder. `plan` tells what a run would do, `run` does it."""

    def __init__(self, out: Path, steps: Sequence[PipelineStep]) -> None:
        self.out = Path(out)
        self.steps = list(steps)
        self.prints = fingerprints(self.steps)
        self._state = _read_state(self.out / STATE)

    def plan(self, until: str | None = None, redo: str | None = None) -> dict[str, str]:
        """Step -> "keep", "go on", "do" or "do again", for those up to `until`.

        redo: this step and what builds on it are done again. Raises InputError for an unknown step.
        """
        self._known(until)
        plan = self._plan(redo)
        return {name: plan[name] for name in self._until(until)}

    def run(self, until: str | None = None, redo: str | None = None) -> list[StepOutcome]:
        """Do what `plan` says; returns a line for every step of the pipeline, and writes summary.json.

        An error or a signal leaves what is done as it is: the same call goes on. Raises what steps raise.
        """
        plan = self.plan(until, redo)
        _write_json(self.out / SETTINGS, {s.name: self._described(s) for s in self.steps})
        self._forget(name for name, what in self._plan(redo).items() if what == "do again")
        status = dict.fromkeys((s.name for s in self.steps), "left")
        try:
            for step in self.steps:
                if step.name not in plan:
                    break
                if plan[step.name] == "keep":
                    status[step.name] = "kept"
                    continue
                self._do(step, plan[step.name])
                status[step.name] = "done"
        finally:
            outcomes = [self._outcome(s, status[s.name]) for s in self.steps]
            _write_json(self.out / SUMMARY, [asdict(o) for o in outcomes])
        return outcomes

    def _described(self, step: PipelineStep) -> dict[str, Any]:
        return {
            "settings": dict(step.settings),
            "inputs": dict(step.inputs),
            "builds_on": list(step.needs),
            "fingerprint": self.prints[step.name],
        }

    def _plan(self, redo: str | None) -> dict[str, str]:
        """What is to be done with every step."""
        again: set[str] = set()
        plan: dict[str, str] = {}
        for step in self.steps:
            if step.name == self._known(redo) or again & set(step.needs):
                again.add(step.name)
            plan[step.name] = self._wanted(step, step.name in again)
            if plan[step.name] != "keep":
                again.add(step.name)  # what builds on it will see other files, even with the same settings
        return plan

    def _forget(self, names: Iterable[str]) -> None:
        """Mark steps as of other settings, so that a run that is stopped before it reaches them does not
        leave them looking done."""
        for name in names:
            self._state[name]["fingerprint"] = ""
        _write_json(self.out / STATE, self._state)

    def _until(self, last: str | None) -> list[str]:
        names = [s.name for s in self.steps]
        return names if last is None else names[: names.index(last) + 1]

    def _known(self, name: str | None) -> str | None:
        if name is not None and name not in self.prints:
            raise InputError(f"no step {name!r} in this pipeline; there are: {', '.join(self.prints)}")
        return name

    def _wanted(self, step: PipelineStep, again: bool) -> str:
        was = self._state.get(step.name)
        if was is None or not (self.out / step.name).is_dir():
            return "do"
        same = was["fingerprint"] == self.prints[step.name]
        if again or not same:
            return "do again"
        return "keep" if was["done"] else "go on"

    def _do(self, step: PipelineStep, what: str) -> None:
        folder = self.out / step.name
        was = self._state.get(step.name)
        if what == "do again" and was is not None:
            _put_aside(folder, finished=was["done"])
        before = was["seconds"] if what == "go on" and was is not None else 0.0
        self._record(step, done=False, figures={}, seconds=before)
        console.print(f"== {step.name}")
        started = time.monotonic()
        figures: Figures = {}
        done = False
        try:
            _make(folder)
            figures = step.run(folder)
            done = True
        finally:
            self._record(step, done, figures, before + time.monotonic() - started)

    def _record(self, step: PipelineStep, done: bool, figures: Figures, seconds: float) -> None:
        self._state[step.name] = {
            "fingerprint": self.prints[step.name],
            "done": done,
            "figures": figures,
            "seconds": round(seconds, 1),
        }
        _write_json(self.out / STATE, self._state)

    def _outcome(self, step: PipelineStep, status: str) -> StepOutcome:
        was = self._state.get(step.name, {})
        mine = was.get("fingerprint") == self.prints[step.name] and status != "left"
        return StepOutcome(
            step.name,
            status,
            was["figures"] if mine else {},
            was["seconds"] if mine else 0.0,
            self.prints[step.name],
        )


def fingerprints(steps: Sequence[PipelineStep]) -> dict[str, str]:
    """Step -> hash of its settings, inputs and the fingerprints of what it builds on.

    Raises ValueError where a step builds on one that does not come before it.
    """
    found: dict[str, str] = {}
    for step in steps:
        missing = [n for n in step.needs if n not in found]
        if missing or step.name in found:
            raise ValueError(f"step {step.name}: is there twice, or before {missing}")
        key = [step.name, dict(step.settings), dict(step.inputs), [found[n] for n in step.needs]]
        found[step.name] = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return found


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StoreError(f"{folder}: cannot be made: {e.strerror}") from None


def _put_aside(folder: Path, finished: bool) -> None:
    """Rename FOLDER to FOLDER.old, which is replaced; what was not finished does not replace anything."""
    old = folder.with_name(folder.name + OLD)
    try:
        if old.exists() and not finished:
            shutil.rmtree(folder)
            return
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    except OSError as e:
        raise StoreError(f"{folder}: cannot be put aside as {old.name}: {e.strerror}") from None
    console.print(f"{folder.name}: done anew; what was there is kept in {old}", soft_wrap=True)


def _read_state(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        for was in raw.values():
            _ = was["fingerprint"], was["done"], was["figures"], was["seconds"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file}: damaged; delete it to do every step again") from None
    return dict(raw)


def _write_json(file: Path, content: Any) -> None:
    try:
        with atomic_write(file, "w") as f:
            json.dump(content, f, indent=1)
            f.write("\n")
    except OSError as e:
        raise StoreError(f"{file}: cannot be written: {e.strerror}") from None
