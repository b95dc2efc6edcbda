"""What the parts of the GPU benchmark share: sizes, switches, pictures, the network, and a timed run."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from infercam.benchmarks.gpu.kernels import Size
from infercam.benchmarks.gpu.profile import WaitingDriver
from infercam.benchmarks.yardsticks.torch_cuda import module_bundle, torch_cuda_backend
from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle, InputSpec
from infercam.engine.common.errors import BackendError
from infercam.engine.data.images import read_image
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import voc_source
from infercam.engine.device.driver import Driver
from infercam.engine.method.recipe import Mode, recipe
from infercam.export.archs import VOC_CLASSES
from infercam.export.archs.resnet38 import WIDTHS, ResNet38

Named = tuple[str, NDArray[np.uint8], list[int]]

VOC_SIZES: tuple[Size, ...] = ((375, 500), (333, 500), (500, 375), (375, 500), (332, 500), (500, 333))
"""The commonest of VOC 2012, about in their proportions."""
LABELS = ([14], [7], [11, 14], [6], [2], [14, 17, 8], [4], [12, 14])
"""Classes of the pictures, about as many to a picture as VOC has."""


@dataclass(frozen=True)
class GpuPlan:
    """How large everything is."""

    sizes: tuple[Size, ...] = VOC_SIZES
    widths: tuple[int, ...] = WIDTHS
    images: int = 32
    loop_images: int = 6
    tiles: int = 256
    """In the kernels' measurements: so many that nothing stays in the L2 cache."""
    copy_bytes: int = 1 << 30
    matmul: int = 8192
    budget: int | None = None
    batch_pixels: int | None = None
    device: str = "cuda"
    minutes: float = 4.0


DRY = GpuPlan(
    ((24, 32), (30, 21)), (4, 4, 4, 6, 6, 8, 8), 2, 1, 2, 1 << 16, 64, 256 << 20, 20_000, "cpu", 60.0
)


@dataclass(frozen=True)
class GpuSwitches:
    """The savings, each with its switch; all off is the engine's own loop, view by view."""

    queue: bool = False
    """Batches are enqueued while others run."""
    batching: bool = False
    """Views of many tiles and images in one batch."""
    half: bool = False
    channels_last: bool = False
    graphs: bool = False
    """CUDA graphs for batches and shapes that come again."""

    def options(self, plan: GpuPlan) -> dict[str, Any]:
        """For torch_cuda_backend."""
        return {
            "depth": 3 if self.queue else 1,
            "batch_pixels": plan.batch_pixels if self.batching else 1,
            "half": self.half,
            "channels_last": self.channels_last,
            "graphs": self.graphs,
        }


SWITCHES = tuple(f.name for f in dataclasses.fields(GpuSwitches))


@dataclass
class GpuBench:
    """What all parts share."""

    plan: GpuPlan
    make_driver: Callable[[], Driver]
    module: nn.Module
    pictures: list[Named]
    off: frozenset[str] = frozenset()
    deadline: float = field(default_factory=lambda: time.monotonic() + 1e9)

    def __post_init__(self) -> None:
        self.bundle = module_bundle(VOC_CLASSES, InputSpec(), stride=8, name="resnet38-random")

    @property
    def best(self) -> GpuSwitches:
        """Everything that is not switched off; graphs only in their own row, where they may cost more."""
        return GpuSwitches(**{name: name not in self.off and name != "graphs" for name in SWITCHES})

    def engine(
        self, switches: GpuSwitches, network: tuple[nn.Module, Bundle] | None = None
    ) -> tuple[Engine, WaitingDriver]:
        """The engine over `network` (default: the random one)."""
        module, bundle = network or (self.module, self.bundle)
        driver = WaitingDriver(self.make_driver())
        options = {**switches.options(self.plan), "budget": self.plan.budget}
        if self.plan.device == "cpu":
            options["enqueue"] = driver.enqueue
        backend = torch_cuda_backend(module, bundle, driver, self.plan.device, **options)
        return Engine(bundle, backend), driver

    def changed(self, **changes: Any) -> GpuBench:
        """The same with another plan."""
        return dataclasses.replace(self, plan=dataclasses.replace(self.plan, **changes))

    def run(self, switches: GpuSwitches, name: str, mode: Mode) -> dict[str, Any]:
        """Images a second and what goes with it: cold, after one picture that loads what is loaded once, and warm,
        the same pictures again. name: a recipe's, with `, ladder` for its views on the ladder."""
        plain, _, ladder = name.partition(", ")
        chosen = recipe(plain, ladder=True) if ladder else recipe(plain)
        engine, driver = self.engine(switches)
        with engine:
            list(engine.stream(self.pictures[:1], chosen, mode))
            cold = time.perf_counter()
            list(engine.stream(self.pictures, chosen, mode))
            driver.waited, began = 0.0, time.perf_counter()
            results = list(engine.stream(self.pictures, chosen, mode))
            seconds = time.perf_counter() - began
            failed = [str(r.error) for r in results if r.error is not None]
            backend: Any = engine.backend
            stats: Any = engine.scheduler.stats if engine.scheduler else None
            return {
                "recipe": name,
                "mode": mode,
                "images_per_second": len(results) / seconds,
                "cold_images_per_second": len(results) / (began - cold),
                "distinct_batches": len(backend.runner.prepared),
                "network_pixels_per_image": stats.pixels / len(results),
                "tiles": stats.tiles,
                "iterations": stats.iterations,
                "batches": stats.batches,
                "views_per_batch": stats.views / max(1, stats.batches),
                "halvings": stats.halvings,
                "host_seconds_per_tile": (seconds - driver.waited) / max(1, stats.tiles),
                "memory_peak": backend.pool.stats.peak,
                "memory_used": backend.pool.stats.peak_used,
                "memory_budget": backend.pool.budget,
                "failed": failed,
            }


def synthetic(plan: GpuPlan) -> list[Named]:
    """Pictures of VOC's sizes with smooth colours, so that they pack and resize as photos do."""
    rng = np.random.default_rng(0)
    out = []
    for n, size, classes in zip(
        range(plan.images), itertools.cycle(plan.sizes), itertools.cycle(LABELS), strict=False
    ):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        pixels = np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        out.append((f"p{n:03}", np.ascontiguousarray(pixels), classes))
    return out


def photos(plan: GpuPlan, voc: Path, split: str, labels: str | None) -> list[Named]:
    """The split's first pictures; without labels, classes in VOC's proportions."""
    items = voc_source(voc, split)[: plan.images]
    table = load_labels(labels, list(VOC_CLASSES), voc_root=voc) if labels else None
    made_up = itertools.cycle(LABELS)
    return [
        (item.id, read_image(item.path), list(table.lookup(item.id)) if table else next(made_up))
        for item in items
    ]


EMULATED = "tests.cuda_emulator.driver:EmulatedDriver"
"""The tests' device, for a dry run from the root of a checkout."""


def pick_driver(name: str) -> Callable[[], Driver]:
    """What makes the device: `cuda` (pycuda), or MODULE:NAME of a class with the driver's protocol.

    Raises BackendError where there is no such thing.
    """
    if name == "cuda":
        from infercam.engine.device.cuda import CudaDriver

        return CudaDriver
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[], Driver] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as e:
        raise BackendError(
            f"--driver {name}: {e}; give cuda or MODULE:NAME (--dry-run needs a checkout's root to run in)"
        ) from None
    return found


def random_network(plan: GpuPlan) -> nn.Module:
    torch.manual_seed(0)
    return ResNet38(len(VOC_CLASSES), widths=plan.widths).eval().requires_grad_(False)
