"""glibc's malloc, told what kind of process this is. Each call says whether that was possible."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
ARENAS = 2


def few_arenas() -> bool:
    """For a server: share few arenas among the threads. Before the threads are begun.

    By default each thread may have its own, and what one frees serves no other: with a dozen threads that pass
    pictures and maps on to one another a server grows for long.
    """
    return _set((_ARENA_MAX, ARENAS))


def keep_freed_memory() -> bool:
    """For training on the CPU: do not hand large freed blocks back to the kernel.

    Every step allocates the activations anew, tens of megabytes each. By default each of them is mapped, cleared
    page by page in the kernel, and unmapped again: a fifth of a step's time with MobileNetV2 (8 crops of 288
    pixels, one thread: 1.71 s a step without this, 1.36 s with it), more with several threads and jobs on one
    machine. The process keeps its peak memory until it ends.
    """
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20))


def _set(*settings: tuple[int, int]) -> bool:
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(name, value) for name, value in settings)
