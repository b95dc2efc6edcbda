"""Options that take three numbers: `--mean 0.485,0.456,0.406` or `--mean 0.485 0.456 0.406`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from infercam.export.make_bundle import number

_TRIPLES = ("--mean", "--std")


class TriplesCommand(TyperCommand):
    """Lets --mean and --std take `a,b,c` as well as three values, negative ones included."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_triples(args))


def join_triples(args: list[str]) -> list[str]:
    """`--mean a b c` as `--mean=a,b,c`."""
    joined: list[str] = []
    i = 0
    while i < len(args):
        values = args[i + 1 : i + 4]
        if (
            args[i] in _TRIPLES
            and len(values) == 3
            and all(number(v.rstrip(",")) is not None for v in values)
        ):
            joined.append(f"{args[i]}={','.join(v.rstrip(',') for v in values)}")
            i += 4
        elif args[i] in _TRIPLES and values:
            joined.append(f"{args[i]}={values[0]}")
            i += 2
        else:
            joined.append(args[i])
            i += 1
    return joined
