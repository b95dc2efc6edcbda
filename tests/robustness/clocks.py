"""Wall clocks that jump while a run is under way, and a second process that sweeps by a clock years ahead."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path

from tests.robustness.outcome import Outcome, Say, Size, Skipped
from tests.robustness.rig import Rig, differences, finish, running

DAY = 86_400
SWEEP = "import sys; from pathlib import Path; from infercam.engine.store.mapstore import sweep_stale\n" + (
    "print(sum(sweep_stale(Path(sys.argv[1])) for _ in range(2000)))"
)


def clock_jumps(rig: Rig, size: Size, say: Say) -> Outcome:
    """A run whose clock jumps, killed and resumed by one with other jumps; and beside a run with the right clock,
    one that sweeps what it takes for a year old, again and again."""
    shim = build_shim(rig.folder)
    outcome = Outcome("clock jumps")
    reference, seconds = rig.reference
    swept = 0
    for number in range(size.rounds):
        out = rig.folder / "jumps"
        env = {"LD_PRELOAD": str(shim), "HOLDS_CLOCK": _jumps(rig)}
        with running(rig.command(out), env) as child:
            _wait(child, float(rig.rng.uniform(0.3, 1)) * seconds)
        done = finish(rig.command(out), {**env, "HOLDS_CLOCK": _jumps(rig)})
        if done.code:
            outcome.lose(f"round {number}: {done.err[-200:]}")
        for difference in differences(reference, out)[:5]:
            outcome.lose(f"round {number}: {difference}")
        shutil.rmtree(out, ignore_errors=True)
        swept += _sweep_beside(rig, shim, outcome, number)
        say(f"clock jumps: round {number + 1} of {size.rounds}")
    outcome.rounds = 2 * size.rounds
    outcome.figures = {"temporary files swept beside a live run": swept}
    return outcome


def build_shim(folder: Path) -> Path:
    """Compile clock.c; raises Skipped without a C compiler."""
    compiler = next((c for c in ("cc", "gcc", "g++", "clang") if shutil.which(c)), None)
    if compiler is None or sys.platform != "linux":
        raise Skipped("needs a C compiler, and Linux")
    shim = folder / "clock.so"
    with as_file(files(__package__) / "clock.c") as source:
        command = [compiler, "-x", "c", "-O1", "-shared", "-fPIC", "-o", str(shim), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"the clock's shim does not compile here: {done.stderr[:200]}")
    return shim


def _jumps(rig: Rig) -> str:
    """Jumps of up to a year, forwards and backwards."""
    return ",".join(str(int(days * DAY)) for days in rig.rng.uniform(-400, 400, 8))


def _wait(child: subprocess.Popen[str], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _sweep_beside(rig: Rig, shim: Path, outcome: Outcome, number: int) -> int:
    """A run, and beside it sweeps by a clock that is a year ahead; returns how many files those removed."""
    out = rig.folder / "swept"
    env = {"LD_PRELOAD": str(shim), "HOLDS_CLOCK": str(366 * DAY)}
    removed = 0
    with running(rig.command(out)) as child:
        while child.poll() is None:
            sweep = [sys.executable, "-c", SWEEP, str(out)]
            done = subprocess.run(sweep, capture_output=True, text=True, env=_with(env), check=False)
            removed += int(done.stdout or 0)
        _, err = child.communicate()
        if child.returncode:
            outcome.lose(f"round {number}: a run beside a wrong clock ended: {err[-300:]}")
    if child.returncode == 0:
        for difference in differences(rig.reference[0], out)[:5]:
            outcome.lose(f"round {number}, swept: {difference}")
    shutil.rmtree(out, ignore_errors=True)
    return removed


def _with(env: dict[str, str]) -> dict[str, str]:
    from tests.robustness.rig import environment

    return environment(env)
