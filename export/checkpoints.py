"""Reading a classifier's weights from disk and fitting them to a network, running nothing in the file.

PyTorch checkpoints are opened with `weights_only=True`: a file that needs more than tensors and plain
containers is refused, never unpickled.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infercam.engine.common.errors import ExportError, MissingExtra

if TYPE_CHECKING:
    import torch
    from torch import nn

State = dict[str, "torch.Tensor"]

# What trainers wrap a state dict in, and what DataParallel and torch.compile put before every name.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
PREFIXES = ("module.", "_orig_mod.")
# Counters of BatchNorm that old checkpoints lack and that inference never reads.
COUNTER = "num_batches_tracked"
NAMED = 4  # how many keys an error spells out before "and N more"


def read_checkpoint(path: str | Path) -> State:
    """Read a state dict: name -> tensor (on the CPU, in the file's own dtype).

    Takes `.safetensors` files and PyTorch files of either format (zip, or the older one), plain or wrapped
    as `{"state_dict": …}` / `{"model": …}`; `module.` (DataParallel) is stripped from the names.

    Raises ExportError where the file is missing, unreadable, holds more than tensors, or no state dict at
    all; MissingExtra without torch or safetensors.
    """
    file = Path(path)
    if not file.is_file():
        raise ExportError(f"{file}: no such checkpoint file")
    raw = _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
    return strip_prefixes(unwrap(raw, file))


def _read_safetensors(file: Path) -> Mapping[str, Any]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise MissingExtra("safetensors and torch", "train", f"reading {file.name}") from None
    try:
        return load_file(file)
    except (SafetensorError, OSError) as e:
        raise ExportError(f"{file}: not a readable safetensors file ({_first_line(e)})") from None


def _read_torch(file: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise MissingExtra("torch", "train", f"reading {file.name}") from None
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        held = re.search(r"GLOBAL ([\w.]+)", str(e))  # readable, but it wants an object built
        if held is None:
            raise ExportError(f"{file}: not a PyTorch checkpoint") from None
        raise ExportError(
            f"{file}: holds more than tensors ({held[1]}), so it is not opened (it could run code); "
            "save the weights alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except Exception as e:  # on a damaged file, the unpickler raises whatever it trips over
        raise ExportError(f"{file}: not a readable PyTorch checkpoint ({_first_line(e)})") from None


def unwrap(raw: Any, file: Path) -> State:
    """The state dict inside what a checkpoint file held; raises ExportError if there is none."""
    import torch

    for _ in range(3):  # {"model": {"state_dict": …}} is as deep as they come
        if not isinstance(raw, Mapping):
            raise ExportError(f"{file}: holds a {type(raw).__name__}, not a state dict (name -> tensor)")
        tensors = {str(k): v for k, v in raw.items() if isinstance(v, torch.Tensor)}
        if tensors:
            return tensors
        inner = [raw[k] for k in WRAPPERS if isinstance(raw.get(k), Mapping)]
        if not inner:
            break
        raw = inner[0]
    held = ", ".join(map(str, list(raw)[:NAMED])) if isinstance(raw, Mapping) else ""
    raise ExportError(
        f"{file}: no state dict found (top-level keys: {held or 'none'}; looked in {', '.join(WRAPPERS)})"
    )


def strip_prefixes(state: Mapping[str, torch.Tensor]) -> State:
    """Names without the prefixes that DataParallel and torch.compile add."""
    out: State = {}
    for name, value in state.items():
        while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        out[name] = value
    return out


def fit(module: nn.Module, state: Mapping[str, torch.Tensor], *, what: str, origin: str | Path) -> None:
    """Copy `state` into `module` (as float32); every name and shape must match, one for one.

    BatchNorm's counters may be absent or extra. Raises ExportError that names the first few missing keys,
    unexpected keys and shape differences, with their numbers.
    """
    own = module.state_dict()
    counters = {k for k in (*own, *state) if k.endswith(COUNTER)}
    missing = [k for k in own if k not in state and k not in counters]
    unexpected = [k for k in state if k not in own and k not in counters]
    misshapen = [
        f"{k} (file {list(state[k].shape)}, network {list(own[k].shape)})"
        for k in own
        if k in state and k not in counters and state[k].shape != own[k].shape
    ]
    if missing or unexpected or misshapen:
        complaints = [
            _listing("missing", missing),
            _listing("unexpected", unexpected),
            _listing("of another shape", misshapen),
        ]
        raise ExportError(f"{origin}: does not fit {what}: {'; '.join(c for c in complaints if c)}")
    module.load_state_dict({k: v.float() for k, v in state.items() if k not in counters}, strict=False)


def split_off(state: Mapping[str, torch.Tensor], layers: Collection[str]) -> tuple[State, list[str]]:
    """Divide a state dict into what is used and the names under `layers` (such as "f9") that are not."""
    ignored = [k for k in state if any(k == n or k.startswith(f"{n}.") for n in layers)]
    return {k: v for k, v in state.items() if k not in set(ignored)}, ignored


def _listing(title: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f", and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return f"{len(keys)} {title}: {', '.join(keys[:NAMED])}{more}"


def layers_of(names: Iterable[str]) -> list[str]:
    """The layers that parameter names belong to, in order, each once: "f9.weight" -> "f9"."""
    return list(dict.fromkeys(n.rsplit(".", 1)[0] for n in names))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
