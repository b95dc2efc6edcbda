"""Training items by (epoch, position), so that a resumed run sees what an undisturbed one would have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from infercam.engine.common.errors import InfercamError, InputError

Key = tuple[int, int]
Load = Callable[[str], tuple[Any, dict[str, Any]]]
"""id -> image H×W×3 uint8, planes; raises InfercamError, naming the file, for what cannot be used."""
Augment = Callable[[np.random.Generator, Any, dict[str, Any]], dict[str, Tensor]]
"""Picture and planes -> tensors of one size for the whole batch."""


class StageDataset(Dataset):
    """Items with augmentation; `dataset[epoch, i]` is always the same.

    Both callables must be picklable (module-level functions or instances of classes) where `workers` > 0.
    """

    def __init__(self, ids: Sequence[str], load: Load, augment: Augment, seed: int = 0) -> None:
        self.ids = list(ids)
        self.load = load
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: Key | int) -> dict[str, Any]:
        """`id` and the tensors of `augment`; an unusable item comes back as `error`, for `collate` to raise:
        an exception that crosses from a worker process would carry its traceback into the message."""
        epoch, at = key if isinstance(key, tuple) else (0, key)
        rng = np.random.default_rng([self.seed, epoch, at])
        try:
            image, planes = self.load(self.ids[at])
        except InfercamError as e:
            return {"error": str(e)}
        return {"id": self.ids[at], **self.augment(rng, image, planes)}


class EpochSampler(Sampler[Key]):
    """The shuffled order of one epoch, this process's share of it; every process gets equally many.

    Set `epoch` and `start` (items to skip, for resuming within an epoch) before iterating.
    """

    def __init__(self, count: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.seed, self.rank, self.world = count, seed, rank, world
        self.batch = max(1, min(batch, count // world))
        self.steps = max(1, count // (self.batch * world))
        """Batches an epoch in each process; a rest that fills no batch is left out, others each time."""
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return self.steps * self.batch - self.start

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        order = np.resize(order, self.steps * self.batch * self.world)  # fewer images than processes: repeat
        mine = order[self.rank :: self.world][self.start :]
        return iter([(self.epoch, int(i)) for i in mine])


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: tensors stacked, ids as a list; only `error` where an item could not be read."""
    for item in items:
        if "error" in item:
            return {"error": item["error"]}
    return default_collate(items)


def raise_if_broken(batch: dict[str, Any]) -> None:
    """Raises InputError in the main process for what `collate` met in a worker."""
    if "error" in batch:
        raise InputError(batch["error"])


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
