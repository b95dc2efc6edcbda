"""Why the images of a run failed, counted: 398 × label 'Dog' is not one of the bundle's 20 classes.

Reasons that differ only in the picture's own name and in numbers are one; what differs is shown as `…`, but a reason
of one image is shown whole. Memory is bounded however many images fail: beyond `MOST` reasons the rarer ones are
counted together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from infercam.engine.common.errors import shown

MOST = 256
LONGEST = 500  # characters of a reason that are looked at
OPEN = "…"
_NUMBER = r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?"
_MARK = "\0"  # `shown` lets none into a reason


@dataclass
class _Group:
    count: int
    parts: list[str]
    """What stood at the marks: a number, or OPEN where it was not always the same."""
    whole: str
    """The first reason, with its picture's name."""


class FailureGroups:
    """Counts reasons as they come."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._others = 0
        self._kinds: set[str] = set()

    def add(self, name: str, reason: str) -> None:
        """Count the reason of the image `name`."""
        text, parts = _split(reason, name)
        if len(self._kinds) < 2:
            self._kinds.add(_kind(text))
        group = self._groups.get(text)
        if group is None:
            self._groups[text] = _Group(1, parts, reason[:LONGEST])
            self._keep_bounded()
            return
        group.count += 1
        group.parts = [one if one == other else OPEN for one, other in zip(group.parts, parts, strict=True)]

    @property
    def alike(self) -> str | None:
        """The commonest reason, where all others are like it but for what they quote: labels 'Dog', 'Cat', …"""
        return self.commonest()[0][1] if len(self._kinds) == 1 else None

    def commonest(self) -> list[tuple[int, str]]:
        """(images, reason), the commonest first; of those that are equally common the one that came first."""
        ordered = self._ordered()
        return [(g.count, _joined(text, g.parts) if g.count > 1 else g.whole) for text, g in ordered]

    def to_json(self, most: int = 20) -> list[dict[str, Any]]:
        """What a summary has of them: the commonest, and the others as one."""
        return [{"count": count, "reason": reason} for count, reason in self._with_rest(most)]

    def lines(self, most: int = 5) -> list[str]:
        """What a user is told: `398 × reason`, the commonest first."""
        return [f"{count} × {reason}" for count, reason in self._with_rest(most)]

    def _ordered(self) -> list[tuple[str, _Group]]:
        return sorted(self._groups.items(), key=lambda one: -one[1].count)

    def _with_rest(self, most: int) -> list[tuple[int, str]]:
        found = self.commonest()
        rest = self._others + sum(count for count, _ in found[most:])
        return found[:most] + ([(rest, "other reasons")] if rest else [])

    def _keep_bounded(self) -> None:
        """Half of the reasons go at once, so that this costs little however many there are."""
        if len(self._groups) <= MOST:
            return
        ordered = self._ordered()
        self._others += sum(group.count for _, group in ordered[MOST // 2 :])
        self._groups = dict(ordered[: MOST // 2])


def grouped(pairs: Any) -> FailureGroups:
    """The (name, reason) pairs of failures, counted."""
    groups = FailureGroups()
    for name, reason in pairs:
        groups.add(name, reason)
    return groups


def _split(reason: str, name: str) -> tuple[str, list[str]]:
    """The reason with marks in place of numbers and of the picture's name, and what stood there.

    Reasons begin with `PATH: ` or `ID: `, which is left out. A name that is quoted as a whole is a label.
    """
    stem = re.escape(shown(name).rpartition("/")[2])
    own = rf"(?<!\w)(?!(?<=['\"]){stem}['\"]){stem}(?!\w)"
    head, colon, rest = reason.partition(": ")
    text = rest if colon and rest and re.search(own, head) else reason
    parts: list[str] = []

    def mark(found: re.Match[str]) -> str:
        parts.append(OPEN if found["name"] is not None else found[0])
        return _MARK

    path = rf"(?P<name>(?:[^\s'\"(]*[/\\])?{own}(?:\.\w{{1,5}})?)"
    return re.sub(f"{path}|{_NUMBER}", mark, text[:LONGEST]), parts


def _kind(text: str) -> str:
    """A reason without what it quotes, and without what may have been meant by that."""
    text = re.sub(r"; did you mean .*?\?", "", text)
    return re.sub(r"""('|").*?\1""", OPEN, text)


def _joined(text: str, parts: list[str]) -> str:
    pieces = text.split(_MARK)
    return "".join(piece + part for piece, part in zip(pieces, [*parts, ""], strict=True))
