"""When a run gives up: the images that were tried, some from all over the list among them, all failed alike.

A wrong column of labels or a wrong bundle fails every image alike: after a few hundred that is sure enough, and the
user need not wait for a million. A folder of bad files at the list's start is no such thing, so a long list begins
with images spread over the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from infercam.engine.data.sources import Item
from infercam.engine.store.failure_groups import FailureGroups

ENOUGH = 200
"""Images that must have failed; a shorter list is always worked through."""
SPREAD = 64


def spread_first(count: int) -> Iterator[int]:
    """The positions of a list, each once: of a long one some from all over it, then the others in order."""
    first = _spread(count)
    yield from first
    yield from (at for at in range(count) if at not in first)


def _spread(count: int) -> range:
    return range(0, count, -(-count // SPREAD)) if count > ENOUGH else range(0)


class Hope:
    """Whether any image of a source may still be done."""

    def __init__(self, source: Sequence[Item]) -> None:
        self._short = len(source) <= ENOUGH
        self._first = {source[at].id for at in _spread(len(source))}
        self._failed = 0

    def lost(self, failed: str, succeeded: int, failures: FailureGroups) -> str | None:
        """Told of every image that failed, after `failures` was: the commonest reason, if it is time to stop.

        succeeded: how many images have maps, made now or earlier.
        """
        self._first.discard(failed)
        self._failed += 1
        if self._short or self._first or succeeded or self._failed < ENOUGH:
            return None
        return failures.alike
