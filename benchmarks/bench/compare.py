"""Is it slower than it was? Two results of one machine, bundle and set of pictures, judged against their noise.

Noise is what the rounds of a row differ by: the standard deviation of the logarithm of its time within a run, pooled
over all rows of both runs (a row's own, where that is larger), over the square root of its rounds. A row is slower
where the ratio of the medians is beyond 3 such standard errors and beyond 3 %. Memory counts from 10 % and 20 MB
on; mIoU, which does not vary, from 0.2 points on.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

from infercam.benchmarks.bench.result import BenchResult, ResultRow, Spread, Subject
from infercam.engine.common.errors import InputError

STANDARD_ERRORS, LEAST_RATIO = 3.0, 1.03
MEMORY_RATIO, MEMORY_MB = 1.10, 20.0
MIOU = 0.002


@dataclass(frozen=True)
class Verdict:
    """One figure of one row, then and now."""

    row: str
    figure: str
    old: float
    new: float
    limit: float | None
    """The ratio (mIoU: the difference) from which on it would be a regression; None: cannot be judged."""
    worse: bool

    def __str__(self) -> str:
        if self.figure == "mIoU":
            return f"{self.row}: mIoU {100 * self.old:.2f} -> {100 * self.new:.2f}"
        unit = "s an image" if self.figure == "time" else "MB"
        judged = (
            f"noise up to {100 * (self.limit - 1):.0f} %" if self.limit else "one round each: noise not known"
        )
        change = 100 * (self.new / self.old - 1)
        return f"{self.row}: {self.old:.4g} -> {self.new:.4g} {unit} ({change:+.1f} %; {judged})"


def check_comparable(old: BenchResult, subject: Subject, machine: dict[str, Any]) -> None:
    """Raises InputError, one line, where `old` was measured on something else or on another machine."""
    was = old.subject
    for what, a, b in (
        ("the bundle", was.bundle_hash, subject.bundle_hash),
        ("the number of images", was.images, subject.images),
        ("the number of images for slow contestants", was.few, subject.few),
        ("the set of pictures", was.pictures_digest, subject.pictures_digest),
        *((f"the machine's {k}", old.machine.get(k), machine.get(k)) for k in ("processor", "cores", "gpu")),
    ):
        if a != b:
            raise InputError(f"nothing to compare: {what} differs ({a} then, {b} now)")


def changed_versions(old: BenchResult, new: BenchResult) -> list[str]:
    """What else differs between the two machines' descriptions: worth a note, no reason to refuse."""
    keys = sorted({*old.machine, *new.machine})
    differing = [k for k in keys if old.machine.get(k) != new.machine.get(k)]
    return [f"{k}: {old.machine.get(k)} then, {new.machine.get(k)} now" for k in differing]


def compare(old: BenchResult, new: BenchResult) -> list[Verdict]:
    """A verdict for every figure that both have. Raises InputError where they cannot be compared."""
    check_comparable(old, new.subject, new.machine)
    before = {r.name: r for r in old.rows if r.seconds_per_image}
    pairs = [(before[r.name], r) for r in new.rows if r.seconds_per_image and r.name in before]
    if not pairs:
        raise InputError("nothing to compare: the two results have no measured row in common")
    pooled = _pooled([s for pair in pairs for r in pair if (s := r.seconds_per_image)])
    out: list[Verdict] = []
    for a, b in pairs:
        out.append(_time(a, b, pooled))
        out += _memory(a, b)
        out += _quality(a, b)
    return out


def _time(a: ResultRow, b: ResultRow, pooled: float | None) -> Verdict:
    assert a.seconds_per_image and b.seconds_per_image
    x, y = a.seconds_per_image, b.seconds_per_image
    limit = time_limit(x, y, pooled)
    worse = limit is not None and y.median / x.median > limit
    return Verdict(b.name, "time", x.median, y.median, limit, worse)


def time_limit(x: Spread, y: Spread, pooled: float | None) -> float | None:
    """The ratio beyond which it is no longer noise; None without any repeated measurement."""
    if pooled is None:
        return None
    sigma = max(pooled, _pooled([x, y]) or 0.0)
    error = sigma * math.sqrt(1 / len(x.all) + 1 / len(y.all))
    return max(LEAST_RATIO, math.exp(STANDARD_ERRORS * error))


def _pooled(spreads: list[Spread]) -> float | None:
    """Standard deviation of log seconds within rows; None where no row was repeated."""
    logs = [[math.log(v) for v in s.all] for s in spreads if len(s.all) > 1]
    freedom = sum(len(values) - 1 for values in logs)
    if not freedom:
        return None
    return math.sqrt(sum(statistics.variance(v) * (len(v) - 1) for v in logs) / freedom)


def _memory(a: ResultRow, b: ResultRow) -> list[Verdict]:
    if a.peak_mb is None or b.peak_mb is None:
        return []
    worse = b.peak_mb > MEMORY_RATIO * a.peak_mb and b.peak_mb > a.peak_mb + MEMORY_MB
    return [Verdict(b.name, "memory", a.peak_mb, b.peak_mb, MEMORY_RATIO, worse)]


def _quality(a: ResultRow, b: ResultRow) -> list[Verdict]:
    if a.miou is None or b.miou is None or a.miou_images != b.miou_images:
        return []
    return [Verdict(b.name, "mIoU", a.miou, b.miou, MIOU, b.miou < a.miou - MIOU)]
