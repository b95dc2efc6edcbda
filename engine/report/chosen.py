"""Which images tell most of a comparison: the worst, the best, and those that gain or lose most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def telling(iou: NDArray[np.float64], count: int) -> list[int]:
    """Numbers of `count` images, ascending (all of them where there are no more).

    iou: (N, R) of every image and run, NaN where it is not scored.

    In turn: the worst and the best of the first run, then, with a second run, what gains and what loses most
    against the first. Images without a score come last, in their order.
    """
    total = len(iou)
    if count >= total:
        return list(range(total))
    orders = _orders(iou)
    chosen: dict[int, None] = {}
    for rank in range(total):
        for order in orders:
            if rank < len(order) and len(chosen) < count:
                chosen[order[rank]] = None
        if len(chosen) >= count:
            break
    for number in range(total):
        if len(chosen) >= count:
            break
        chosen[number] = None
    return sorted(chosen)


def _orders(iou: NDArray[np.float64]) -> Sequence[list[int]]:
    if iou.shape[1] == 0:
        return []
    first = iou[:, 0]
    keys = [first, -first]
    for run in range(1, iou.shape[1]):
        gain = iou[:, run] - first
        keys += [-gain, gain]
    return [[int(i) for i in np.argsort(key, kind="stable") if not np.isnan(key[i])] for key in keys]
