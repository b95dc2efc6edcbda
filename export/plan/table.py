"""A plan's profiles, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from infercam.engine.runners.plan import Profile


def profile_table(profiles: Sequence[Profile], shares: Sequence[float]) -> Table:
    """shares: of the batches, that each profile takes."""
    table = Table(box=None, pad_edge=False)
    for name in ("profile", "takes", "tuned for", "batches"):
        table.add_column(name)
    for i, (p, share) in enumerate(zip(profiles, shares, strict=True)):
        n, h, w = p.best
        table.add_row(str(i), str(p), f"{n} of {h}x{w}", f"{share:.1%}")
    none = 1 - sum(shares)
    if none > 5e-4:
        table.add_row("-", "larger batches, run in parts", "", f"{none:.1%}")
    return table
