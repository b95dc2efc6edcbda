"""The poly schedule with warm-up, per parameter group."""

from __future__ import annotations

from typing import Any


def poly(step: int, steps: int, power: float, warmup: int = 0) -> float:
    """Factor of the rate at a step (0-based): rises linearly over `warmup` steps, then falls as
    (1 - t)^power with t = (step - warmup) / (steps - warmup), above zero until the last step."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return float((1 - (step - warmup) / max(1, steps - warmup)) ** power)


def apply_rate(groups: list[dict[str, Any]], rate: float) -> None:
    """Set the rate of every group of an optimiser; `scale` multiplies it."""
    for group in groups:
        group["lr"] = rate * group.get("scale", 1.0)
