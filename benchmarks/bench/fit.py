"""How a time grows: the exponent of a power law, by least squares in logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class Exponent(BaseModel):
    """seconds ~ factor * x ** exponent."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    exponent: float
    error: float | None
    """Standard error of the exponent; None from two points, through which a line always goes."""
    factor: float


def power_law(x: Sequence[float], y: Sequence[float]) -> Exponent:
    """Fit log y = log factor + exponent * log x; several y at one x are points of their own.

    Raises ValueError for fewer than two different x, or values that are not positive.
    """
    if len(x) != len(y) or min(*x, *y, 1) <= 0:
        raise ValueError("a power law is fitted to as many positive x as y")
    if len(set(x)) < 2:
        raise ValueError("a power law needs two different x")
    a, b = [math.log(v) for v in x], [math.log(v) for v in y]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    spread = sum((v - mean_a) ** 2 for v in a)
    slope = sum((u - mean_a) * (v - mean_b) for u, v in zip(a, b, strict=True)) / spread
    residual = sum((v - mean_b - slope * (u - mean_a)) ** 2 for u, v in zip(a, b, strict=True))
    error = math.sqrt(residual / (len(a) - 2) / spread) if len(a) > 2 else None
    return Exponent(exponent=slope, error=error, factor=math.exp(mean_b - slope * mean_a))
