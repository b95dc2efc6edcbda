"""The whole method by plans on the emulated GPU: TensorRT-RTX's, and TensorRT's with CUDA graphs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from infercam.engine.api import Engine
from infercam.engine.backends.device import DeviceBackend
from infercam.engine.bundle import Bundle
from infercam.engine.device.driver import DeviceInfo
from infercam.engine.runners.options import RuntimeSwitches
from infercam.engine.runners.plan import Profile
from infercam.engine.runners.tensorrt import TensorRTRunner
from tests.cuda_emulator.driver import EmulatedDriver
from tests.engine import tiny
from tests.engine.runners.test_tensorrt import RTX, write_plan
from tests.fake_graphs import FakeCapture

ANY = Profile(smallest=(1, 1, 1), best=(4, 64, 64), largest=(64, 200, 200))
PICTURES = [(f"p{i}", tiny.picture(30 + i, 41, i), [i % 5, (i + 2) % 5]) for i in range(3)]


def check(bundle: Bundle, driver: EmulatedDriver, runner: TensorRTRunner, recipe: str) -> dict[str, Any]:
    """The maps are the CPU engine's, to 1e-5; what the runner said of itself."""
    backend = DeviceBackend(bundle, driver, runner, budget=256 << 20)
    with Engine(bundle, backend) as device, Engine.load(bundle, "cpu") as cpu:
        for result in device.stream(PICTURES, recipe):
            _, pixels, classes = next(p for p in PICTURES if p[0] == result.id)
            np.testing.assert_allclose(result.maps, cpu.maps(pixels, classes, recipe), atol=1e-5)
        said = device.backend.describe()["runner"]
    assert isinstance(said, dict)
    return said


@pytest.mark.parametrize("recipe", ["released", "fast"])
def test_maps_by_rtx_are_the_cpu_engines(
    recipe: str, tiny_bundle: Bundle, rtx: ModuleType, tmp_path: Path, monkeypatch
) -> None:
    driver = rtx.state.driver = EmulatedDriver(deferred=True, seed=1)
    card = DeviceInfo("RTX 4090", (8, 9), 1 << 30, 1 << 30, "13.1")
    monkeypatch.setattr(driver, "info", lambda: card._replace(free_memory=card.total_memory - driver.used))
    plan = write_plan(tiny_bundle, rtx, tmp_path / "p", profiles=[ANY], **RTX)
    for _ in range(2):
        said = check(tiny_bundle, driver, TensorRTRunner(plan, tiny_bundle, driver), recipe)
        assert said["runner"] == "tensorrt-rtx"
    assert len(rtx.state.compiled) == len(set(rtx.state.runs)), "the second run compiled nothing"


def test_maps_with_cuda_graphs_are_the_cpu_engines(
    tiny_bundle: Bundle, trt: ModuleType, tmp_path: Path
) -> None:
    driver = trt.state.driver = EmulatedDriver(deferred=True, seed=1)
    plan = write_plan(tiny_bundle, trt, tmp_path / "p", profiles=[ANY], gpu="emulated")
    capture = FakeCapture(trt)
    runner = TensorRTRunner(
        plan, tiny_bundle, driver, switches=RuntimeSwitches(cuda_graphs=True), capture=capture
    )
    assert check(tiny_bundle, driver, runner, "released")["cuda_graphs"] is True
    assert capture.log.count("launch") > len(set(trt.state.runs))
    assert capture.log.count("capture") == capture.log.count("close")
