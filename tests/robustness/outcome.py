"""What a section of the proofs found: how often something was broken, what was tried, and what was lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

Say = Callable[[str], None]
"""Progress, one line."""


@dataclass(frozen=True)
class Size:
    """How much is tried. `seed` decides every random choice but the machine's own timing."""

    rounds: int
    """Kills, clock jumps and the like, of each kind."""
    images: int
    """Corrupt pictures among good ones."""
    files: int
    """Corrupt files of each other kind."""
    soak: int
    """Images through one process."""
    connections: int
    """Held open at the server at once."""
    starts: int
    """Fresh processes, one after the other."""
    seed: int = 0


FULL = Size(rounds=20, images=500, files=120, soak=20_000, connections=1_000, starts=500)
QUICK = Size(rounds=2, images=50, files=12, soak=600, connections=100, starts=10)


@dataclass
class Outcome:
    """One row of the table."""

    name: str
    rounds: int = 0
    inputs: int = 0
    losses: list[str] = field(default_factory=list)
    """One line for each thing lost, wrong or hanging; empty is what is wanted."""
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: str = ""
    """Why nothing was tried here."""
    section: str = ""
    date: str = ""

    def lose(self, what: str) -> None:
        text = " ".join(what.split())
        self.losses.append(text if len(text) <= 600 else f"{text[:150]} … {text[-450:]}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Skipped(Exception):
    """What a section needs is not there; the text says what."""
