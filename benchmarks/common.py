"""What every benchmark shares: the machine's description, options, and results that say how they were made."""

from __future__ import annotations

import datetime as dt
import json
import platform
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import typer

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.cores import available_cores
from infercam.engine.common.errors import InfercamError
from infercam.engine.device.driver import DeviceError
from infercam.engine.device.probe import probe

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("infercam", "numpy", "onnxruntime", "opencv-python-headless", "pillow", "torch")


def machine() -> dict[str, Any]:
    """Processor, cores, system and versions: recorded beside every figure."""
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": _gpu(),
        **{name: v for name in PACKAGES if (v := _version(name))},
    }


def write_result(name: str, content: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write `results/NAME.json` with the date, the machine and the command that made it."""
    record = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": command(),
        "machine": machine(),
        **content,
    }
    file = folder / f"{name}.json"
    with atomic_write(file, "w") as f:
        f.write(json.dumps(record, indent=1) + "\n")
    return file


def command() -> str:
    """The command line that this process was started with."""
    return " ".join((_program(), *map(_argument, sys.argv[1:])))


def _argument(text: str) -> str:
    """An argument as it is recorded: of a path only the name, so that results do not tell of folders elsewhere."""
    return shlex.quote(Path(text).name if "/" in text else text)


def _program() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return f"python -m {spec.name}" if spec else Path(sys.argv[0]).name


def _gpu() -> str:
    try:
        return ", ".join(gpu.name for gpu in probe().gpus)
    except DeviceError:
        return "none; not measured on a GPU"


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


def run_command(main: Callable[..., Any]) -> None:
    """Run a module's function as a command line: an InfercamError is one line on stderr and exit code 1."""
    try:
        typer.run(main)
    except InfercamError as e:
        typer.echo(f"error: {e}", err=True)
        raise SystemExit(1) from None
