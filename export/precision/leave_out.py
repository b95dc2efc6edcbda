"""Leaving the fewest layers in higher precision: those that cost the maps most when they alone are lowered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infercam.export.compare import Agreement


def fewest_left_out(
    parts: Sequence[str],
    lowered: Callable[[Sequence[str]], Agreement],
    costs: Callable[[str], float],
    aim: float,
    everything: Agreement,
) -> tuple[list[str], dict[str, float], Agreement]:
    """Which parts to lower so that the maps' IoU reaches `aim`: as many as possible, costliest left out first.

    lowered: agreement when just these parts are lowered; costs: overlap of the maps when one alone is;
    everything: agreement when all are. Returns the parts to lower (in their order), the overlap of each part
    left out, and the agreement, which is the best found where nothing reaches `aim`.
    """
    if everything.iou >= aim:
        return list(parts), {}, everything
    overlap = {part: costs(part) for part in parts}
    worst_first = sorted(parts, key=lambda part: overlap[part])
    left_out, best = 0, everything
    low, high = 1, len(parts)
    while low <= high:  # bisect: the more are left out, the better the maps, but for noise
        count = (low + high) // 2
        found = lowered([p for p in parts if p not in worst_first[:count]])
        if found.iou >= aim or (best.iou < aim and found.iou > best.iou):
            left_out, best = count, found
        low, high = (low, count - 1) if found.iou >= aim else (count + 1, high)
    gone = worst_first[:left_out]
    return [p for p in parts if p not in gone], {p: overlap[p] for p in gone}, best
