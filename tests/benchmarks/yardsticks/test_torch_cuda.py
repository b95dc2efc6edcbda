"""PyTorch behind the runner protocol, on the emulated device: the same pointers, the CPU's memory."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")


from torch import nn

from infercam.benchmarks.yardsticks.torch_cuda import module_bundle, torch_cuda_backend
from infercam.engine.api import Engine
from infercam.engine.bundle import InputSpec
from infercam.engine.method import reference
from infercam.engine.method.recipe import RECIPES
from infercam.export.archs.resnet38 import ResNet38
from tests.cuda_emulator.driver import EmulatedDriver
from tests.engine import tiny

SPEC = InputSpec()
WIDTHS = (4, 6, 6, 8, 8, 12, 16)


class Plain(nn.Module):
    """Has forward_cam and no `features`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, 2, 1)

    def forward_cam(self, x):
        return torch.relu(self.conv(x))

    def forward(self, x):
        return self.conv(x).mean((2, 3))


def network() -> ResNet38:
    torch.manual_seed(3)
    return ResNet38(5, widths=WIDTHS).eval()


def engine(module: nn.Module, stride: int, **options) -> Engine:
    driver = EmulatedDriver(deferred=True, seed=1)
    bundle = module_bundle(tiny.CLASSES, SPEC, stride)
    options = {"half": False, "enqueue": driver.enqueue, "budget": 64 << 20, **options}
    return Engine(bundle, torch_cuda_backend(module, bundle, driver, "cpu", **options))


def expected(module: nn.Module, pixels: np.ndarray, classes: list[int], mode: str) -> np.ndarray:
    def respond(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module.forward_cam(torch.from_numpy(x)).numpy()

    return reference.response_maps(pixels, classes, RECIPES["corrected"], mode, respond, SPEC)


@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_are_the_module_s_own(channels_last: bool) -> None:
    module, pixels = network(), tiny.picture(18, 26, 1)
    with engine(module, 8, channels_last=channels_last) as torch_engine:
        for mode in ("baseline", "split"):
            got = torch_engine.maps(pixels, [0, 3], "corrected", mode)
            assert np.abs(got - expected(module, pixels, [0, 3], mode)).max() < 1e-4, mode


def test_half_weights_with_a_float32_response() -> None:
    module, pixels = network(), tiny.picture(18, 26, 2)
    with engine(module, 8, half=True) as torch_engine:
        assert torch_engine.backend.runner.input_type == "float16"
        got = torch_engine.maps(pixels, [1], "corrected", "baseline")
        assert torch_engine.backend.describe()["runner"]["precision"] == "fp16"
    off = np.abs(got - expected(module, pixels, [1], "baseline")).max()
    assert 0 < off < 0.02
    assert next(module.parameters()).dtype == torch.float32, "the caller's module is not touched"


def test_a_module_without_features() -> None:
    torch.manual_seed(1)
    module, pixels = Plain().eval(), tiny.picture(21, 34)
    with engine(module, 2) as torch_engine:
        got = torch_engine.maps(pixels, [2], "corrected", "split")
        assert np.abs(got - expected(module, pixels, [2], "split")).max() < 1e-4
        scores = torch_engine.scores(pixels)
        x = torch.from_numpy(reference.normalise(pixels, SPEC))[None]
        np.testing.assert_allclose(scores, module(x)[0].detach(), atol=1e-5)


def test_scores_are_the_classifier_s() -> None:
    module, pixels = network(), tiny.picture(33, 45)
    with engine(module, 8) as torch_engine, torch.inference_mode():
        want = module(torch.from_numpy(reference.normalise(pixels, SPEC))[None])[0].numpy()
        np.testing.assert_allclose(torch_engine.scores(pixels), want, atol=1e-4)


def test_response_shapes_cost_no_inference() -> None:
    with engine(network(), 8) as torch_engine:
        runner = torch_engine.backend.runner
        for size in ((1, 1), (17, 40), (500, 375), (4000, 3000)):
            shape = runner.response_shape(*size)
            assert shape == (5, -(-size[0] // 8), -(-size[1] // 8))
