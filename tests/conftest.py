"""For all tests: one thread for tiny work; no example of hypothesis fails because a busy machine was slow; a stand-in
for TensorRT."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# Before anything loads OpenMP, and for the processes that tests start. On layers as small as the tests' the threads
# wait for each other and burn their cores meanwhile: one took 38 s of CPU in place of 8.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from tests.host_driver import HostDriver

# A CI run says something of the change, not of the examples drawn; at a desk they are new ones every time.
settings.register_profile("infercam", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("infercam")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The fake `tensorrt`, on a HostDriver (`trt.state.driver`) where the CUDA driver answers."""
    from tests import fake_tensorrt
    from tests.host_driver import HostDriver

    return _in_place(monkeypatch, "tensorrt", fake_tensorrt, HostDriver())


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The fake `tensorrt_rtx`, likewise, on a card that it takes; what it compiles goes to a folder of the test."""
    from tests import fake_tensorrt_rtx
    from tests.host_driver import HostDriver

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    return _in_place(monkeypatch, "tensorrt_rtx", fake_tensorrt_rtx, HostDriver("RTX 4090", (8, 9)))


def _in_place(monkeypatch: pytest.MonkeyPatch, name: str, fake: ModuleType, driver: HostDriver) -> ModuleType:
    from infercam.engine.device.probe import Gpu, Probe
    from tests import fake_tensorrt

    found = Probe((13, 1), [Gpu(driver.gpu, driver.compute_capability, driver.budget)])
    monkeypatch.delenv("INFERCAM_PLANS", raising=False)
    monkeypatch.setitem(sys.modules, name, fake)
    for module in ("infercam.engine.runners.tensorrt", "infercam.export.plan.build"):
        monkeypatch.setattr(f"{module}.probe", lambda: found)
    monkeypatch.setattr(fake_tensorrt, "state", fake_tensorrt.State(driver=driver))
    monkeypatch.setattr(fake, "__version__", fake.__version__)
    return fake
