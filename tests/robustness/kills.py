"""kill -9 at random moments: of a run, of one of two shards, of a cluster's worker. Afterwards the same command
again, to its end: every file must be the undisturbed run's."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from tests.robustness.outcome import Outcome, Say, Size, Skipped
from tests.robustness.rig import Rig, differences, finish, kill, running, start


def kill_run(rig: Rig, size: Size, say: Say) -> Outcome:
    """One to three kills in a row, each after a random share of what an undisturbed run takes."""
    outcome = Outcome("kill -9 of the run")
    reference, seconds = rig.reference
    kills = 0
    kept: list[int] = []
    for number in range(size.rounds):
        out = rig.folder / "killed"
        for _ in range(rig.rng.integers(1, 4)):
            kills += _kill_after(rig.command(out), float(rig.rng.uniform(0.1, 1)) * seconds)
        kept.append(len(list(out.glob("*.npz"))))
        _check(outcome, reference, out, [rig.command(out)], f"round {number}")
        say(f"kill -9 of the run: round {number + 1} of {size.rounds}")
    outcome.rounds = size.rounds
    outcome.figures = {"kills": kills, "images": rig.count, "images there after the last kill": kept}
    return outcome


def kill_shard(rig: Rig, size: Size, say: Say) -> Outcome:
    """Two shards into one store, one of them killed; the other goes on, the killed one is started again."""
    _require(rig, "--shard")
    outcome = Outcome("kill -9 of a shard")
    reference, alone = rig.folder / "reference-shards", rig.reference[1]
    for shard in ("1/2", "2/2"):
        finish(rig.command(reference, "--shard", shard))
    for number in range(size.rounds):
        out = rig.folder / "shards"
        commands = [rig.command(out, "--shard", shard) for shard in ("1/2", "2/2")]
        victim = int(rig.rng.integers(2))
        with running(commands[1 - victim]) as other:
            _kill_after(commands[victim], float(rig.rng.uniform(0.2, 1)) * alone)
            _, err = other.communicate(timeout=300)
            if other.returncode:
                outcome.lose(f"round {number}: the other shard ended with {other.returncode}: {err[-200:]}")
        _check(outcome, reference, out, [commands[victim]], f"round {number}")
        say(f"kill -9 of a shard: round {number + 1} of {size.rounds}")
    outcome.rounds = size.rounds
    return outcome


def kill_worker(rig: Rig, size: Size, say: Say) -> Outcome:
    """A Ray worker process of `--cluster ray`: the run itself must finish, and lose nothing."""
    _require(rig, "--cluster")
    try:
        import ray  # noqa: F401
    except ImportError:
        raise Skipped("ray is not installed (extra cluster)") from None
    outcome = Outcome("kill -9 of a cluster's worker")
    reference = rig.folder / "reference-cluster"
    whole = finish(rig.command(reference, "--cluster", "ray"))
    if whole.code:
        raise Skipped(f"--cluster ray does not run here: {whole.err[-200:]}")
    rounds = size.rounds
    killed = 0
    for number in range(rounds):
        out = rig.folder / "cluster"
        command = rig.command(out, "--cluster", "ray")
        with running(command) as child:
            killed += _kill_a_worker(child, out, float(rig.rng.uniform(0, 1.5)))
            _, err = child.communicate(timeout=300)
            if child.returncode:
                outcome.lose(f"round {number}: the run ended with {child.returncode}: {err[-300:]}")
        _check(outcome, reference, out, [], f"round {number}")
        say(f"kill -9 of a worker: round {number + 1} of {rounds}")
    outcome.rounds = rounds
    outcome.figures = {"workers killed": killed}
    if not killed:
        outcome.lose("no worker was found to kill: nothing was proved")
    return outcome


def _require(rig: Rig, option: str) -> None:
    shown = subprocess.run(
        [*rig.command(rig.folder)[:3], "run", "--help"], capture_output=True, text=True, check=False
    )
    if option not in shown.stdout:
        raise Skipped(f"infercam run has no {option} here")


def _kill_after(command: list[str], seconds: float) -> bool:
    """Whether it was killed (and had not ended by then)."""
    child = start(command)
    try:
        child.communicate(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        kill(child)
        return True


def _check(outcome: Outcome, reference: Path, out: Path, resume: list[list[str]], where: str) -> None:
    """Resume, compare with the undisturbed store, and remove."""
    for command in resume:
        done = finish(command)
        if done.code:
            outcome.lose(f"{where}: resuming ended with {done.code}: {done.err[-300:]}")
    for difference in differences(reference, out)[:5]:
        outcome.lose(f"{where}: {difference}")
    shutil.rmtree(out, ignore_errors=True)


def _kill_a_worker(child: subprocess.Popen[str], out: Path, delay: float) -> bool:
    """Wait for the first map and `delay` more, then kill -9 a worker that descends from `child`."""
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if any(out.glob("*.npz")):
            break
        time.sleep(0.05)
    time.sleep(delay)
    workers = [pid for pid in descendants(child.pid) if _is_worker(pid)]
    if child.poll() is not None or not workers:
        return False
    os.kill(workers[0], signal.SIGKILL)
    return True


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, from /proc."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                parents.setdefault(_parent(folder), []).append(int(folder.name))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _parent(folder: Path) -> int:
    return int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def _is_worker(pid: int) -> bool:
    """One of ours: Ray's own agents, which share the fate of the whole node, are named otherwise."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::MapWorker(")
    except OSError:
        return False
