"""The engine's own ONNX Runtime runner, measured: cold, warm, and in a second engine that prepares first what the
first one met. On a CPU (a dry run) its times mean nothing."""

from __future__ import annotations

import tempfile
import time
from typing import Any

from infercam.benchmarks.gpu.rig import GpuBench, Named
from infercam.engine.api import Engine
from infercam.engine.backends.device import DeviceBackend
from infercam.engine.bundle import Bundle
from infercam.engine.common.environment import environment
from infercam.engine.method.recipe import Recipe, recipe
from infercam.engine.runners.ort_cuda import OrtRunner

RECIPES = (("fast", recipe("fast")), ("released, ladder", recipe("released", ladder=True)))


def ort_cuda(bench: GpuBench, bundle: Bundle) -> dict[str, Any]:
    """By recipe: images/s cold, warm, and prepared beforehand; sessions made and seconds that preparing took."""
    precision = "fp16" if "fp16" in bundle.manifest.graphs else "fp32"
    count = len(bundle.manifest.classes)
    pictures = [
        (name, pixels, sorted({c % count for c in classes})) for name, pixels, classes in bench.pictures
    ]
    out: dict[str, Any] = {"precision": precision}
    with tempfile.TemporaryDirectory() as folder:
        for name, chosen in RECIPES:
            engine, runner = _engine(bench, bundle, precision)
            with engine:
                row = {"cold_images_per_second": _rate(engine, pictures, chosen)}
                row |= {"sessions_made": runner.sessions.made, "kept": runner.keeps, "nhwc": runner.nhwc}
                row["images_per_second"] = _rate(engine, pictures, chosen)
                with environment("XDG_CACHE_HOME", folder):  # what other runs met is not known there
                    engine.remember()
            engine, runner = _engine(bench, bundle, precision)
            with engine:
                began = time.perf_counter()
                with environment("XDG_CACHE_HOME", folder):  # what other runs met is not known there
                    row["prepared"] = max((step.done for step in engine.preparing(chosen)), default=0)
                row["preparing_seconds"] = time.perf_counter() - began
                made = runner.sessions.made
                row["prepared_images_per_second"] = _rate(engine, pictures, chosen)
                row["sessions_made_after_preparing"] = runner.sessions.made - made
            out[name] = row
    return out


def _engine(bench: GpuBench, bundle: Bundle, precision: str) -> tuple[Engine, OrtRunner]:
    driver, plan = bench.make_driver(), bench.plan
    runner = OrtRunner(bundle, driver, precision, provider="cuda" if plan.device == "cuda" else "cpu")
    return Engine(bundle, DeviceBackend(bundle, driver, runner, plan.budget, plan.batch_pixels)), runner


def _rate(engine: Engine, pictures: list[Named], chosen: Recipe) -> float:
    """Images a second; raises the first error."""
    began = time.perf_counter()
    for result in engine.stream(pictures, chosen):
        if result.error is not None:
            raise result.error
    return len(pictures) / (time.perf_counter() - began)
