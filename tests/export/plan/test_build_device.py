"""The whole way on the emulated GPU: bundle, plan, runner, device backend, maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed, so nothing is built: pip install 'infercam[rtx]'"
)

from infercam.engine.api import Engine
from infercam.engine.backends.device import DeviceBackend
from infercam.engine.runners.plan import PlanOptions, Profile
from infercam.engine.runners.tensorrt import load_runner
from infercam.export.compare import Sample
from infercam.export.plan.build import BuildRequest, build_plan
from infercam.export.plan.profiles import ImageSize, choose_profiles, simulate
from tests.cuda_emulator.driver import EmulatedDriver
from tests.engine import tiny


@pytest.mark.parametrize(("recipe", "mode"), [("released", "both"), ("fast", "both"), ("paper", "split")])
def test_maps_by_a_plan_are_the_cpu_engines(tmp_path: Path, trt, monkeypatch, recipe, mode):
    monkeypatch.setenv("INFERCAM_PLANS", str(tmp_path / "plans"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = tiny.build(tmp_path / "bundle")
    pictures = [(f"p{i}", tiny.picture(30 + i, 41, i), [i % 5, (i + 2) % 5]) for i in range(3)]
    shapes = simulate(
        bundle, [ImageSize(n, *p.shape[:2], len(c)) for n, p, c in pictures], recipe, mode
    ).shapes
    profiles = [
        *choose_profiles(shapes, bundle.manifest, 3),
        Profile(smallest=(1, 1, 1), best=(1, 40, 40), largest=(2, 100, 100)),
    ]
    driver = trt.state.driver = EmulatedDriver(deferred=True, seed=1)
    samples = [Sample(*p) for p in pictures]
    build_plan(BuildRequest(bundle, "fp32", profiles, lambda: samples, PlanOptions(stripped=True)), driver)
    assert not (bundle.path / "plans").exists()
    backend = DeviceBackend(bundle, driver, load_runner(bundle, driver), budget=256 << 20)
    with Engine(bundle, backend) as device, Engine.load(bundle, "cpu") as cpu:
        got = {r.id: r.maps for r in device.stream(pictures, recipe, mode)}
        for name, pixels, classes in pictures:
            np.testing.assert_allclose(got[name], cpu.maps(pixels, classes, recipe, mode), atol=1e-5)
        assert device.backend.describe()["runner"]["precision"] == "fp32"
    assert max(run[0] for run in trt.state.runs) > 1
