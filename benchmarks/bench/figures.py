"""From what was measured to the figures of the table: medians over the rounds, ratios round by round."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from infercam.benchmarks.bench.contestants import Contestant
from infercam.benchmarks.bench.fit import power_law
from infercam.benchmarks.bench.flops import Counter
from infercam.benchmarks.bench.growth import Axis
from infercam.benchmarks.bench.job import Measured
from infercam.benchmarks.bench.result import Growth, Point, ResultRow, Spread, WaterfallStep
from infercam.benchmarks.bench.session import SCORE, BenchSession
from infercam.engine.common.errors import InfercamError


def spread(values: Sequence[float]) -> Spread:
    return Spread(
        median=statistics.median(values), low=min(values), high=max(values), all=[round(v, 6) for v in values]
    )


def row(
    one: Contestant, session: BenchSession, operations: Counter | None, rates: dict[str, float]
) -> ResultRow:
    """A contestant's row; its reason where it was not measured."""
    rounds = session.measured(one.job)
    if one.job is None or not rounds:
        reason = one.reason or (session.reasons.get(session.key(one.job)) if one.job else None)
        return ResultRow(name=one.name, not_measured=reason or "was not asked for")
    first = rounds[0]
    seconds = spread([m.seconds_per_image for m in rounds])
    flop = flop_per_image(first, operations)
    score = session.found.get(session.key(one.job), {}).get(SCORE, {}).get("miou") if one.scored else None
    busy = [m.gpu_busy for m in rounds if m.gpu_busy is not None]
    memory = [m.gpu_mb for m in rounds if m.gpu_mb is not None]
    rate = rates.get("gpu" if on_gpu(first) else "cpu")
    return ResultRow(
        name=one.name,
        images=first.images // first.passes,
        rounds=len(rounds),
        seconds_per_image=seconds,
        images_per_second=1 / seconds.median,
        over_baseline=over(rounds, session.measured(one.yardstick)),
        cpu_cores=statistics.median(m.cores for m in rounds),
        gpu_busy=statistics.median(busy) if busy else None,
        gpu_mb=max(memory, default=None),
        peak_mb=max(m.peak_mb for m in rounds),
        network_pixels_per_image=first.network_pixels / first.images,
        flop_per_image=flop,
        rate_share=flop / seconds.median / rate if flop and rate else None,
        miou=score,
        miou_images=first.images // first.passes if score is not None else 0,
        backend=first.backend,
        details=first.details,
    )


def flop_per_image(measured: Measured, operations: Counter | None) -> float | None:
    """None where the graph's operations cannot be counted here."""
    if operations is None or not measured.shapes:
        return None
    try:
        return operations.of(measured.shapes) / measured.images
    except InfercamError:
        return None


def on_gpu(measured: Measured) -> bool:
    backend = measured.backend or ""
    return backend.startswith(("tensorrt", "ort-")) or bool(measured.details.get("cuda"))


def over(rounds: Sequence[Measured], yardstick: Sequence[Measured]) -> Spread | None:
    """Ratios within each round, so that what slows a whole round drops out."""
    pairs = list(zip(rounds, yardstick, strict=False))
    return spread([a.seconds_per_image / b.seconds_per_image for a, b in pairs]) if pairs else None


def steps(contestants: Sequence[Contestant], session: BenchSession) -> list[WaterfallStep]:
    """The waterfall: each step against the one above it and against the first that was measured."""
    out: list[WaterfallStep] = []
    done: list[float] = []
    for one in contestants:
        rounds = session.measured(one.job)
        if one.job is None or not rounds:
            reason = one.reason or (session.reasons.get(session.key(one.job)) if one.job else None)
            out.append(WaterfallStep(name=one.name, not_measured=reason or "was not asked for"))
            continue
        seconds = spread([m.seconds_per_image for m in rounds])
        done.append(seconds.median)
        out.append(
            WaterfallStep(
                name=one.name,
                seconds_per_image=seconds,
                times_faster=done[-2] / done[-1] if len(done) > 1 else None,
                times_faster_in_all=done[0] / done[-1] if len(done) > 1 else None,
            )
        )
    return out


def growth(axis: Axis, session: BenchSession) -> Growth:
    """The points of an axis and the exponent through all rounds' times."""
    found = {x: session.measured(job) for x, job in axis.jobs.items()}
    points = [
        Point(
            x=x, seconds=spread([m.seconds_per_list for m in rounds]), peak_mb=max(m.peak_mb for m in rounds)
        )
        for x, rounds in found.items()
        if rounds
    ]
    if len(points) < 2:
        reasons = [session.reasons[k] for k in map(session.key, axis.jobs.values()) if k in session.reasons]
        why = (reasons or ["fewer than two values of it are possible here"])[0]
        return Growth(name=axis.name, what=axis.what, points=points, not_measured=why)
    pairs = [(x, m.seconds_per_list) for x, rounds in found.items() for m in rounds]
    fitted = power_law([x for x, _ in pairs], [s for _, s in pairs])
    return Growth(
        name=axis.name,
        what=axis.what,
        points=points,
        exponent=fitted.exponent,
        error=fitted.error,
    )
