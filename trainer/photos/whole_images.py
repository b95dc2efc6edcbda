"""Whole photos through a network in evaluation: in batches of one shape, shared between processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from infercam.engine.bundle import InputSpec
from infercam.engine.common.prefetch import prefetch
from infercam.trainer.photos.augment import resize, to_tensor
from infercam.trainer.photos.photos import Photos

T = TypeVar("T")


def shape_at(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) of a picture of that size when its longer side has `side` pixels."""
    factor = side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def shape_batches(
    photos: Photos, ids: Sequence[str], side: int, batch: int, spec: InputSpec
) -> Iterator[tuple[list[str], Tensor]]:
    """Every photo once, longer side `side`, with those of one shape together and nothing padded: batches of
    (ids, N×3×h×w float32), at most `batch` each. Raises InputError for a picture that cannot be read."""
    shapes = {item_id: shape_at(photos.size(item_id), side) for item_id in ids}

    def read(item_id: str) -> Tensor:
        image, _ = resize(photos.image(item_id), {}, *shapes[item_id])
        return to_tensor(image, spec)

    order = sorted(ids, key=shapes.__getitem__)
    names: list[str] = []
    together: list[Tensor] = []
    for item_id, image in zip(order, prefetch(read, order, depth=2 * batch), strict=True):
        if together and (len(together) == batch or together[0].shape != image.shape):
            yield names, torch.stack(together)
            names, together = [], []
        names.append(item_id)
        together.append(image)
    if together:
        yield names, torch.stack(together)


def my_share(ids: Sequence[str]) -> list[str]:
    """The ids that this process answers for, where several train together."""
    if not torch.distributed.is_initialized():
        return list(ids)
    return list(ids[torch.distributed.get_rank() :: torch.distributed.get_world_size()])


def first_process() -> bool:
    """Whether this process is the one that writes files."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def gathered(mine: dict[str, T]) -> dict[str, T]:
    """What all processes found, in each of them."""
    if not torch.distributed.is_initialized():
        return mine
    parts: list[dict[str, T] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, mine)
    return {k: v for part in parts if part for k, v in part.items()}
