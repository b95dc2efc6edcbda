"""A plan's profiles, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from infercam.engine.runners.plan import Profile


def profile_table(profiles: Sequence[Profile], shares: Sequence[float] | None) -> Table:
    """shares: of the batches, that each profile takes; None: not simulated."""
    table = Table(box=None, pad_edge=False)
    for name in ("profile", "takes", "tuned for", *(["batches"] if shares else [])):
        table.add_column(name)
    for i, p in enumerate(profiles):
        n, h, w = p.best
        table.add_row(str(i), str(p), f"{n} of {h}x{w}", *([f"{shares[i]:.1%}"] if shares else []))
    if shares is None:
        return table
    none = 1 - sum(shares)
    if none > 5e-4:
        table.add_row("-", "larger batches, run in parts", "", f"{none:.1%}")
    return table
