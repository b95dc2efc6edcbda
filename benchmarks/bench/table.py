"""The tables of a result, for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich import box
from rich.markup import escape
from rich.table import Table

from infercam.benchmarks.bench.result import BenchResult, ResultRow, Spread

NONE = "–"


def tables(result: BenchResult) -> list[Table]:
    """Rows, what was not measured, waterfall, growth: those that have something in them."""
    out = []
    if result.rows:
        out.append(_rows(result))
    if any(r.not_measured for r in result.rows):
        out.append(_not_measured(result.rows))
    if result.waterfall:
        out.append(_waterfall(result))
    if result.growth:
        out.append(_growth(result))
    return out


def _table(title: str, first: str, headings: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, min_width=20)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _rows(result: BenchResult) -> Table:
    measured = [r for r in result.rows if r.seconds_per_image]
    gpu = any(r.gpu_busy is not None for r in measured)
    scored = any(r.miou is not None for r in measured)
    headings = ["images", "per s", "s/image (min–max)", "× CAM (min–max)", "cores"]
    headings += [*(["GPU"] if gpu else []), "MB", "GFLOP", "of peak", *(["mIoU"] if scored else [])]
    s = result.subject
    title = (
        f"{s.bundle}, {s.pictures}: medians of {_many(result.rounds, 'round')}; reading and writing included, "
        "start-up not. × CAM: over the engine's 8-view CAM. cores: kept busy. MB: most resident. GFLOP: "
        "counted, an image. of peak: of the measured matrix rate"
    )
    table = _table(title, "", headings)
    for r in measured:
        assert r.seconds_per_image is not None
        cells = [
            str(r.images),
            _number(r.images_per_second, "{:.2f}"),
            _with_range(r.seconds_per_image, "{:.3g}"),
            _with_range(r.over_baseline, "{:.2f}"),
            _number(r.cpu_cores, "{:.2f}"),
            *([_percent(r.gpu_busy)] if gpu else []),
            _number(r.peak_mb, "{:.0f}"),
            _number(r.flop_per_image and r.flop_per_image / 1e9, "{:.3g}"),
            _percent(r.rate_share),
            *([_number(r.miou and 100 * r.miou, "{:.1f}")] if scored else []),
        ]
        table.add_row(escape(r.name), *cells)
    return table


def _not_measured(rows: list[ResultRow]) -> Table:
    table = Table(title="Not measured", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("because")
    for r in rows:
        if r.not_measured:
            table.add_row(escape(r.name), escape(r.not_measured))
    return table


def _waterfall(result: BenchResult) -> Table:
    title = f"From the plain loop to the engine, {_many(result.subject.few, 'image')}"
    table = _table(title, "step", ["s/image (min–max)", "× faster", "in all"])
    for step in result.waterfall:
        if step.seconds_per_image is None:
            table.add_row(escape(step.name), escape(f"not measured: {step.not_measured}"), NONE, NONE)
            continue
        times = [_number(t, "{:.2f}") for t in (step.times_faster, step.times_faster_in_all)]
        table.add_row(escape(step.name), _with_range(step.seconds_per_image, "{:.3g}"), *times)
    return table


def _growth(result: BenchResult) -> Table:
    table = _table("Time grows with", "", ["values", "seconds", "peak MB", "exponent"])
    for g in result.growth:
        if g.exponent is None:
            table.add_row(escape(g.what), escape(f"not measured: {g.not_measured}"), NONE, NONE, NONE)
            continue
        error = f" ± {g.error:.2f}" if g.error is not None else ""
        table.add_row(
            escape(g.what),
            " ".join(f"{p.x:g}" for p in g.points),
            " ".join(f"{p.seconds.median:.3g}" for p in g.points),
            " ".join(f"{p.peak_mb:.0f}" for p in g.points),
            f"{g.exponent:.2f}{error}",
        )
    return table


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _number(value: float | None, pattern: str) -> str:
    return NONE if value is None else pattern.format(value)


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f} %"


def _with_range(s: Spread | None, pattern: str) -> str:
    if s is None:
        return NONE
    median = pattern.format(s.median)
    return median if len(s.all) < 2 else f"{median} ({pattern.format(s.low)}–{pattern.format(s.high)})"


def sentences(result: BenchResult) -> Iterator[str]:
    """What a result says beside its tables."""
    for device, rate in result.matrix_rate.items():
        yield f"matrix rate of the {device}: {rate / 1e9:.1f} GFLOP/s"
    for name, found in result.agreement.items():
        if isinstance(found, dict):
            yield (
                f"the engine's maps ({result.agreement['recipe']}) and the loop's {name}: at most "
                f"{found['largest']:.2g} apart, {100 * found['share beyond 0.001']:.2g} % of map pixels by over 0.001"
            )
    for recipe, shares in result.profile.items():
        yield f"CPU time of {recipe}: " + ", ".join(f"{stage} {100 * s:.1f} %" for stage, s in shares.items())
    yield from (f"note: {note}" for note in result.notes)
