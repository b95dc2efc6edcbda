"""What the demo says: the table, what it shows and what it does not, and results.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from infercam.engine.common.atomic import atomic_write
from infercam.engine.demo.ablation import Ablation, ModeOutcome


def table(done: Ablation) -> Table:
    """One row a mode: time, cost and quality, within 80 columns. What stands after ± is the standard
    deviation over bootstrap resamples of the scenes."""
    out = Table(
        title=f"{len(done.ids)} synthetic scenes, recipe {done.recipe.name}, backend {done.backend}",
        caption="±: standard deviation over bootstrap resamples of the scenes",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    out.add_column("mode", style="bold", no_wrap=True)
    for heading in HEADINGS:
        out.add_column(heading, justify="right", no_wrap=True)
    for outcome in done.outcomes:
        out.add_row(*_row(outcome, done.outcomes[0]))
    return out


HEADINGS = (
    "seconds",
    "images\n/s",
    "network\npixels",
    "best\nmIoU %",
    "over\nbaseline",
    "back-\nground",
    "objects\nfound %",
    "of it\nright %",
)


def _row(outcome: ModeOutcome, baseline: ModeOutcome) -> list[str]:
    s, score, gain = outcome.summary, outcome.result.all, outcome.gain
    return [
        outcome.mode,
        f"{s.seconds:.1f}",
        f"{s.images_per_second:.1f}",
        f"{s.network_pixels / max(baseline.summary.network_pixels, 1):.2f}×",
        f"{100 * score.miou:.1f} ±{100 * outcome.result.intervals['all'].std:.1f}",
        "" if gain is None else f"{100 * gain.difference:+.1f} ±{100 * gain.interval.std:.1f}",
        f"{score.threshold:.2f}",
        f"{100 * outcome.found:.0f}",
        f"{100 * outcome.right:.0f}",
    ]


def conclusion(done: Ablation) -> str:
    """One paragraph: what these figures show and what they do not."""
    baseline, others = done.outcomes[0], done.outcomes[1:]
    parts = []
    for words, chosen in (
        ("above the plain CAM", [o for o in others if o.gain and o.gain.interval.low > 0]),
        (
            "not told apart from it",
            [o for o in others if o.gain and o.gain.interval.low <= 0 <= o.gain.interval.high],
        ),
        ("below it", [o for o in others if o.gain and o.gain.interval.high < 0]),
    ):
        if chosen:
            parts.append(f"{words}: {', '.join(map(_gain_in_words, chosen))}")
    last = others[-1]
    return (
        f"At its best threshold the plain CAM labels {100 * baseline.found:.0f} % of the object pixels, and "
        f"{100 * baseline.right:.0f} % of what it labels is right; {last.mode} labels {100 * last.found:.0f} %, and "
        f"{100 * last.right:.0f} % is right: {_how(baseline, last)}. Best mIoU {'; '.join(parts)}. "
        "This shows the whole path at work on pictures made for it: synthetic scenes whose classes differ in "
        "one small part, and a small classifier that the project trained on them. It says nothing of PASCAL VOC "
        "or of any other classifier; for measured figures on photos see the README."
    )


def _how(baseline: ModeOutcome, other: ModeOutcome) -> str:
    """In what the other mode's labels differ, in words."""
    more, better = other.found > baseline.found, other.right > baseline.right
    if more and better:
        return "more of the objects, and more exactly"
    if more:
        return "more of the objects, and less exactly"
    return "less of the objects, but more exactly" if better else "less of the objects, and less exactly"


def _gain_in_words(outcome: ModeOutcome) -> str:
    assert outcome.gain is not None
    gain, interval = outcome.gain.difference, outcome.gain.interval
    return f"{outcome.mode} ({100 * gain:+.1f} points, 95 % {100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def write_results(done: Ablation, file: Path, seed: int) -> None:
    """results.json: per mode the run's summary and the whole evaluation, and the gain over the baseline."""
    modes: dict[str, Any] = {}
    for outcome in done.outcomes:
        modes[outcome.mode] = {
            "seconds": outcome.summary.seconds,
            "images_per_second": outcome.summary.images_per_second,
            "network_pixels": outcome.summary.network_pixels,
            "mean_iterations": outcome.summary.mean_iterations,
            "objects_found": outcome.found,
            "of_it_right": outcome.right,
            "evaluation": outcome.result.to_json(),
            "gain_over_baseline": outcome.gain and _gain(outcome),
        }
    written = {
        "what": "synthetic scenes; see `conclusion`",
        "scenes": len(done.ids),
        "seed": seed,
        "recipe": done.recipe.model_dump(mode="json"),
        "backend": done.backend,
        "modes": modes,
        "conclusion": conclusion(done),
    }
    with atomic_write(file, "w") as f:
        json.dump(written, f, indent=1)
        f.write("\n")


def _gain(outcome: ModeOutcome) -> dict[str, Any]:
    assert outcome.gain is not None
    gain = outcome.gain
    return {
        "miou": gain.difference,
        "interval_95": [gain.interval.low, gain.interval.high],
        "share_of_resamples_not_better": gain.not_better,
    }
