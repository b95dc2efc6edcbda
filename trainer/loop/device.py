"""Where a network runs when it only predicts."""

from __future__ import annotations

import torch

from infercam.engine.common.errors import InputError, shown


def inference_device(name: str, threads: int | None = None) -> str:
    """The PyTorch device for `--accelerator` auto, cpu or cuda; threads: of the network on the CPU.

    Raises InputError for another name, or for cuda where there is none.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("PyTorch sees no CUDA device here; use --accelerator cpu or auto")
    if name not in ("cpu", "cuda"):
        raise InputError(f"--accelerator is auto, cpu or cuda, not {shown(repr(name))}")
    return name
