"""The method's kernels, as calls: what backends/device.py does with images, tiles, masks and maps on the device.

Every call packs small descriptors, uploads them and launches kernels over all its items at once; nothing waits
for the device, and nothing is read back but by `read_results`. Results do not depend on how items are batched.
Twins: host_ops.py and reference.py; with the same responses they agree to float32 rounding.

What lies on the device (all pointers 256-byte aligned, as the pool gives them):
  image       H×W×3 uint8, RGB, rows dense
  picture     a tile resized to one network size: `picture_nbytes`; kept over mirror and iterations
  erased      h×w uint8 at tile size, 1 = erased: `mask_nbytes`
  accumulated K planes of float32 at tile size: `maps_nbytes`
  low         K×h'×w' float32, dense: one scale's ReLU'd response, plus that of its mirrored view, un-mirrored; of
              a view in windows as they add up
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import numpy as np

from infercam.engine.bundle import InputSpec
from infercam.engine.device.descriptors import (
    Accumulate,
    Cut,
    Gather,
    Patch,
    Resize,
    Size,
    Slot,
    UniteCall,
    UnitePart,
)
from infercam.engine.device.driver import Argument, Bytes, Driver, Pointer
from infercam.engine.device.layouts import (
    JOINS,
    MODES,
    PLANES_AT,
    STRUCTS,
    THREADS,
    Packet,
    mask_steps,
    normalisation,
)
from infercam.engine.device.runner import InputType, OutputShape
from infercam.engine.method.geometry import Box
from infercam.engine.method.reference import quantile_index
from infercam.engine.method.resampling import columns_first
from infercam.engine.method.task import Advanced


class Workspace(Protocol):
    """Device memory in stream order: what is freed may be given to work enqueued later."""

    def allocate(self, nbytes: int) -> Pointer:
        """At least 256-byte aligned; raises DeviceOutOfMemory."""
        ...

    def free(self, pointer: Pointer) -> None: ...


class UploadSlots(Protocol):
    """Small host data on its way to the device."""

    def send(self, target: Pointer, data: Bytes) -> None:
        """Enqueue a copy of `data` to the device; `data` itself may be reused at once (it was staged)."""
        ...


def picture_nbytes(size: Size) -> int:
    """Bytes of a picture: sums and mean of its channels, then 3×h×w uint8 in the network's channel order."""
    return PLANES_AT + 3 * size[0] * size[1]


def mask_nbytes(tile: Size) -> int:
    """Bytes of `erased`: one per pixel, rounded up to 4."""
    return _stride(tile)


def maps_nbytes(classes: int, tile: Size) -> int:
    """Bytes of `classes` float32 planes at tile size, of `maps_stride` values each."""
    return 4 * classes * _stride(tile)


def maps_stride(tile: Size) -> int:
    """Values from one plane of `accumulated` to the next: the pixels, rounded up to 4, so that each plane begins
    at a multiple of 16 bytes."""
    return _stride(tile)


def results_nbytes(items: Sequence[Accumulate]) -> int:
    """Bytes that `Ops.accumulate` writes at `results`."""
    return 4 * sum(1 + 3 * item.classes for item in items)


def read_results(items: Sequence[Accumulate], data: Bytes) -> list[Advanced]:
    """What `Ops.accumulate` wrote, once copied to the host: newly erased pixels, peaks, centres of each item."""
    words = data[: results_nbytes(items)].view(np.int32)
    out, at = [], 0
    for item in items:
        k = item.classes
        peak = words[at + 1 : at + 1 + k].view(np.float32).copy()
        places = words[at + 1 + k : at + 1 + 3 * k].reshape(k, 2).tolist() if item.locate else []
        out.append(Advanced(int(words[at]), peak, [(y, x) for y, x in places]))
        at += 1 + 3 * k
    return out


class Ops:
    """Launches the kernels. `workspace` gives what a call needs for itself; it is freed before the call returns,
    in stream order. Any call may raise DeviceOutOfMemory: then it has launched and written nothing."""

    def __init__(self, driver: Driver, spec: InputSpec, workspace: Workspace, uploads: UploadSlots) -> None:
        self._driver = driver
        self._workspace = workspace
        self._uploads = uploads
        self._reversed = np.int32(spec.colour == "BGR")
        table = normalisation(spec)
        self._normalisation = workspace.allocate(table.nbytes)
        uploads.send(self._normalisation, table)

    def close(self) -> None:
        """Free what is held between calls (the normalisation table)."""
        self._workspace.free(self._normalisation)

    def resize(self, items: Sequence[Resize]) -> None:
        """Pictures as Pillow makes them (bicubic, antialiased when shrinking), bit for bit."""
        if not items:
            return
        tables, middles = _Spans(), _Spans()
        plans = [_plan(i.box, i.size, tables, middles) for i in items]
        n = len(items)
        axes, jobs = Packet("Axis", 2 * n), Packet("ResizeItem", n)
        with self._scratch(tables.nbytes, middles.nbytes, axes.nbytes, jobs.nbytes) as scratch:
            table, middle, axes_at, jobs_at = scratch
            for item, plan in zip(items, plans, strict=True):
                for axis in plan.axes:
                    axes.struct(table + axis.at, axis.source, axis.target, axis.taps, 0)
                tile = item.image + 3 * (item.box.y0 * item.image_width + item.box.x0)
                at = [table + axis.at for axis in plan.axes]
                sizes = (*plan.middle, _pitch(plan.middle[1]), *item.size)
                jobs.struct(
                    tile, middle + plan.at, item.picture, *at, item.image_width, *sizes, plan.columns_first, 0
                )
            self._uploads.send(axes_at, axes.bytes())
            self._uploads.send(jobs_at, jobs.bytes())
            longest = max(max(i.size) for i in items)
            between = max(_cells(plan.middle, FIRST_CELL) for plan in plans)
            largest = max(_cells(i.size, SECOND_CELL) for i in items)
            self._launch("resample_weights", (_blocks(longest), 2 * n, 1), axes_at)
            self._launch("resize_first", (between, n, 1), jobs_at, self._reversed)
            self._launch("resize_second", (largest, n, 1), jobs_at, self._normalisation)
            self._launch("mean_colours", (_blocks(n), 1, 1), jobs_at, np.int32(n), self._normalisation)

    def erase(self, slots: Sequence[Slot], size: Size, out: Pointer, input_type: InputType) -> None:
        """Write the network's input, len(slots)×3×h×w: normalised, mirrored, erased pixels filled with the
        picture's mean (engine/method/README.md §3 step 1)."""
        if not slots:
            return
        packet = Packet("EraseSlot", len(slots))
        chains: dict[tuple[Size, ...], tuple[int, int]] = {}
        for slot in slots:
            at = steps = 0
            if slot.erased:
                key = (slot.tile, *slot.chain, size)
                if key not in chains:
                    chains[key] = packet.array(mask_steps(key)), len(key) - 1
                at, steps = chains[key]
            flipped = slot.mirrored and slot.mask_mirrored
            packet.struct(slot.picture, slot.erased, slot.tile[1], slot.mirrored, flipped, at, steps, 0)
        if size[1] % ERASE_VALUES:
            # a plane's first group may begin up to 3 values before it
            values = math.prod(size) + ERASE_VALUES - 1
            grid = (_blocks(values, ERASE_VALUES * ERASE_ROUNDS), len(slots), 3)
        else:
            grid = (_blocks(math.prod(size), ERASE_VALUES * WORD_ROUNDS), len(slots), 1)
        dims = (np.int32(size[0]), np.int32(size[1]))
        with self._upload(packet) as at:
            self._launch(erase_kernel(size, input_type), grid, at, self._normalisation, out, *dims)

    def gather(self, items: Sequence[Gather], response: Pointer, shape: OutputShape) -> None:
        """From the response N×C×h'×w' of a batch to the tiles' `low` maps."""
        if not items:
            return
        packet = Packet("GatherItem", len(items))
        for i in items:
            at = packet.array(np.asarray(i.classes, np.int32))
            packet.struct(i.low, at, len(i.classes), i.plain, i.mirrored, i.add, 0)
        most = max(len(i.classes) for i in items) * shape.height * shape.width
        with self._upload(packet) as at:
            dims = (np.int32(shape.classes), np.int32(shape.height), np.int32(shape.width))
            self._launch("gather", (_blocks(most), len(items), 1), at, response, *dims)

    def cut(self, items: Sequence[Cut], size: Size, out: Pointer, input_type: InputType) -> None:
        """Write the network's input, len(items)×3×h×w: windows of views as `erase` wrote these."""
        if not items:
            return
        packet = Packet("CutItem", len(items))
        for i in items:
            packet.struct(i.whole, *i.size, *i.at)
        kernel = {"float32": "cut_float", "float16": "cut_half"}[input_type]
        with self._upload(packet) as at:
            grid = (_blocks(3 * math.prod(size)), len(items), 1)
            self._launch(kernel, grid, at, out, np.int32(size[0]), np.int32(size[1]))

    def patch(self, items: Sequence[Patch], response: Pointer, shape: OutputShape) -> None:
        """From the response N×C×h'×w' of a batch of windows to the views' `low` maps, which begin as zeros."""
        if not items:
            return
        packet = Packet("PatchItem", len(items))
        for i in items:
            parts = [
                (p.slot, p.mirrored, *p.at, packet.array(p.rows), packet.array(p.columns)) for p in i.parts
            ]
            classes_at = packet.array(np.asarray(i.classes, np.int32))
            parts_at = packet.array(np.array(parts, STRUCTS["PatchPart"]))
            packet.struct(i.low, classes_at, len(i.classes), *i.size, parts_at, len(parts))
        most = max(len(i.classes) * math.prod(i.size) for i in items)
        with self._upload(packet) as at:
            dims = (np.int32(shape.classes), np.int32(shape.height), np.int32(shape.width))
            self._launch("patch", (_blocks(most), len(items), 1), at, response, *dims)

    def accumulate(self, items: Sequence[Accumulate], results: Pointer) -> None:
        """Advance each tile by one iteration (§3 steps 2 to 4); see `results_nbytes`, `read_results`."""
        if not items:
            return
        totals, ranks = _Spans(), _Spans()
        places = [
            (
                totals.take(0 if i.accumulated and i.first else maps_nbytes(i.classes, i.tile)),
                ranks.take(i.classes * STRUCTS["RankState"].itemsize if i.quantile < 1 else 0),
            )
            for i in items
        ]
        packet = Packet("TileItem", len(items))
        parts = [_tile_arrays(packet, i) for i in items]
        with self._scratch(totals.nbytes, ranks.nbytes, packet.nbytes) as (total, rank, at):
            result = results
            for item, (total_at, rank_at), arrays in zip(items, places, parts, strict=True):
                in_place = item.accumulated and item.first
                packet.struct(
                    item.accumulated if in_place else total + total_at,
                    item.accumulated,
                    item.erased,
                    result,
                    rank + rank_at if item.quantile < 1 else 0,
                    *item.tile,
                    maps_stride(item.tile),
                    item.classes,
                    *arrays,
                    quantile_index(math.prod(item.tile), item.quantile),
                    item.first,
                    _join(item),
                    item.locate,
                    item.threshold,
                )
                result += 4 * (1 + 3 * item.classes)
            self._driver.zero(results, results_nbytes(items))
            if ranks.nbytes:
                self._driver.zero(rank, ranks.nbytes)
            self._uploads.send(at, packet.bytes())
            self._advance(items, at)

    def _advance(self, items: Sequence[Accumulate], packet: Pointer) -> None:
        n, classes = len(items), max(i.classes for i in items)
        tiled = max(_cells(i.tile, UPSAMPLE_CELL) for i in items)
        self._launch("upsample", (tiled, n, classes), packet)
        pixels = max(math.prod(i.tile) for i in items)
        if any(i.quantile < 1 for i in items):
            for shift, bits in RANK_DIGITS:
                grid = (_blocks(pixels, PEAK_ROUNDS), n, classes)
                self._launch("rank_histogram", grid, packet, np.int32(shift), np.int32(bits))
                self._launch("rank_select", (1, n, classes), packet, np.int32(bits), np.int32(shift == 0))
        if any(i.locate for i in items):
            self._launch("centre_of_mass", (1, n, classes), packet, threads=CENTRE_THREADS)
        if any(i.accumulated for i in items):
            self._launch("accumulate", (_blocks(pixels, 4), n, 1), packet)

    def unite(self, item: UniteCall, out: Pointer) -> None:
        """Write the image's maps, K×H×W float32, dense (§2)."""
        every = [*item.parts, item.whole] if item.whole else list(item.parts)
        packet = Packet("PartItem", len(every))
        sums = bool(every) and item.mode == "sum"
        takes = [packet.array(_takes(part, item.classes)) for part in every]
        peak_bytes = 4 * item.classes * len(every) if sums else 0
        with self._scratch(packet.nbytes, peak_bytes) as (at, peaks):
            for n, (part, take) in enumerate(zip(every, takes, strict=True)):
                box = part.box
                packet.struct(
                    part.accumulated, peaks + 4 * item.classes * n if sums else 0,
                    box.y0, box.x0, box.height, box.width, maps_stride((box.height, box.width)),
                    take, part.iterations, 0,
                )  # fmt: skip
            if every:
                self._uploads.send(at, packet.bytes())
            if sums:
                self._driver.zero(peaks, peak_bytes)
                pixels = max(part.box.area for part in every)
                self._launch("plane_peaks", (_blocks(pixels, PEAK_ROUNDS), len(every), item.classes), at)
            height, width = item.size
            join = item.join if item.whole else "none"
            self._launch(
                "unite",
                (-(-width // UNITE_CELL[1]), -(-height // UNITE_CELL[0]), item.classes),
                at,
                out,
                *(np.int32(v) for v in (height, width, len(item.parts), MODES[item.mode], JOINS[join])),
                np.float32(item.weight),
            )

    # -- launching -----------------------------------------------------------------------------------------
    def _launch(
        self, kernel: str, grid: tuple[int, int, int], *arguments: Argument, threads: int = THREADS
    ) -> None:
        if min(grid):  # no classes: nothing to do
            self._driver.launch(kernel, grid, (threads, 1, 1), arguments)

    @contextmanager
    def _upload(self, packet: Packet) -> Iterator[Pointer]:
        with self._scratch(packet.nbytes) as (at,):
            self._uploads.send(at, packet.bytes())
            yield at

    @contextmanager
    def _scratch(self, *sizes: int) -> Iterator[list[Pointer]]:
        """Workspace of these sizes, all of it or none; 0 for a size of 0."""
        taken: list[Pointer] = []
        try:
            for size in sizes:
                taken.append(self._workspace.allocate(size) if size else 0)
            yield taken
        finally:
            for pointer in taken:
                if pointer:
                    self._workspace.free(pointer)


# As in the kernels' sources; a test compares them.
ERASE_VALUES = 4
ERASE_ROUNDS = 8
WORD_ROUNDS = 4
PEAK_ROUNDS = 16
CENTRE_THREADS = 1024
FIRST_CELL, SECOND_CELL = (64, 32), (64, 256)
UPSAMPLE_CELL = (128, 128)
UNITE_CELL = (16, 64)
"""Rows and columns of one block of the kernel."""
RANK_DIGITS = ((20, 11), (10, 10), (0, 10))
"""(shift, bits) of each step of the search for a quantile."""


class _Spans:
    """Parts of one allocation, each at a multiple of 256 bytes."""

    def __init__(self) -> None:
        self.nbytes = 0

    def take(self, nbytes: int) -> int:
        at = self.nbytes
        self.nbytes += -(-nbytes // 256) * 256
        return at


def _stride(tile: Size) -> int:
    return -(-tile[0] * tile[1] // 4) * 4


def erase_kernel(size: Size, input_type: InputType) -> str:
    """The kernel that writes the network's input of that size."""
    one_by_one, in_words = {
        "float32": ("erase_float", "erase_words_float"),
        "float16": ("erase_half", "erase_words_half"),
    }[input_type]
    return one_by_one if size[1] % ERASE_VALUES else in_words


def _pitch(width: int) -> int:
    """Bytes of a row of the intermediate: what the second pass reads at once."""
    return -(-width // 8) * 8


def _blocks(work: int, per_thread: int = 1) -> int:
    return -(-work // (THREADS * per_thread))


def _cells(size: Size, cell: Size) -> int:
    return -(-size[0] // cell[0]) * -(-size[1] // cell[1])


class _Axis(NamedTuple):
    at: int
    """Of its table in the scratch."""
    source: int
    target: int
    taps: int


class _Plan(NamedTuple):
    """How a picture is resized: two passes, and what lies between them."""

    axes: list[_Axis]
    middle: Size
    at: int
    columns_first: bool


def _plan(box: Box, size: Size, tables: _Spans, middles: _Spans) -> _Plan:
    tile = box.height, box.width
    down, across = (_axis(*sides, tables) for sides in zip(tile, size, strict=True))
    if columns_first(tile, size):
        axes, middle = [down, across], (size[0], tile[1])
    else:
        axes, middle = [across, down], (tile[0], size[1])
    return _Plan(axes, middle, middles.take(3 * middle[0] * _pitch(middle[1])), axes[0] is down)


def _axis(source: int, target: int, tables: _Spans) -> _Axis:
    taps = math.ceil(2.0 * max(1.0, source / target)) * 2 + 1  # Pillow's ksize
    return _Axis(tables.take(4 * target * (2 + taps)), source, target, taps)


def _join(item: Accumulate) -> int:
    """ADDS and COMPETES of layouts.cuh; a single class has none to compete with."""
    return (item.mode != "max") + 2 * (item.compete and item.classes > 1 and not item.first)


def _tile_arrays(packet: Packet, item: Accumulate) -> tuple[int, int, int]:
    """Appends a tile's low maps and floor; returns their offsets: lows_at, lows, floor_at."""
    lows = np.array([(low.pointer, *low.size) for low in item.lows], STRUCTS["LowMap"])
    floor_at = -1 if item.floor is None else packet.array(np.asarray(item.floor, np.float32))
    return packet.array(lows), len(item.lows), floor_at


def _takes(part: UnitePart, classes: int) -> Bytes:
    out = np.zeros(classes, np.uint8)
    out[list(part.takes)] = 1
    return out
