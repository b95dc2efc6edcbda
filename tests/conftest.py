"""For all tests: no example of hypothesis fails because a busy machine was slow; a stand-in for TensorRT."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from hypothesis import settings

# A CI run says something of the change, not of the examples drawn; at a desk they are new ones every time.
settings.register_profile("infercam", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("infercam")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The fake `tensorrt`, on a HostDriver (`trt.state.driver`) where the CUDA driver answers."""
    from infercam.engine.device.probe import Gpu, Probe
    from tests import fake_tensorrt
    from tests.host_driver import HostDriver

    driver = HostDriver()
    found = Probe((13, 1), [Gpu(driver.gpu, driver.compute_capability, driver.budget)])
    monkeypatch.delenv("INFERCAM_PLANS", raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    for module in ("infercam.engine.runners.tensorrt", "infercam.export.plan.build"):
        monkeypatch.setattr(f"{module}.probe", lambda: found)
    monkeypatch.setattr(fake_tensorrt, "state", fake_tensorrt.State(driver=driver))
    monkeypatch.setattr(fake_tensorrt, "__version__", fake_tensorrt.__version__)
    yield fake_tensorrt
