"""Bytes that each kernel has to move for a call of ops.py, by kernel: what a benchmark divides by its time.

The least that any implementation would move between passes: what is read again from the cache (taps, masks beyond
their first reading) does not count, so a rate above that of a copy is possible where all of it fits in the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from infercam.engine.device.descriptors import Accumulate, Gather, Resize, Size, Slot, UniteCall
from infercam.engine.device.ops import erase_kernel
from infercam.engine.device.runner import InputType, OutputShape
from infercam.engine.method.resampling import columns_first

Traffic = dict[str, int]


def resize(items: Sequence[Resize]) -> Traffic:
    """The image read, the intermediate written and read, the picture written: 3 bytes a pixel."""
    out = {"resize_first": 0, "resize_second": 0}
    for item in items:
        (height, width), box = item.size, item.box
        vertical = columns_first((box.height, box.width), item.size)
        middle = height * box.width if vertical else box.height * width
        out["resize_first"] += 3 * (box.area + middle)
        out["resize_second"] += 3 * (middle + height * width)
    return out


def erase(slots: Sequence[Slot], size: Size, input_type: InputType) -> Traffic:
    """Per value 1 byte read and 4 or 2 written; masks once."""
    values = len(slots) * 3 * math.prod(size)
    masks = sum(math.prod(slot.tile) for slot in slots if slot.erased)
    return {erase_kernel(size, input_type): values * (5 if input_type == "float32" else 3) + masks}


def gather(items: Sequence[Gather], shape: OutputShape) -> Traffic:
    """Per kept value 4 bytes read of each view and of what is added to, 4 written."""
    per_class = 4 * shape.height * shape.width
    passes = ((i.plain >= 0) + (i.mirrored >= 0) + i.add + 1 for i in items)
    return {"gather": sum(per_class * len(i.classes) * n for i, n in zip(items, passes, strict=True))}


def accumulate(items: Sequence[Accumulate]) -> Traffic:
    """See each kernel's head: per pixel and class 4 bytes a reading or writing."""
    out = {"upsample": 0, "rank_histogram": 0, "centre_of_mass": 0, "accumulate": 0}
    for item in items:
        pixels = math.prod(item.tile)
        plane = 4 * pixels * item.classes
        out["upsample"] += plane + 4 * item.classes * sum(math.prod(low.size) for low in item.lows)
        out["rank_histogram"] += 3 * plane * (item.quantile < 1)
        out["centre_of_mass"] += plane * item.locate
        if item.accumulated:
            competes = item.compete and item.classes > 1 and not item.first
            out["accumulate"] += ((2 if item.first else 3) + competes) * plane + (
                1 if item.first else 2
            ) * pixels
    return {kernel: nbytes for kernel, nbytes in out.items() if nbytes}


def unite(item: UniteCall) -> Traffic:
    """The maps written, each tile's taken classes read (twice where they are a sum)."""
    every = [*item.parts, item.whole] if item.whole else list(item.parts)
    taken = 4 * sum(part.box.area * len(part.takes) for part in every)
    out = {"unite": 4 * item.classes * math.prod(item.size) + taken}
    if item.mode == "sum":
        out["plane_peaks"] = 4 * item.classes * sum(part.box.area for part in every)
    return out
