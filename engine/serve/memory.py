"""Keeping a server's memory together."""

from __future__ import annotations

import ctypes
import sys

M_ARENA_MAX = -8  # glibc's malloc.h
ARENAS = 2


def few_arenas() -> bool:
    """Tell glibc's malloc to share few arenas among the threads; says whether that was possible.

    By default each thread may have its own, and what one frees serves no other: with a dozen threads that pass
    pictures and maps on to one another a server grows for long. Before the threads are begun.
    """
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS))
    except (OSError, AttributeError):  # another C library
        return False
