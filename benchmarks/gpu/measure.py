"""The GPU engine, measured: one command, under 4 minutes on a large GPU, results as JSON, each as soon as it is had.

    python -m infercam.benchmarks.gpu                       # ResNet-38 with random weights, sizes as in VOC
    python -m infercam.benchmarks.gpu --voc ROOT            # the same on real photos
    python -m infercam.benchmarks.gpu --voc ROOT --labels FILE --bundle BUNDLE --model model.onnx
                                                            # also: do the maps agree with the CPU engine's?
    python -m infercam.benchmarks.gpu --dry-run             # everything once, tiny, on the emulated device

Needs PyTorch with CUDA, nvcc or NVRTC, and pycuda or CuPy. What is measured:

- with --bundle: ONNX Runtime CUDA, the engine's own runner over that bundle: cold, warm, and with all shapes that
were met prepared first; how many sessions that took and how long; - the kernels: bytes moved over time against a
device-to-device copy, and each against its twin; - the plain PyTorch loop (pytorch_loop.py) on the GPU, baseline
and whole method; - the waterfall: the engine over the same module, one saving after the other (`--off` leaves some
out for good); - the arithmetic floor, from the half-precision matrix rate measured here (engine/method/README.md
§8); - how busy the GPU is, what the host does per tile, that the memory budget holds and batches are halved.

What matters most comes first, and the file is written anew after every part: a run that is stopped keeps what it had.
The engine's rows are measured twice: cold, every (views, height, width) prepared on the way, and warm, all known.

The loop reads and writes files, as the released code does; the engine has its pictures in memory and drops its maps.
A part that fails or finds no time is recorded as such, and the rest goes on.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import nn

from infercam.benchmarks.common import RESULTS, machine, write_result
from infercam.benchmarks.gpu.kernels import KernelClock, ProfilerClock, WallClock, measure_kernels
from infercam.benchmarks.gpu.ort_cuda import ort_cuda
from infercam.benchmarks.gpu.profile import busy_share, copy_rate, matmul_rate
from infercam.benchmarks.gpu.rig import (
    DRY,
    EMULATED,
    SWITCHES,
    GpuBench,
    GpuPlan,
    GpuSwitches,
    Named,
    photos,
    pick_driver,
    random_network,
    synthetic,
)
from infercam.benchmarks.yardsticks import pytorch_loop
from infercam.engine.api import Engine
from infercam.engine.backends.device_limits import BATCH_PIXELS
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError
from infercam.engine.device.driver import Driver
from infercam.engine.method.recipe import Mode

console = Console(stderr=True, highlight=False)
FLOP_PER_PIXEL = 753e9 / (500 * 375)
"""Of ResNet-38 (engine/method/README.md §8)."""
WITH_A_GOAL = (
    *("erase_half", "erase_words_half", "accumulate", "upsample", "unite"),
    *("resize_first", "resize_second"),
)
"""Kernels that should reach 0.7 of a copy's rate."""


# -- the parts -----------------------------------------------------------------------------------------------------
def kernels(bench: GpuBench) -> dict[str, Any]:
    """Every kernel at the commonest size."""
    cuda = bench.plan.device == "cuda"
    driver = bench.make_driver()
    rate = copy_rate(bench.plan.copy_bytes, bench.plan.device)
    clock: KernelClock = ProfilerClock() if cuda else WallClock(driver)
    rows = measure_kernels(driver, clock, bench.plan.tiles, bench.plan.sizes[0], rate)
    driver.close()
    return {"copy_bytes_per_second": rate, "tiles": bench.plan.tiles, "rows": rows}


def loop(bench: GpuBench) -> dict[str, Any]:
    """The plain PyTorch loop on the device, with the released code's own recipe."""
    listed = bench.pictures[: bench.plan.loop_images]
    module = bench.module.to(bench.plan.device)
    out: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            items = []
            for name, pixels, _ in listed:
                Image.fromarray(pixels).save(folder / f"{name}.png")
                items.append((name, folder / f"{name}.png"))
            labels = {name: classes for name, _, classes in listed}
            pytorch_loop.run(module, items[:1], labels, folder / "warm", "released", "baseline")
            for mode in ("baseline", "both"):
                took = pytorch_loop.run(module, items, labels, folder / mode, "released", mode)
                out[mode] = {
                    "images_per_second": 1 / took["seconds_per_image"],
                    "network_pixels_per_image": took["network_pixels"] / took["images"],
                    "stages": took["stages"],
                }
    finally:
        bench.module.to("cpu")
    return out


def waterfall(bench: GpuBench) -> list[dict[str, Any]]:
    """The whole method (`released`), each row with one saving more than the row above it."""
    rows = []
    on: dict[str, bool] = {}
    for added in ("", *SWITCHES):
        if added in bench.off:
            continue
        if added:
            on[added] = True
        row = bench.run(GpuSwitches(**on), "released", "both")
        rows.append({"added": added or "on the device, view by view", **row})
        console.print(f"  {rows[-1]['added']}: {row['images_per_second']:.2f} images a second")
    return rows


def final(bench: GpuBench) -> dict[str, Any]:
    """The goals' rows with all savings: plain CAM, whole method, `fast`."""
    runs: tuple[tuple[str, str, Mode], ...] = (
        ("baseline", "released", "baseline"),
        ("fast", "fast", "both"),
        ("whole method", "released, ladder", "both"),
        ("whole method, exact sizes", "released", "both"),
    )
    out = {}
    for name, recipe, mode in runs:
        out[name] = row = bench.run(bench.best, recipe, mode)
        console.print(
            f"  {name}: {row['images_per_second']:.2f} images/s, cold {row['cold_images_per_second']:.2f}"
        )
    return out


def floor(bench: GpuBench) -> dict[str, Any]:
    """What a GPU that did nothing but the network's arithmetic would need a network pixel."""
    rate = matmul_rate(bench.plan.matmul, bench.plan.device)
    return {"half_flop_per_second": rate, "network_pixels_per_second": rate / FLOP_PER_PIXEL}


def busy(bench: GpuBench) -> dict[str, Any]:
    """From a profile of the whole method."""
    if bench.plan.device != "cuda":
        return {"not measured": "no GPU"}
    engine, _ = bench.engine(bench.best)
    with engine:
        list(engine.stream(bench.pictures[:1], "released"))
        return busy_share(lambda: list(engine.stream(bench.pictures[:16], "released")))


def memory(bench: GpuBench) -> dict[str, Any]:
    """A budget little above what one image needs is kept; PyTorch short of memory has its batches halved."""
    keys = ("images_per_second", "memory_peak", "memory_budget", "halvings", "failed")
    largest = max(bench.pictures, key=lambda picture: picture[1].size)
    alone = dataclasses.replace(bench, pictures=[largest])
    needed = alone.run(dataclasses.replace(bench.best, batching=False), "released", "both")["memory_used"]
    tight = bench.changed(budget=int(1.25 * needed), batch_pixels=BATCH_PIXELS)
    row = tight.run(bench.best, "released", "both")
    out: dict[str, Any] = {"one_image": needed, "small_budget": {k: row[k] for k in keys}}
    if bench.plan.device == "cuda":
        with _little_memory(bench):
            row = bench.run(bench.best, "released", "baseline")
        out["little_memory_for_pytorch"] = {k: row[k] for k in keys}
    return out


@contextmanager
def _little_memory(bench: GpuBench) -> Iterator[None]:
    """PyTorch may have its weights and a third of what the batches took beside them."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    bench.run(bench.best, "released", "baseline")
    weights = sum(p.numel() * p.element_size() for p in bench.module.parameters())
    allowed = weights + (torch.cuda.max_memory_reserved() - weights) / 3
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.mem_get_info()[1])
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def agreement(bench: GpuBench, module: nn.Module, bundle: Bundle, items: Sequence[Named]) -> dict[str, Any]:
    """Maps of real photos against the CPU engine's: largest difference, IoU where both reach 0.3."""
    out: dict[str, Any] = {"images": len(items)}
    with Engine.load(bundle, "cpu") as cpu:
        expected = {r.id: r.maps for r in cpu.stream(items, "released") if r.error is None}
    for precision, half in (("fp32", False), ("fp16", True)):
        engine, _ = bench.engine(dataclasses.replace(bench.best, half=half), (module, bundle))
        with engine, _exact_convolutions():
            got = {r.id: r.maps for r in engine.stream(items, "released") if r.error is None}
        pairs = [(got[name], maps) for name, maps in expected.items() if name in got]
        differences = [float(np.abs(a - b).max()) for a, b in pairs]
        common = sum(int(((a >= 0.3) & (b >= 0.3)).sum()) for a, b in pairs)
        either = sum(int(((a >= 0.3) | (b >= 0.3)).sum()) for a, b in pairs)
        out[precision] = {
            "compared": len(pairs),
            "largest_difference": max(differences, default=None),
            "median_difference": float(np.median(differences)) if differences else None,
            "iou_at_0.3": common / either if either else None,
        }
    return out


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """fp32 is fp32 within: no TF32 in convolutions."""
    was = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = was


def goals(parts: dict[str, Any]) -> dict[str, Any]:
    """The figures that the goals are about; a part that was not measured leaves its goals out."""
    out: dict[str, Any] = {}
    final_rows, loop_rows, best = parts.get("final", {}), parts.get("loop", {}), parts.get("floor", {})
    whole, plain = loop_rows.get("both"), loop_rows.get("baseline")
    if "whole method" in final_rows and whole:
        rate = final_rows["whole method"]["images_per_second"]
        out["whole method over the PyTorch loop's (goal 15)"] = rate / whole["images_per_second"]
    if "fast" in final_rows and plain:
        rate = final_rows["fast"]["images_per_second"]
        out["fast over the PyTorch loop's plain CAM (goal 1)"] = rate / plain["images_per_second"]
    if "network_pixels_per_second" in best:
        for name, row in final_rows.items():
            if isinstance(row, dict) and "images_per_second" in row:
                pixels = row["images_per_second"] * row["network_pixels_per_image"]
                share = pixels / best["network_pixels_per_second"]
                out[f"{name}: share of the floor's rate (goal 0.5)"] = share
    if "busy_share" in parts.get("busy", {}):
        out["GPU busy (goal 0.9)"] = parts["busy"]["busy_share"]
    for row in parts.get("kernels", {}).get("rows", []):
        if row["share_of_copy"] is not None and row["kernel"] in WITH_A_GOAL:
            out[f"{row['call']}: {row['kernel']} over a copy's rate (goal 0.7)"] = row["share_of_copy"]
    return out


# -- the command ---------------------------------------------------------------------------------------------------
def measure(
    bench: GpuBench,
    more: dict[str, Callable[[GpuBench], Any]] | None = None,
    keep: Callable[[dict[str, Any]], object] = lambda so_far: None,
) -> dict[str, Any]:
    """All parts, in the order of their worth; what fails or comes too late says so.

    keep: gets what was found so far, after each part.
    """
    parts: dict[str, Callable[[GpuBench], Any]] = {
        "floor": floor,
        "final": final,
        **(more or {}),
        "kernels": kernels,
        "loop": loop,
        "busy": busy,
        "memory": memory,
        "waterfall": waterfall,
    }
    out: dict[str, Any] = {}
    for name, part in parts.items():
        if time.monotonic() > bench.deadline:
            out[name] = {"not measured": "out of time"}
            continue
        began = time.monotonic()
        out[name] = attempt(part, bench)
        if bench.plan.device == "cuda":
            torch.cuda.empty_cache()
        console.print(f"{name}: {time.monotonic() - began:.0f} s {_short(out[name])}")
        keep(_with_goals(out))
    return _with_goals(out)


def _with_goals(parts: dict[str, Any]) -> dict[str, Any]:
    return {**parts, "goals": goals({k: v for k, v in parts.items() if isinstance(v, dict)})}


def attempt(part: Callable[[GpuBench], Any], bench: GpuBench) -> Any:
    """The part's findings. That it failed is one, too: the other parts are still worth having."""
    try:
        return part(bench)
    except Exception as e:
        return {"error": f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"}


def _short(result: Any) -> str:
    if isinstance(result, dict):
        return next((f"({k}: {result[k]})" for k in ("error", "not measured") if k in result), "")
    return ""


def main(
    voc: Annotated[Path | None, typer.Option(help="VOC tree with photos (default: made-up pictures)")] = None,
    split: Annotated[str, typer.Option(help="split of the VOC tree")] = "val",
    labels: Annotated[str | None, typer.Option(help="label file, or voc-xml")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="a bundle for ort-cuda; with --model: are its maps the same?")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="the same classifier as ONNX or a checkpoint")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="pictures of each measurement")] = None,
    driver: Annotated[str | None, typer.Option(help="cuda (pycuda; default), or MODULE:NAME of one")] = None,
    off: Annotated[str, typer.Option(help=f"leave out: {', '.join(SWITCHES)}; separated by commas")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="once, tiny, on the emulated device")] = False,
    name: Annotated[str | None, typer.Option(help="default: gpu, or gpu-dry-run")] = None,
    results: Annotated[Path, typer.Option(help="folder of NAME.json")] = RESULTS,
) -> None:
    """Measure, print the goals' figures, write NAME.json."""
    without = frozenset(s for s in off.split(",") if s)
    unknown = sorted(without - set(SWITCHES))
    if unknown:
        raise BackendError(f"--off: no {', '.join(unknown)}; there are: {', '.join(SWITCHES)}")
    plan = DRY if dry_run else GpuPlan()
    plan = dataclasses.replace(plan, images=images or plan.images)
    make_driver = pick_driver(driver or (EMULATED if dry_run else "cuda"))
    described = _describe(make_driver)
    pictures = photos(plan, voc, split, labels) if voc else synthetic(plan)
    bench = GpuBench(plan, make_driver, random_network(plan), pictures, without)
    bench.deadline = time.monotonic() + 60 * plan.minutes - 60  # what has begun by then still ends in time
    more: dict[str, Callable[[GpuBench], Any]] = {}
    if bundle is not None:
        own = Bundle.load(bundle)
        more["ort-cuda"] = lambda b: ort_cuda(b, own)
    if bundle is not None and model is not None:
        loaded, classifier = Bundle.load(bundle), pytorch_loop.load_classifier("mobilenetv2", model)
        more["agreement"] = lambda b: agreement(b, classifier.module, loaded, pictures[:20])
    record = {
        "machine": {**machine(), "gpu": described.get("gpu", "none; emulated: the times mean nothing")},
        "device": described,
        "dry_run": dry_run,
        "plan": dataclasses.asdict(plan),
        "off": sorted(without),
        "not measured here": "best mIoU: infercam run --backend …, then infercam eval, on both backends",
    }

    def keep(parts: dict[str, Any]) -> Path:
        return write_result(name or ("gpu-dry-run" if dry_run else "gpu"), {**record, **parts}, results)

    measured = measure(bench, more, keep)
    _print(measured["goals"], "dry run: these figures mean nothing" if dry_run else "against the goals")
    console.print(f"-> {keep(measured)}")


def _describe(make_driver: Callable[[], Driver]) -> dict[str, Any]:
    device = make_driver()
    described = device.describe()
    device.close()
    cudnn: Any = torch.backends.cudnn
    return {**described, "cuda_of_torch": torch.version.cuda, "cudnn": cudnn.version()}


def _print(figures: dict[str, float], title: str) -> None:
    table = Table(title=title)
    table.add_column("")
    table.add_column("measured", justify="right")
    for goal, value in figures.items():
        table.add_row(goal, f"{value:.3g}")
    Console().print(table)
