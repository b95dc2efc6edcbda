"""What every benchmark shares: the machine's description, options, and results that say how they were made."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..engine.atomic import atomic_write
from ..engine.cores import available_cores

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("infercam", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "torch")


def machine() -> dict[str, Any]:
    """Processor, cores, system and versions: recorded beside every figure."""
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": "none; not measured on a GPU",
        **{name: v for name in PACKAGES if (v := _version(name))},
    }


def write_result(name: str, content: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `results/NAME.json` with the date, the machine and the command that made it."""
    record = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": f"python -m {_module()} {' '.join(map(_argument, sys.argv[1:]))}".strip(),
        "machine": machine(),
        **content,
    }
    file = folder / f"{name}.json"
    with atomic_write(file, "w") as f:
        f.write(json.dumps(record, indent=1) + "\n")
    return file


def _argument(text: str) -> str:
    """An argument as it is recorded: of a path only the name, so that results do not tell of folders elsewhere."""
    return shlex.quote(Path(text).name if "/" in text else text)


def _module() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if spec else "infercam.benchmarks"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(
            line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def timed_process(command: list[str], folder: Path) -> dict[str, Any]:
    """One process: its own seconds, its CPU seconds and its peak memory."""
    report = folder.with_suffix(".json")
    began = time.perf_counter()
    with subprocess.Popen(
        [*command, "-o", str(folder), "--json", str(report)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as child:
        errors = child.stderr.read().decode() if child.stderr else ""
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors}")
    content = json.loads(report.read_text(encoding="utf-8"))
    count = content.get("done") or content["images"]
    return {
        "seconds_per_image": content["seconds"] / count,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "wall_with_start": time.perf_counter() - began,
        "peak_mb": usage.ru_maxrss / 1024,
        "network_pixels_per_image": content.get("network_pixels", 0) / count,
    }
