"""Checkpoints: written atomically, read without unpickling anything but tensors and plain values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError
from infercam.trainer.loop.errors import TrainingError

FORMAT = 1


def save_checkpoint(
    file: Path, stage: str, network: dict[str, Tensor], facts: dict[str, Any], **extra: Any
) -> None:
    """Write a checkpoint: the state dict, `facts` (JSON-able: architecture, classes, …) and `extra`.

    Raises TrainingError where it cannot be written; what was there before stays.
    """
    content = {
        "format": FORMAT,
        "stage": stage,
        "facts": json.dumps(facts),
        "network": {name: value.detach().cpu() for name, value in network.items()},
        **extra,
    }
    try:
        with atomic_write(file) as f:
            torch.save(content, f)
    except (OSError, RuntimeError) as e:  # torch reports a full disk as a RuntimeError of its zip writer
        reason = getattr(e, "strerror", None) or str(e).splitlines()[0]
        raise TrainingError(f"{file}: cannot be written ({reason}); what was there before is kept") from None


def read_checkpoint_file(file: Path, stage: str) -> dict[str, Any]:
    """The whole content of a checkpoint of that stage; raises InputError otherwise."""
    if not file.is_file():
        raise InputError(f"{file}: no such checkpoint")
    try:
        raw = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many kinds for damaged files, and for pickles that hold code
        raise InputError(f"{file}: not a checkpoint, or damaged; it is not unpickled") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or "network" not in raw:
        raise InputError(f"{file}: not a checkpoint of infercam's {stage} stage")
    if raw["stage"] != stage:
        raise InputError(f"{file}: a checkpoint of the stage {raw['stage']!r}, not {stage!r}")
    return raw


def load_checkpoint(file: Path, stage: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict and the facts of a checkpoint of that stage; raises InputError otherwise."""
    raw = read_checkpoint_file(Path(file), stage)
    return raw["network"], json.loads(raw["facts"])


def is_checkpoint(file: Path) -> bool:
    """Whether a file is one of ours (published checkpoints are plain state dicts)."""
    try:
        raw = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:
        return False
    return isinstance(raw, dict) and {"format", "stage", "facts", "network"} <= raw.keys()


def load_network(network: torch.nn.Module, state: dict[str, Tensor], origin: str | Path) -> None:
    """Load a state dict into a network; raises InputError naming the first keys that do not fit."""
    own = network.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or unknown or shapes:
        parts = (("misses", missing), ("has unknown", unknown), ("has other shapes for", sorted(shapes)))
        text = "; ".join(f"{what} {_some(keys)}" for what, keys in parts if keys)
        raise InputError(f"{origin}: not a checkpoint of this architecture: {text}")
    network.load_state_dict(state)


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:3])
    return shown if len(keys) <= 3 else f"{shown} and {len(keys) - 3} more"
