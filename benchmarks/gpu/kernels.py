"""The engine's kernels alone: bytes moved over time against a device-to-device copy, and each against its twin."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from infercam.engine.bundle import InputSpec
from infercam.engine.device import traffic
from infercam.engine.device.descriptors import (
    Accumulate,
    Gather,
    LowResponse,
    Resize,
    Slot,
    UniteCall,
    UnitePart,
)
from infercam.engine.device.driver import Driver, Pointer
from infercam.engine.device.layouts import PLANES_AT
from infercam.engine.device.ops import (
    Ops,
    maps_nbytes,
    maps_stride,
    mask_nbytes,
    picture_nbytes,
    read_results,
    results_nbytes,
)
from infercam.engine.device.pool import Pool
from infercam.engine.device.runner import OutputShape
from infercam.engine.device.staging import Uploads
from infercam.engine.method import host_ops, reference
from infercam.engine.method.geometry import Box, Placed, view_size, whole_box

Size = tuple[int, int]
CLASSES = 20
PRESENT = [3, 14]
STRIDE = 8
SCALES = (1.0, 0.5, 1.5, 2.0)
REPEATS = 10


class KernelClock(Protocol):
    """Measures kernels."""

    def seconds(self, work: Callable[[], None]) -> dict[str, float]:
        """Seconds on the device by kernel, for one call of `work`."""
        ...


class WallClock:
    """Without a profiler: the whole call, its host time included, under the name `all`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def seconds(self, work: Callable[[], None]) -> dict[str, float]:
        began = time.perf_counter()
        work()
        self._driver.record().wait()
        return {"all": time.perf_counter() - began}


class ProfilerClock:
    """Each kernel's own duration, from PyTorch's profiler, which sees all kernels of the process."""

    def seconds(self, work: Callable[[], None]) -> dict[str, float]:
        out: dict[str, float] = defaultdict(float)
        for _ in range(2):  # once to warm up
            out.clear()
            for name, begin, end in profiled(work, REPEATS):
                out[name] += (end - begin) / 1e6 / REPEATS
        return dict(out)


def profiled(work: Callable[[], Any], repeats: int = 1) -> list[tuple[str, float, float]]:
    """(name, begin, end) in microseconds of everything that ran on the GPU during `repeats` of `work`."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
    autograd: Any = torch.autograd
    events: Any = profiler.events() or ()
    return [
        (e.name, e.time_range.start, e.time_range.end)
        for e in events
        if e.device_type == autograd.DeviceType.CUDA
    ]


@dataclass
class KernelBench:
    """Tiles of one size on the device, full of plausible data, and the calls to be measured."""

    driver: Driver
    tiles: int
    size: Size
    spec: InputSpec = field(default_factory=InputSpec)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.pool = Pool(self.driver)
        self.uploads = Uploads(self.driver)
        self.ops = Ops(self.driver, self.spec, self.pool, self.uploads)
        self.pixels = self.rng.integers(0, 256, (*self.size, 3), np.uint8)
        self.image = self.put(self.pixels)
        self.erased = self.rng.random(self.size) < 0.3
        self.lows = [self._low(view_size(*self.size, scale)) for scale in SCALES]

    def _low(self, size: Size) -> NDArray[np.float32]:
        shape = (len(PRESENT), -(-size[0] // STRIDE), -(-size[1] // STRIDE))
        return self.rng.gamma(1, 1, shape).astype(np.float32)

    def put(self, array: NDArray[Any]) -> Pointer:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        pointer = self.pool.allocate(data.size)
        self.uploads.send(pointer, data)
        return pointer

    def get(self, pointer: Pointer, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        out = np.empty(shape, dtype)
        self.driver.copy_out(out.reshape(-1).view(np.uint8), pointer)
        self.driver.record().wait()
        return out

    def close(self) -> None:
        self.ops.close()
        self.pool.close()

    # -- the calls -----------------------------------------------------------------------------------------
    def resize(self) -> KernelCall:
        target = view_size(*self.size, 1.5)
        pictures = [self.pool.allocate(picture_nbytes(target)) for _ in range(self.tiles)]
        items = [Resize(self.image, self.size[1], whole_box(*self.size), target, p) for p in pictures]

        def check() -> float:
            got = self.get(pictures[-1] + PLANES_AT, (3, *target), np.uint8)
            want = self._twin(target).planes
            return float(np.abs(got.astype(int) - want.astype(int)).max())

        return KernelCall("resize", lambda: self.ops.resize(items), traffic.resize(items), check)

    def erase(self) -> KernelCall:
        pictures = [self.pool.allocate(picture_nbytes(self.size)) for _ in range(self.tiles)]
        box = whole_box(*self.size)
        self.ops.resize([Resize(self.image, self.size[1], box, self.size, p) for p in pictures])
        mask = np.zeros(mask_nbytes(self.size), np.uint8)
        mask[: self.erased.size] = self.erased.reshape(-1)
        masks = [self.put(mask) for _ in range(self.tiles)]
        both = zip(pictures, masks, strict=True)
        slots = [Slot(picture, bool(n % 2), erased, self.size) for n, (picture, erased) in enumerate(both)]
        out = self.pool.allocate(self.tiles * 3 * self.size[0] * self.size[1] * 2)

        def check() -> float:
            got = self.get(out, (self.tiles, 3, *self.size), np.float16)[-1]
            want = np.empty((3, *self.size), np.float32)
            mirrored = bool((self.tiles - 1) % 2)
            erased = self.erased[:, ::-1] if mirrored else self.erased
            self._twin(self.size).write(want, mirrored, erased)
            return float(np.abs(got.astype(np.float32) - want.astype(np.float16)).max())

        return KernelCall(
            "erase",
            lambda: self.ops.erase(slots, self.size, out, "float16"),
            traffic.erase(slots, self.size, "float16"),
            check,
        )

    def gather(self) -> KernelCall:
        shape = OutputShape(CLASSES, *(-(-side // STRIDE) for side in self.size))
        response = self.rng.normal(size=(2 * self.tiles, *shape)).astype(np.float32)
        source = self.put(response)
        nbytes = 4 * len(PRESENT) * shape.height * shape.width
        items = [Gather(self.pool.allocate(nbytes), PRESENT, 2 * n, 2 * n + 1) for n in range(self.tiles)]

        def check() -> float:
            got = self.get(items[-1].low, (len(PRESENT), *shape[1:]), np.float32)
            plain, mirrored = np.maximum(response[-2:, PRESENT], 0)
            return float(np.abs(got - (plain + mirrored[:, :, ::-1])).max())

        return KernelCall(
            "gather",
            lambda: self.ops.gather(items, source, shape),
            traffic.gather(items, shape),
            check,
        )

    def accumulate(self, quantile: float = 1.0, locate: bool = False) -> KernelCall:
        """A later iteration; maps and masks start from zeros."""
        count = len(PRESENT)
        lows = [LowResponse(self.put(low), (low.shape[1], low.shape[2])) for low in self.lows]
        zeros = np.zeros(maps_nbytes(count, self.size), np.uint8)
        items = [
            Accumulate(
                self.size,
                count,
                lows,
                quantile,
                accumulated=self.put(zeros),
                erased=self.put(np.zeros(mask_nbytes(self.size), np.uint8)),
                first=False,
                locate=locate,
            )
            for _ in range(self.tiles)
        ]
        results = self.pool.allocate(results_nbytes(items))

        def check() -> float:
            total = host_ops.sum_views([(low, None) for low in self.lows], count, *self.size)
            want = host_ops.normalise_in_place(total, 0.0, host_ops.peaks(total, quantile))
            planes = self.get(items[-1].accumulated, (count, maps_stride(self.size)), np.float32)
            got = planes[:, : self.size[0] * self.size[1]].reshape(want.shape)
            difference = float(np.abs(got - want).max())
            if locate:
                last = read_results(items, self.get(results, (results_nbytes(items),), np.uint8))[-1]
                centres = [host_ops.centre_of_mass(m) for m in want]
                difference = max(difference, float(np.abs(np.subtract(last.centres, centres)).max()))
            return difference

        name = "accumulate" + (", located" if locate else "") + (", quantile" if quantile < 1 else "")
        return KernelCall(name, lambda: self.ops.accumulate(items, results), traffic.accumulate(items), check)

    def unite(self) -> KernelCall:
        height, width = self.size
        rows = [
            (0, height // 2 + height // 40),
            (height // 2 - height // 40, height),
        ]  # tiles overlap a little
        columns = [(0, width // 2 + width // 40), (width // 2 - width // 40, width)]
        boxes = [Box(y0, x0, y1, x1) for y0, y1 in rows for x0, x1 in columns]
        takes = tuple(range(len(PRESENT)))
        maps = [self.rng.random((len(takes), b.height, b.width), np.float32) for b in boxes]
        parts = [
            UnitePart(self._planes(m), box, takes, iterations=1) for m, box in zip(maps, boxes, strict=True)
        ]
        item = UniteCall(self.size, len(takes), parts)
        out = self.pool.allocate(4 * len(takes) * height * width)

        def check() -> float:
            placed = [Placed(box, takes) for box in boxes]
            want = reference.unite(height, width, placed, maps, len(takes))
            return float(np.abs(self.get(out, want.shape, np.float32) - want).max())

        return KernelCall("unite", lambda: self.ops.unite(item, out), traffic.unite(item), check)

    def _planes(self, maps: NDArray[np.float32]) -> Pointer:
        padded = np.zeros((len(maps), maps_stride((maps.shape[1], maps.shape[2]))), np.float32)
        padded[:, : maps[0].size] = maps.reshape(len(maps), -1)
        return self.put(padded)

    def _twin(self, size: Size) -> host_ops.Resized:
        table = host_ops.normalise_table(self.spec)
        return host_ops.Resized(self.pixels, size, table, self.spec.colour)


@dataclass
class KernelCall:
    """One call of ops.py over all tiles."""

    name: str
    run: Callable[[], None]
    traffic: dict[str, int]
    """Bytes by kernel."""
    check: Callable[[], float]
    """Largest absolute difference from the twin, after one run."""


def measure_kernels(
    driver: Driver, clock: KernelClock, tiles: int, size: Size, copy_rate: float | None
) -> list[dict[str, Any]]:
    """One row per kernel: bytes, seconds, rate, its share of a copy's, and the call's difference from its twin.

    copy_rate: bytes moved (read and written) a second by a device-to-device copy; None: not measured.
    """
    rows: list[dict[str, Any]] = []
    with driver.current():
        bench = KernelBench(driver, tiles, size)
        makers: Sequence[Callable[[], KernelCall]] = (
            bench.resize,
            bench.erase,
            bench.gather,
            bench.accumulate,
            lambda: bench.accumulate(locate=True),
            lambda: bench.accumulate(quantile=0.99),
            bench.unite,
        )
        for make in makers:
            call = make()
            call.run()
            difference = call.check()
            rows += _rows(call, clock.seconds(call.run), difference, copy_rate)
        bench.close()
    return rows


def _rows(
    call: KernelCall, seconds: dict[str, float], difference: float, copy_rate: float | None
) -> list[dict[str, Any]]:
    """Kernels that move next to nothing (weights, peaks) are left out; a wall clock gives one row for all."""
    if set(seconds) == {"all"}:
        measured = {"all": (sum(call.traffic.values()), seconds["all"])}
    else:
        measured = {k: (call.traffic[k], s) for k, s in seconds.items() if k in call.traffic and s > 0}
    return [
        {
            "call": call.name,
            "kernel": kernel,
            "bytes": nbytes,
            "seconds": spent,
            "bytes_per_second": nbytes / spent,
            "share_of_copy": None if copy_rate is None else nbytes / spent / copy_rate,
            "difference_from_twin": difference,
        }
        for kernel, (nbytes, spent) in measured.items()
    ]
