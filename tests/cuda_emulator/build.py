"""Compiles kernels for the emulator: the .cu sources as C++, into a library kept by the hash of all that went in."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infercam.engine import kernels

HERE = Path(__file__).parent
FLAGS = ("-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas")
SANITIZED = ("-O1", "-g", "-fsanitize=address", "-fno-omit-frame-pointer")
ENTRY = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([\w, ]+\)\s+)?(\w+)\(')


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def library(sources: Sequence[Path] | None = None, sanitized: bool = False, extra: str = "") -> Path:
    """Path of the shared library of these .cu files (default: the engine's kernels).

    extra: C++ appended to them. Raises CalledProcessError with the compiler's words in `stderr`.
    """
    files = list(sources) if sources is not None else [kernels.FOLDER / name for name in kernels.SOURCES]
    unit = _unit(files, extra)
    flags = (*FLAGS, *(SANITIZED if sanitized else ("-O2",)))
    read = [HERE / "emulator.h", *files, *(kernels.FOLDER / name for name in kernels.HEADERS)]
    key = hashlib.sha256("\0".join([unit, *flags, *(p.read_text() for p in read)]).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"infercam-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / f"{key}.so"
    if not target.exists():
        _compile(unit, flags, target)
    return target


def load(path: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(path))
    lib.emulator_allocate.restype = ctypes.c_void_p
    lib.emulator_allocate.argtypes = [ctypes.c_size_t]
    lib.emulator_free.argtypes = [ctypes.c_void_p]
    return lib


def _unit(files: Sequence[Path], extra: str) -> str:
    includes = "".join(f'#include "{p}"\n' for p in files)
    names = [name for p in files for name in ENTRY.findall(p.read_text())]
    return f'#include "emulator.h"\n{includes}{"".join(f"EMULATED_KERNEL({n})" for n in names)}\n{extra}\n'


def _compile(unit: str, flags: Sequence[str], target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        source, out = Path(work) / "unit.cpp", Path(work) / "unit.so"
        source.write_text(unit)
        include = [f"-I{HERE}", f"-I{kernels.FOLDER}"]
        command = [compiler() or "g++", *flags, *include, str(source), "-o", str(out)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        out.replace(target)
