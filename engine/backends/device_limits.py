"""How much a device backend takes on at a time: by its memory and the host's, and by what the simulation of batches
says (benchmarks/gpu/model.py, 300 VOC photos on the ladder).

Many images in flight fill batches: `released` with 16, 64, 256 of them wastes 42, 16 and 6 % of its pixels on blank
views in batches of 6, 6 and 5 Mpx. With fewer images smaller batches are fuller: 64 images and 3 Mpx waste 7 %.
Patience hardly matters from 8 turns on.
"""

from __future__ import annotations

import os

from infercam.engine.method.backend import Limits

BATCH_PIXELS = 5_000_000
"""Network pixels that fill a large GPU: more waste as many again as they gain."""
IMAGES, PATIENCE = 256, 64
"""Images in flight, as far as there is memory, and turns that a view waits for a fuller batch."""
PIXELS_PER_IMAGE = 45_000
"""Batch pixels for each image in flight: with more, batches are filled up with blank views."""
ACTIVATIONS = 1024
"""Bytes that a network is taken to need per input pixel. A wrong guess costs a halving, nothing else."""
HOST_SHARE = 1 / 8
"""Of the host's memory, for pictures and maps of images in flight."""
DEVICE_PER_HOST = 20
"""Bytes that an image has on the device for one on the host, at least: its views at all scales beside its pixels."""


def device_limits(
    budget: int,
    input_and_response: float,
    typical_image: int,
    *,
    dynamic_batch: bool = True,
    batch_pixels: int | None = None,
    keeps: int = 0,
    host_memory: int | None = None,
) -> Limits:
    """What a backend with `budget` bytes of device memory takes.

    input_and_response: bytes per network pixel. typical_image: device bytes of one in flight (500×375, `released`).
    batch_pixels: asked for; None: a quarter of the budget in one batch, no more than images in flight can fill.
    host_memory: bytes (default: this machine's).
    """
    host = _host_memory() if host_memory is None else host_memory
    memory = max(1, min(budget // 2, int(host * HOST_SHARE) * DEVICE_PER_HOST))
    images = max(1, min(IMAGES, memory // max(1, typical_image)))
    affordable = int(budget / 4 / (input_and_response + ACTIVATIONS))
    return Limits(
        batch_pixels=batch_pixels or max(1, min(BATCH_PIXELS, affordable, PIXELS_PER_IMAGE * images)),
        batch_views=64 if dynamic_batch else 1,
        memory=memory,
        images=max(images, IMAGES // 4),  # small ones, of which memory has room for more
        patience=max(8, images * PATIENCE // IMAGES),
        few_batches=True,
        keeps=keeps,
    )


def _host_memory() -> int:
    """Bytes of this machine; a number that limits nothing where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 40
