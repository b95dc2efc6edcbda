"""How a time grows: the exponent of a power law, by least squares in logarithms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
    if len(x) == 2:
        slope, level = np.polyfit(np.log(x), np.log(y), 1)
        error = None
    else:
        (slope, level), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
        error = float(np.sqrt(covariance[0, 0]))
    return Exponent(exponent=float(slope), error=error, factor=float(np.exp(level)))
