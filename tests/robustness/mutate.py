"""Damage: what a bad disk, a cut download or an attacker does to bytes and to JSON. Seeded."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np

Rng = np.random.Generator

HOSTILE: tuple[Any, ...] = (
    *[None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, -0.0, float("nan"), float("inf")],
    *["", "../../etc/passwd", "/etc/passwd", "C:\\x", "a\0b", "\ud800", "x" * 100_000, "\x1b[2J\nerror: x"],
    *[[], {}, [[]], [None], {"": ""}, [0] * 1000],
)
"""Values to put where something else is expected."""


def damaged(rng: Rng, data: bytes) -> bytes:
    """`data` with one kind of damage, more often near its beginning, where headers are."""
    kind = rng.integers(7)
    if not data or kind == 0:
        return data[: int(rng.integers(0, len(data) + 1))]
    out = bytearray(data)
    at = _place(rng, len(out))
    if kind == 1:
        for _ in range(int(rng.integers(1, 9))):
            out[_place(rng, len(out))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        out[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
    elif kind == 3:
        out[at:at] = rng.bytes(int(rng.integers(1, 64)))
    elif kind == 4:
        del out[at : at + int(rng.integers(1, 64))]
    elif kind == 5:
        out[at : at + 512] = rng.bytes(min(512, len(out) - at))
    else:
        out[at:at] = out[at : at + int(rng.integers(1, 4096))]
    return bytes(out)


def _place(rng: Rng, length: int) -> int:
    bound = min(length, 256) if rng.random() < 0.5 else length
    return int(rng.integers(bound))


def damaged_json(rng: Rng, content: Any) -> bytes:
    """JSON with one or two values replaced, removed, repeated or nested without end; sometimes plain damage."""
    kind = rng.random()
    if kind < 0.2:
        return damaged(rng, json.dumps(content).encode())
    if kind < 0.25:
        return b'{"schema_version": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    content = copy.deepcopy(content)
    for _ in range(int(rng.integers(1, 3))):
        _change(rng, content)
    return json.dumps(content).encode()


def _change(rng: Rng, content: Any) -> None:
    """Change one value of a JSON document, at a random depth, in place."""
    here = content
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = keys[int(rng.integers(len(keys)))]
        if isinstance(here[key], dict | list) and here[key] and rng.random() < 0.75:
            here = here[key]
            continue
        if rng.random() < 0.15:
            del here[key]
        elif isinstance(here, dict) and rng.random() < 0.1:
            here["unheard-of"] = here[key]
        else:
            here[key] = HOSTILE[int(rng.integers(len(HOSTILE)))]
        return
