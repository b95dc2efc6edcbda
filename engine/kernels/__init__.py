"""CUDA C++ source of the engine's kernels, shipped as it is and compiled once per machine (device/compile.py).

The kernels include no header but their own, so NVRTC compiles them with nothing installed beside it.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCES = (
    "resize.cu",
    "erase.cu",
    "gather.cu",
    "windows.cu",
    "upsample.cu",
    "peaks.cu",
    "centre_of_mass.cu",
    "accumulate.cu",
    "unite.cu",
)
"""Together one module; each may be included after any other."""
HEADERS = ("common.cuh", "layouts.cuh")

_ENTRY = re.compile(r'^extern "C" __global__ void (?:__launch_bounds__\([\w, ]+\)\s+)?(\w+)\(', re.MULTILINE)


def source(name: str) -> str:
    """Text of one of SOURCES or HEADERS."""
    return (FOLDER / name).read_text("utf-8")


def entry_points() -> tuple[str, ...]:
    """Names of all kernels, in the order of the sources."""
    return tuple(name for file in SOURCES for name in _ENTRY.findall(source(file)))
