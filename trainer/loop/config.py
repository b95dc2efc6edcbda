"""Settings of a training stage: read from a file, changed on the command line, saved beside the results."""

from __future__ import annotations

import contextlib
import json
import platform
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.common.validation import first_problem

CONFIG = "config.json"


class StageConfig(BaseModel):
    """What every training stage has; each adds its own constants. SGD with the poly schedule."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    machine: ClassVar[frozenset[str]] = frozenset({"workers", "accelerator", "threads"})
    """Settings that say where to compute, not what: a run may be resumed with others."""

    seed: int = Field(default=0, ge=0, description="of everything random")
    epochs: int = Field(default=8, ge=1, description="passes over the photos")
    batch: int = Field(default=8, ge=1, description="images a step, on each device")
    rate: float = Field(default=0.1, gt=0, description="learning rate of the pre-trained layers")
    weight_decay: float = Field(default=5e-4, ge=0, description="of SGD")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD")
    power: float = Field(default=0.9, ge=0, description="rate falls as (1 - step/steps)^power")
    warmup: int = Field(default=0, ge=0, description="steps over which the rate rises to its value")
    clip: float = Field(default=0.0, ge=0, description="largest gradient norm; 0: not clipped")
    save_minutes: float = Field(default=10.0, gt=0, description="also save within an epoch, this often")
    precision: Literal["auto", "32", "16-mixed", "bf16-mixed"] = Field(
        default="auto", description="auto (16-mixed on CUDA, else 32), 32, 16-mixed, bf16-mixed"
    )
    accelerator: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto, cpu, cuda")
    devices: int = Field(default=1, ge=1, description="per machine; under torchrun, what it started")
    workers: int | None = Field(default=None, ge=0, description="processes that load images (None: auto)")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the network (None: all)")


Config = TypeVar("Config", bound=BaseModel)


def make_config(cls: type[Config], file: Path | None = None, **changes: Any) -> Config:
    """Settings from a TOML or JSON file, then `changes` (None: not given).

    Raises InputError for a file that cannot be read, an unknown name or a value out of range.
    """
    given = {} if file is None else _read(file)
    given |= {name: value for name, value in changes.items() if value is not None}
    try:
        return cls.model_validate(given)
    except ValidationError as e:
        raise InputError(f"{file or cls.__name__}: {first_problem(e, 'settings')}") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        raw = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{file}: cannot be read as settings: {e}") from None
    if isinstance(raw, dict) and {"stage", "config"} <= raw.keys():  # a saved config.json
        raw = raw["config"]
    if not isinstance(raw, dict):
        raise InputError(f"{file}: settings are names with values, not a {type(raw).__name__}")
    return raw


def save_config(out: Path, stage: str, config: BaseModel, inputs: dict[str, Any]) -> None:
    """Write `out/config.json`, or check that what is there says the same.

    inputs: whatever the result depends on beside the settings, JSON-able (paths, counts, fingerprints).
    Raises InputError where the folder was made with other settings or inputs (naming the first that
    differs), StoreError where it cannot be written.
    """
    machine: frozenset[str] = getattr(config, "machine", frozenset())
    new = {"stage": stage, "config": config.model_dump(mode="json"), "inputs": inputs}
    new = json.loads(json.dumps(new))  # as it will be read back: tuples are lists
    file = out / CONFIG
    if file.exists():
        _check_same(out, _saved(file), new, machine)
    tools = _tools()
    try:
        with atomic_write(file, "w") as f:
            json.dump({**new, "tools": tools}, f, indent=1)
            f.write("\n")
    except OSError as e:
        raise StoreError(f"{file}: cannot be written: {e.strerror}") from None


def _tools() -> dict[str, str]:
    """Versions of what is installed; not every stage needs torch."""
    found = {"python": platform.python_version()}
    for name in ("infercam", "torch", "numpy", "onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _saved(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return {key: raw[key] for key in ("stage", "config", "inputs")}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{file}: damaged; delete the folder to start over, or choose another") from None


def _check_same(out: Path, old: dict[str, Any], new: dict[str, Any], machine: frozenset[str]) -> None:
    if old["stage"] != new["stage"]:
        raise InputError(
            f"{out}: holds the stage {old['stage']!r}, not {new['stage']!r}; choose another folder"
        )
    for part in ("config", "inputs"):
        for name in sorted({*old[part], *new[part]} - (machine if part == "config" else frozenset())):
            was, now = old[part].get(name), new[part].get(name)
            if was != now:
                raise InputError(
                    f"{out}: was made with {name} = {_short(was)}, not {_short(now)}; "
                    "choose another folder, or delete it to start over"
                )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
