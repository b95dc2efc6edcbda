"""The machine's whole truth, as far as the engine cares: what is there, what is missing, and what brings it.

Nothing is loaded that could take the process down (TensorRT without a driver does): libraries are looked up, the
driver is asked by ctypes. Every question stands alone: one that fails becomes a line of the report.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from infercam.engine.backends.choice import (
    BACKENDS,
    PREFERENCE,
    device_obstacle,
    objection,
    obstacle,
    plan_environment,
)
from infercam.engine.bundle import Bundle
from infercam.engine.common.cache import cache_folder
from infercam.engine.common.cores import available_cores
from infercam.engine.common.errors import InfercamError, shown
from infercam.engine.device.compile import find_nvcc, find_nvrtc
from infercam.engine.device.probe import probe
from infercam.engine.runners import rtx
from infercam.engine.runners.options import CUDA_GRAPHS, RTX_KERNELS, RuntimeSwitches
from infercam.engine.runners.plan import RUNTIMES, build_command, list_plans
from infercam.engine.runners.tensorrt_api import installed

State = Literal["ok", "missing", "problem", "note"]


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do where it is not well."""

    name: str
    state: State
    detail: str
    remedy: str = ""


@dataclass
class Report:
    """`sections`: title -> findings. `backend`: what `auto` takes; None where nothing works."""

    sections: dict[str, list[Finding]] = field(default_factory=dict)
    backend: str | None = None

    @property
    def works(self) -> bool:
        return self.backend is not None

    def as_dict(self) -> dict[str, Any]:
        sections = {title: [asdict(f) for f in findings] for title, findings in self.sections.items()}
        return {"backend": self.backend, "works": self.works, "sections": sections}


def examine(bundle: Path | None = None) -> Report:
    """Look at everything; never raises, whatever is broken."""
    report = Report()
    questions: dict[str, Callable[[], Iterable[Finding]]] = {
        "machine": machine,
        "GPU": gpus,
        "packages": packages,
        "CUDA": cuda,
        "TensorRT-RTX": tensorrt_rtx,
    }
    for title, ask in questions.items():
        report.sections[title] = _asked(ask)
    loaded, findings = _bundle(bundle)
    if findings:
        report.sections["bundle"] = findings
    if loaded is not None:
        report.sections["plans"] = _asked(lambda: plans(loaded))
    report.sections["backends"] = _asked(lambda: _backends(loaded, report))
    return report


def _asked(ask: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The answers, up to the point where something unforeseen happened, which is told as well."""
    found: list[Finding] = []
    try:
        for finding in ask():
            found.append(finding)
    except Exception as e:  # a doctor that dies of the disease is of no use
        found.append(Finding("doctor", "problem", shown(f"{type(e).__name__}: {e}")))
    return found


# -- the machine -----------------------------------------------------------------------------------------------
def machine() -> Iterable[Finding]:
    """Python, system, cores, memory, disk."""
    yield Finding("infercam", "ok", _version("infercam") or "not installed as a package")
    yield Finding("Python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield Finding("system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("cores", "ok", f"{available_cores()} of {os.cpu_count()} usable")
    if (memory := _memory()) is not None:
        total, free = memory
        state: State = "ok" if free > 1 << 30 else "problem"
        remedy = "" if state == "ok" else "close other programs: a run wants about 1 GB"
        yield Finding("memory", state, f"{_gib(total)} GiB, {_gib(free)} GiB available", remedy)


def _memory() -> tuple[int, int] | None:
    """Total and available bytes; None where the system does not say (no /proc)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith("kB")}
        return found["MemTotal"], found["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return None


def gpus() -> Iterable[Finding]:
    """Driver and devices."""
    try:
        found = probe()
    except InfercamError as e:
        yield Finding("driver", "missing", str(e), "only the cpu backend can run")
        return
    kernel = _kernel_module()
    cuda_version = ".".join(map(str, found.cuda))
    yield Finding("driver", "ok", f"{f'{kernel}, ' if kernel else ''}runs CUDA up to {cuda_version}")
    for number, gpu in enumerate(found.gpus):
        capability = ".".join(map(str, gpu.compute_capability))
        old = gpu.compute_capability < (7, 5)
        yield Finding(
            f"GPU {number}",
            "problem" if old else "ok",
            f"{gpu.name}, compute capability {capability}, {_gib(gpu.total_memory)} GiB",
            "older than 7.5: the kernels are not made for it" if old else "",
        )
    if len(found.gpus) > 1:
        yield Finding("choice", "note", "GPU 0 is used; CUDA_VISIBLE_DEVICES=N picks another")


def _kernel_module() -> str | None:
    """The driver's own version, which libcuda does not tell: NVML's, or that of the kernel's module."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        text = ctypes.create_string_buffer(96)
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, 96) == 0:
            return text.value.decode(errors="replace")
    except (OSError, AttributeError):
        pass
    try:
        return Path("/sys/module/nvidia/version").read_text().strip() or None
    except OSError:
        return None


# -- libraries -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Package:
    """One distribution: its import name, what it is for, and what installs it."""

    distribution: str
    module: str
    what: str
    install: str


_PACKAGES = (
    _Package("openvino", "openvino", "the openvino backend", "pip install 'infercam[openvino]'"),
    _Package("onnx", "onnx", "export", "pip install 'infercam[export]'"),
    _Package("pycuda", "pycuda", "every GPU backend", "pip install 'infercam[gpu]'"),
    _Package("tensorrt", "tensorrt", "tensorrt backend, infercam build", "pip install 'infercam[gpu]'"),
    _Package("cuda-bindings", "cuda.bindings", "CUDA graphs", "pip install 'infercam[graphs]'"),
    _Package("tensorrt-lean", "tensorrt_lean", "version-compatible plans", "pip install tensorrt-lean"),
    _Package("torch", "torch", "training", "pip install 'infercam[train]'"),
    _Package("pydensecrf2", "pydensecrf", "dense CRF", "pip install 'infercam[crf]'"),
    _Package("ray", "ray", "clusters", "pip install 'infercam[cluster]'"),
    _Package("matplotlib", "matplotlib", "plots", "pip install 'infercam[plot]'"),
)


def packages() -> Iterable[Finding]:
    """ONNX Runtime in its two builds, then the optional packages."""
    yield from _onnxruntime()
    for package in _PACKAGES:
        if not _is_there(package.module):
            yield Finding(package.distribution, "missing", f"for {package.what}", package.install)
        else:
            yield Finding(package.distribution, "ok", _version(package.distribution) or "found")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # what it would lie in
        return False


def _onnxruntime() -> Iterable[Finding]:
    builds = {name: found for name in ("onnxruntime", "onnxruntime-gpu") if (found := _version(name))}
    if len(builds) > 1:
        yield Finding(
            "onnxruntime",
            "problem",
            "onnxruntime and onnxruntime-gpu are both installed: they overwrite each other's files",
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'infercam[cpu]' or 'infercam[gpu]'",
        )
        return
    if find_spec("onnxruntime") is None:
        yield Finding(
            "onnxruntime", "missing", "for the cpu and ort-cuda backends", "pip install 'infercam[cpu]'"
        )
        return
    try:
        import onnxruntime
    except Exception as e:  # a library that it links is missing, or half of it is
        yield Finding("onnxruntime", "problem", shown(f"cannot be imported: {e}"), "install it again")
        return
    name = next(iter(builds), "onnxruntime")
    providers = ", ".join(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
    yield Finding(name, "ok", f"{onnxruntime.__version__}; providers built in: {providers}")


_CUDA_LIBRARIES = (
    ("CUDA runtime", "libcudart.so", "nvidia-cuda-runtime"),
    ("cuBLAS", "libcublasLt.so", "nvidia-cublas"),
    ("cuDNN", "libcudnn.so", "nvidia-cudnn-cu13"),
    ("cuFFT", "libcufft.so", "nvidia-cufft"),
)
"""What ONNX Runtime's CUDA provider links, and pip's package of each."""


def cuda() -> Iterable[Finding]:
    """Runtime libraries, compilers, and the kernels that are built already."""
    here = device_obstacle() is None
    for name, file, package in _CUDA_LIBRARIES:
        found = _library(file)
        if found is not None:
            yield Finding(name, "ok", found)
        elif here:
            yield Finding(name, "missing", "for the ort-cuda backend", f"pip install {package}")
        else:
            yield Finding(name, "note", "not found; of use only with a GPU")
    nvcc, nvrtc = find_nvcc(), find_nvrtc()
    yield (
        Finding("nvcc", "ok", f"{nvcc.version} ({nvcc.path})")
        if nvcc
        else Finding("nvcc", "note", "not found")
    )
    yield Finding("NVRTC", "ok", nvrtc.version) if nvrtc else Finding("NVRTC", "note", "not found")
    if nvcc is None and nvrtc is None:
        state: State = "missing" if here else "note"
        yield Finding("compiler", state, "none for the kernels", "pip install nvidia-cuda-nvrtc")
    folder = cache_folder("kernels")
    kept = sum(1 for f in folder.glob("*") if f.suffix in (".cubin", ".ptx")) if folder.is_dir() else 0
    yield Finding("kernels", "ok" if kept else "note", f"{kept} builds kept in {folder}")


def tensorrt_rtx() -> Iterable[Finding]:
    """Whether it is there, takes the GPU, how it is told to run, and the kernels that it compiled already."""
    version = installed("tensorrt-rtx")
    if version is None:
        yield Finding("package", "missing", "for the tensorrt-rtx backend", "pip install 'infercam[rtx]'")
    else:
        yield Finding("package", "ok", f"{version}: builds plans on any machine")
    try:
        found = probe()
    except InfercamError as e:
        yield Finding("GPU", "note", f"none to run plans on: {e}")
    else:
        gpu = found.gpus[0]
        why = rtx.card_obstacle(gpu.name, gpu.compute_capability)
        yield Finding("GPU", "note" if why else "ok", why or f"takes {gpu.name}")
        if why is None and found.cuda < rtx.CUDA:
            said = (
                f"runs CUDA up to {'.'.join(map(str, found.cuda))}, {'.'.join(map(str, rtx.CUDA))} is needed"
            )
            yield Finding("driver", "problem", said, "update it: 580 or later")
    try:
        switches = RuntimeSwitches.of()
        graphs = "on" if switches.cuda_graphs else "off"
        yield Finding("switches", "ok", f"{RTX_KERNELS}={switches.kernels}, {CUDA_GRAPHS}={graphs}")
    except InfercamError as e:
        yield Finding("switches", "problem", str(e), "set it to one of these, or unset it")
    count, nbytes = rtx.kept_kernels()
    detail = f"those of {count} plans, {nbytes / 1e6:.1f} MB, kept in {cache_folder(rtx.CACHE)}"
    yield Finding("kernels", "ok" if count else "note", detail)


def _library(name: str) -> str | None:
    """Where a shared library is: in pip's nvidia packages, the toolkit, or the loader's usual folders."""
    spec = find_spec("nvidia")
    folders = [Path(p) for p in (spec.submodule_search_locations or ())] if spec else []
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [f for folder in folders for f in folder.glob(f"*/lib/{name}*")]
    candidates += [f for home in homes if home for f in Path(home).glob(f"lib64/{name}*")]
    for path in (*os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep), *_LOADER_FOLDERS):
        candidates += list(Path(path).glob(f"{name}*")) if path else []
    return str(candidates[0]) if candidates else None


_LOADER_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


# -- the bundle ------------------------------------------------------------------------------------------------
def _bundle(path: Path | None) -> tuple[Bundle | None, list[Finding]]:
    if path is None:
        return None, []
    try:
        bundle = Bundle.load(path)
    except (InfercamError, OSError) as e:
        return None, [Finding("bundle", "problem", shown(e), "infercam export makes one")]
    return bundle, _asked(lambda: _graphs(bundle))


def _graphs(bundle: Bundle) -> Iterable[Finding]:
    m = bundle.manifest
    spec = m.input
    size = f"{spec.height}x{spec.width} only" if spec.height else "any size"
    yield Finding("bundle", "ok", f"{m.name}: {len(m.classes)} classes, stride {m.stride}, {size}")
    for precision, file in sorted(m.graphs.items()):
        detail = f"{file}, {m.files[file].size / 1e6:.1f} MB"
        report = m.precisions.get(precision)
        if report is not None and report.map_iou is not None:
            detail += f", maps' IoU with fp32 {report.map_iou:.4f}"
        yield Finding(f"{precision} graph", "ok", detail)


def plans(bundle: Bundle) -> Iterable[Finding]:
    """TensorRT plans beside the bundle: those that fit, and why the others do not."""
    why = device_obstacle()
    if why is not None:
        count = sum(1 for f in (bundle.path / "plans").glob("*/plan.json"))
        yield Finding("plans", "note", f"{count} found; none can run: {why}")
        return
    found = list_plans(bundle, plan_environment())
    if not found:
        yield Finding("plans", "missing", "none", build_command(bundle))
    for one in found:
        if one.plan is None:
            name, build, what = "plan", build_command(bundle), ""
        else:
            record = one.plan.record
            name, build = record.precision, build_command(bundle, runtime=record.runtime)
            what = f"{RUNTIMES[record.runtime]}, fits; {'; '.join(map(str, record.profiles))}"
        bad = one.problem is not None
        detail = str(one.problem) if bad else what
        yield Finding(
            f"{name} {one.folder.name[:8]}", "problem" if bad else "ok", detail, build if bad else ""
        )


# -- the verdict -----------------------------------------------------------------------------------------------
def _backends(bundle: Bundle | None, report: Report) -> Iterable[Finding]:
    """What each backend lacks; without a bundle, plans and graphs are not asked for."""
    lacking = {}
    for name in BACKENDS:
        if (why := obstacle(name, bundle)) is not None:
            yield Finding(name, "missing", str(why))
        elif (why := objection(name, bundle)) is not None:
            yield Finding(name, "note", f"has all it needs, but not for `auto`: {why}")
        else:
            yield Finding(name, "ok", "has all it needs")
        if why is not None:
            lacking[name] = why
    report.backend = next((name for name in PREFERENCE if name not in lacking), None)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.1f}"
