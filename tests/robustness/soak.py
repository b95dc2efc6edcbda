"""Many images through one process: memory, file handles, threads and rate, watched from outside through /proc."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from infercam.engine.store.mapstore import INDEX
from tests.robustness.outcome import Outcome, Say, Size, Skipped
from tests.robustness.rig import Rig, running

SIZE = (48, 64)
LOOKS = 400  # about so many, whatever the length
BYTES_PER_IMAGE = 512.0
"""Memory may grow by no more, over the second half: the index holds a line of each image that is done."""
FEW = 4
"""Handles and threads that the second half may have more: pools start their threads when first needed."""
SLACK = 8 << 20  # bytes of a short run's noise
LEAST_RATE = 0.85
"""The last quarter's rate over the first's, on a machine that does nothing else."""


class Sample(NamedTuple):
    seconds: float
    done: int
    rss: int
    handles: int
    threads: int


def soak(rig: Rig, size: Size, say: Say, judge_rate: bool = True) -> Outcome:
    """`size.soak` images of 48×64 through `infercam run` with the recipe fast."""
    if not Path("/proc/self/status").exists():
        raise Skipped("needs /proc")
    outcome = Outcome("soak", rounds=1, inputs=size.soak)
    small = Rig(rig.folder / "soak", size.soak, 1, SIZE, rig.backend, rig.precision)
    out = small.folder / "maps"
    with running(small.command(out)) as child:
        samples = [s for s in _watch(child, out / INDEX, size.soak, say) if s.done]
        _, err = child.communicate()
    if child.returncode or "Traceback" in err:
        outcome.lose(f"the run ended with {child.returncode}: {err[-300:]}")
    made = sum(1 for _ in out.glob("*.npz"))
    if made != size.soak:
        outcome.lose(f"{made} maps of {size.soak} images")
    if len(samples) < 8:
        outcome.lose(f"only {len(samples)} looks at the run: too short to judge")
        return outcome
    _judge(outcome, samples, judge_rate)
    return outcome


def _judge(outcome: Outcome, samples: list[Sample], judge_rate: bool) -> None:
    half = samples[len(samples) // 2 :]
    grown = _slope(half) * (half[-1].done - half[0].done)
    quarter = len(samples) // 4
    rates = [_rate(samples[:quarter]), _rate(samples[-quarter:])]
    handles = [max(s.handles for s in part) for part in (samples[: len(samples) // 2], half)]
    threads = [max(s.threads for s in part) for part in (samples[: len(samples) // 2], half)]
    outcome.figures = {
        "images": samples[-1].done,
        "seconds": round(samples[-1].seconds, 1),
        "rss_mb": {"first": _mb(samples[0].rss), "half": _mb(half[0].rss), "last": _mb(half[-1].rss)},
        "rss_bytes_per_image_second_half": round(_slope(half), 1),
        "handles": {"first half": handles[0], "second half": handles[1]},
        "threads": {"first half": threads[0], "second half": threads[1]},
        "images_per_second": {"first quarter": round(rates[0], 1), "last quarter": round(rates[1], 1)},
    }
    if grown > SLACK + BYTES_PER_IMAGE * (half[-1].done - half[0].done):
        outcome.lose(f"memory grew by {_slope(half):.0f} bytes an image in the second half")
    if handles[1] > handles[0] + FEW:
        outcome.lose(f"file handles grew from {handles[0]} to {handles[1]}")
    if threads[1] > threads[0] + FEW:
        outcome.lose(f"threads grew from {threads[0]} to {threads[1]}")
    if judge_rate and rates[1] < LEAST_RATE * rates[0]:
        outcome.lose(f"the rate fell from {rates[0]:.1f} to {rates[1]:.1f} images/s")


def _watch(child: subprocess.Popen[str], index: Path, total: int, say: Say) -> Iterator[Sample]:
    began = time.monotonic()
    lines = _Lines(index)
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
            handles = sum(1 for _ in Path(f"/proc/{child.pid}/fd").iterdir())
            rss, threads = (_number(status, key) for key in ("VmRSS:", "Threads:"))
        except (OSError, ValueError):  # it has just ended
            return
        sample = Sample(time.monotonic() - began, lines.count(), rss * 1024, handles, threads)
        yield sample
        say(f"soak: {sample.done} of {total} images, {_mb(sample.rss)} MB, {handles} handles")
        time.sleep(max(0.02, total / LOOKS / 250))


class _Lines:
    """Lines of a growing file, each byte looked at once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = self._lines = 0

    def count(self) -> int:
        if self._file.exists():
            with self._file.open("rb") as f:
                f.seek(self._at)
                new = f.read()
            self._at += len(new)
            self._lines += new.count(b"\n")
        return self._lines


def _number(status: str, key: str) -> int:
    """Raises ValueError where the process has ended and is only waited for."""
    for line in status.splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise ValueError(key)


def _slope(samples: list[Sample]) -> float:
    """Bytes an image, by least squares."""
    done, rss = (np.array([s[i] for s in samples], np.float64) for i in (1, 2))
    return float(np.polyfit(done, rss, 1)[0]) if np.ptp(done) else 0.0


def _rate(samples: list[Sample]) -> float:
    return (samples[-1].done - samples[0].done) / max(1e-9, samples[-1].seconds - samples[0].seconds)


def _mb(size: int) -> int:
    return round(size / 1e6)
