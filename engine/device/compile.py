"""The kernels' source to machine code, once per machine: by nvcc or NVRTC, kept in the user's cache.

An entry is named by a hash of the sources, the flags, the GPU's architecture and the compiler's version. Several
processes may build at once.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from infercam.engine import kernels
from infercam.engine.common.cache import cache_folder, read_entry, write_entry
from infercam.engine.common.errors import shown
from infercam.engine.device.driver import DeviceError

FLAGS = ("-std=c++17", "-fmad=false")
"""Of both compilers. No fused multiply-add: see kernels/common.cuh."""
MODULE = "infercam_kernels.cu"
NO_COMPILER = (
    "no CUDA compiler to build the kernels with: pip install nvidia-cuda-nvrtc, or install the CUDA toolkit and put "
    "its bin folder on PATH (or set CUDA_HOME)"
)


class Compiler(Protocol):
    """Turns CUDA C++ into what the driver loads."""

    name: str
    version: str

    def architectures(self) -> list[int]:
        """Compute capabilities it has code for, ascending, as 75, 90, 120."""
        ...

    def compile(self, architecture: int, ptx: bool) -> bytes:
        """The module of all kernels: a cubin, or PTX text. Raises DeviceError with the compiler's first error."""
        ...


def cubin(
    capability: tuple[int, int], cache: Path | None = None, compilers: Sequence[Compiler] | None = None
) -> bytes:
    """All kernels as one module for a GPU of that compute capability, from the cache or built now.

    A GPU newer than the compiler gets PTX, which its driver finishes. cache: folder (default: the user's).
    Raises DeviceError, in one line, where there is no compiler, or none that can.
    """
    folder = cache or cache_folder("kernels")
    refused: DeviceError | None = None
    for compiler in find_compilers() if compilers is None else compilers:
        try:
            return _cached(compiler, capability, folder)
        except DeviceError as e:  # nvcc without a host compiler, for one: NVRTC needs none
            refused = refused or e
    raise refused or DeviceError(NO_COMPILER)


def _cached(compiler: Compiler, capability: tuple[int, int], folder: Path) -> bytes:
    wanted = capability[0] * 10 + capability[1]
    known = compiler.architectures()
    fitting = [a for a in known if a <= wanted]
    if not fitting:
        raise DeviceError(
            f"the GPU's compute capability {capability[0]}.{capability[1]} is too old for {compiler.name} "
            f"{compiler.version}, which begins at {min(known) / 10}: use an older CUDA toolkit"
        )
    architecture, ptx = fitting[-1], fitting[-1] != wanted
    entry = folder / f"{_key(compiler, architecture, ptx)}.{'ptx' if ptx else 'cubin'}"
    found = read_entry(entry)
    if found is None:
        found = compiler.compile(architecture, ptx)
        write_entry(entry, found)
    return found


def find_compilers() -> list[Compiler]:
    """What there is, in the order in which it is tried: nvcc, as the driver's companion, then NVRTC."""
    return [found for find in (find_nvcc, find_nvrtc) if (found := find()) is not None]


def _key(compiler: Compiler, architecture: int, ptx: bool) -> str:
    texts = [kernels.source(name) for name in (*kernels.HEADERS, *kernels.SOURCES)]
    parts = [*FLAGS, compiler.name, compiler.version, str(architecture), str(ptx), *texts]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _unit() -> str:
    return "".join(f'#include "{name}"\n' for name in kernels.SOURCES)


def _refused(name: str, log: str) -> DeviceError:
    lines = (
        [line for line in log.splitlines() if "error" in line.lower()]
        or log.splitlines()
        or ["no reason given"]
    )
    return DeviceError(f"{name} cannot compile the kernels: {shown(lines[0].strip())[:300]}")


# -- nvcc --------------------------------------------------------------------------------------------------
class Nvcc:
    """The CUDA toolkit's compiler."""

    name = "nvcc"

    def __init__(self, path: Path) -> None:
        """Raises DeviceError where it does not run."""
        self.path = path
        found = re.search(r"V(\d+\.\d+\.\d+)", self._run("--version"))
        if found is None:
            raise DeviceError(f"{path}: does not say its version")
        self.version = found[1]

    def architectures(self) -> list[int]:
        return sorted({int(n) for n in re.findall(r"compute_(\d+)\b", self._run("--list-gpu-arch"))})

    def compile(self, architecture: int, ptx: bool, *more: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="infercam-") as folder:
            source, out = Path(folder) / MODULE, Path(folder) / "module"
            source.write_text(_unit(), "utf-8")
            kind = "-ptx" if ptx else "-cubin"
            target = f"-arch={'compute' if ptx else 'sm'}_{architecture}"
            self._run(*FLAGS, *more, kind, target, f"-I{kernels.FOLDER}", "-o", str(out), str(source))
            return out.read_bytes()

    def _run(self, *arguments: str) -> str:
        try:
            done = subprocess.run([self.path, *arguments], capture_output=True, text=True, errors="replace")
        except OSError as e:
            raise DeviceError(f"{self.path}: does not run: {e.strerror}") from None
        if done.returncode:
            raise _refused(f"nvcc ({self.path})", done.stderr + done.stdout)
        return done.stdout


def find_nvcc() -> Nvcc | None:
    """From CUDA_HOME or CUDA_PATH, PATH, or the toolkit's usual folder; None where none runs."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    paths = [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    for path in (*paths, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if path and Path(path).is_file():
            try:
                return Nvcc(Path(path))
            except DeviceError:
                continue
    return None


# -- NVRTC -------------------------------------------------------------------------------------------------
class Nvrtc:
    """The compiler as a library, by ctypes: pip's nvidia-cuda-nvrtc is enough, no header is needed."""

    name = "nvrtc"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._lib = library
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        self.version = f"{major.value}.{minor.value}"

    def architectures(self) -> list[int]:
        count = ctypes.c_int()
        self._check(self._lib.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        out = (ctypes.c_int * count.value)()
        self._check(self._lib.nvrtcGetSupportedArchs(out))
        return sorted(out)

    def compile(self, architecture: int, ptx: bool, *more: str) -> bytes:
        names = (*kernels.SOURCES, *kernels.HEADERS)
        texts = [kernels.source(name).encode() for name in names]
        program = ctypes.c_void_p()
        self._check(
            self._lib.nvrtcCreateProgram(
                ctypes.byref(program), _unit().encode(), MODULE.encode(), ctypes.c_int(len(names)),
                _strings(texts), _strings([name.encode() for name in names]),
            )
        )  # fmt: skip
        try:
            flags = (*FLAGS, *more, f"--gpu-architecture={'compute' if ptx else 'sm'}_{architecture}")
            options = _strings([flag.encode() for flag in flags])
            if self._lib.nvrtcCompileProgram(program, ctypes.c_int(len(flags)), options):
                raise _refused("NVRTC", self._text(program, "ProgramLog").decode(errors="replace"))
            return self._text(program, "PTX" if ptx else "CUBIN")
        finally:
            self._lib.nvrtcDestroyProgram(ctypes.byref(program))

    def _text(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        out = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._lib, f"nvrtcGet{what}")(program, out))
        return out.raw

    def _check(self, code: int) -> None:
        if code:
            self._lib.nvrtcGetErrorString.restype = ctypes.c_char_p
            raise DeviceError(f"NVRTC: {self._lib.nvrtcGetErrorString(code).decode()}")


def _strings(values: list[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(values))(*values)


def find_nvrtc() -> Nvrtc | None:
    """From pip's wheel, the toolkit or the system; None where there is none."""
    for path in _nvrtc_paths():
        try:
            return Nvrtc(ctypes.CDLL(path))
        except (OSError, AttributeError, DeviceError):
            continue
    return None


def _nvrtc_paths() -> Iterator[str]:
    wheel = find_spec("nvidia")
    folders = [Path(p) for p in (wheel.submodule_search_locations or ())] if wheel else []
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        folders += [Path(home)] if home else []
    patterns = ("cu*/lib/libnvrtc.so.*", "cuda_nvrtc/lib/libnvrtc.so.*", "lib64/libnvrtc.so")
    for folder in folders:
        for pattern in patterns:
            yield from sorted((str(p) for p in folder.glob(pattern)), reverse=True)
    if system := ctypes.util.find_library("nvrtc"):
        yield system
