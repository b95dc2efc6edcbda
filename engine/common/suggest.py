"""What somebody may have meant by a word that is not known: a class, an option."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import lru_cache

LONGEST = 80
MOST = 5000
"""Of so many known words the likest is looked for: comparing takes 20 µs a word."""


def nearest(word: object, known: Sequence[str], cutoff: float = 0.75) -> str | None:
    """The known word that is like `word`: but for capitals, spaces, hyphens and underscores, else by its letters."""
    return _nearest(str(word)[:LONGEST], tuple(known), cutoff)


@lru_cache(1024)  # every image of a list may have the same wrong label
def _nearest(text: str, known: tuple[str, ...], cutoff: float) -> str | None:
    if not folded(text):
        return None
    same = next((one for one in known if folded(one) == folded(text)), None)
    if same is not None:
        return same
    small = {one.casefold(): one for one in reversed(known[:MOST])}
    near = difflib.get_close_matches(text.casefold(), small, 1, cutoff)
    return small[near[0]] if near else None


def did_you_mean(word: object, known: Sequence[str]) -> str:
    """The end of a message: `; did you mean 'dog'?`, or nothing."""
    near = nearest(word, known)
    return "" if near is None else f"; did you mean '{near}'?"


def folded(text: str) -> str:
    """A name without what people write differently: capitals, spaces, hyphens, underscores."""
    return re.sub(r"[\s_-]+", "", text).casefold()
