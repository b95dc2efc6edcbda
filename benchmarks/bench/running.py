"""A contestant that is loaded and ready, as every kind hands it to the worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infercam.benchmarks.bench.pictures import Pictures


@dataclass
class RunningContestant:
    """What a kind hands over: `work(pictures, out)` reads, infers and writes."""

    work: Callable[[Pictures, Path], None]
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Views inferred so far by network height and width; `work` adds to it."""
    backend: str | None = None
    details: Callable[[], dict[str, Any]] = dict
    restart: Callable[[], None] = lambda: None
    """Forget what was counted during the warming up."""
    close: Callable[[], None] = lambda: None
