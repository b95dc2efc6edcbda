"""The worker process: `python -m infercam.benchmarks.bench.worker FOLDER` does FOLDER/job.json, writes outcome.json.

Each kind of contestant gives a function that does a list of pictures and leaves maps; this module warms it up on
one picture, reads the clocks around it, and turns every failure into one line.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from infercam.benchmarks.bench.job import BenchJob, BenchOutcome, Measured
from infercam.benchmarks.bench.pictures import load
from infercam.benchmarks.bench.running import RunningContestant
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InfercamError, shown

LEAST_SECONDS = 0.5
"""Less cannot be timed well."""


def prepare(job: BenchJob) -> RunningContestant:
    """The contestant, loaded and ready; raises InfercamError where it cannot run here."""
    if job.kind in ("engine", "profile"):
        from infercam.benchmarks.bench.engine_contestant import engine_contestant

        return engine_contestant(job)
    if job.kind == "loop":
        from infercam.benchmarks.bench.loop_contestant import loop_contestant

        return loop_contestant(job)
    from infercam.benchmarks.bench.peers import peer_contestant

    return peer_contestant(job)


def measure(job: BenchJob, out: Path) -> Measured:
    """Do the job under the clock; its maps are left in `out`, of the list's other pictures nothing."""
    pictures = load(job.pictures)
    listed = pictures.model_copy(update={"pictures": pictures.pictures[: job.count]})
    contestant = prepare(job)
    try:
        contestant.work(listed.model_copy(update={"pictures": listed.pictures[:1]}), out / "warm")
        contestant.shapes.clear()
        contestant.restart()
        passes, cpu, began = 0, time.process_time(), time.monotonic()
        while not passes or time.monotonic() - began < LEAST_SECONDS:
            contestant.work(listed, out / (f"again-{passes}" if passes else "maps"))
            passes += 1
        ended = time.monotonic()
        cpu = time.process_time() - cpu
    finally:
        contestant.close()
    return Measured(
        images=passes * len(listed),
        passes=passes,
        seconds=ended - began,
        cpu_seconds=cpu,
        began=began,
        ended=ended,
        network_pixels=sum(h * w * n for (h, w), n in contestant.shapes.items()),
        shapes={f"{h}x{w}": n for (h, w), n in sorted(contestant.shapes.items())},
        backend=contestant.backend,
        details=contestant.details(),
    )


def main(folder: Path) -> int:
    """0 where it was measured; 1 where outcome.json says why not."""
    job = BenchJob.model_validate_json((folder / "job.json").read_bytes())
    try:
        outcome = BenchOutcome(measured=measure(job, folder))
    except InfercamError as e:
        outcome = BenchOutcome(reason=str(e))
    except (
        Exception
    ) as e:  # of a library of others: its row says so, the other rows are measured all the same
        text = str(e).strip().splitlines()
        outcome = BenchOutcome(reason=shown(f"{type(e).__name__}: {text[0] if text else 'no message'}"))
    with atomic_write(folder / "outcome.json", "w") as f:
        f.write(outcome.model_dump_json())
    return 0 if outcome.measured else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
