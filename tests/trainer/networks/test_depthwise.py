"""Depthwise convolutions under autocast: values and gradients of the plain ones, over odd shapes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from infercam.export.archs.mobilenetv2 import Conv
from infercam.trainer.networks.backbones import build_backbone
from infercam.trainer.networks.depthwise import Depthwise, undilated

sides = st.integers(1, 19)


def _gradients(conv: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = conv(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).sin().reshape(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [x, *conv.parameters()])]


@given(sides, sides, st.integers(1, 5), st.sampled_from([2, 3, 4]), st.integers(0, 2**31 - 1))
def test_a_dilated_convolution_is_undilated_ones_on_its_grids(
    height: int, width: int, channels: int, dilation: int, seed: int
) -> None:
    torch.manual_seed(seed)
    plain = torch.nn.Conv2d(channels, channels, 3, 1, dilation, dilation, channels).double()
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    ours = undilated(x, plain.weight, plain.bias, dilation)
    assert ours.shape == x.shape
    torch.testing.assert_close(ours, plain(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["same", "after", "symmetric"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("size", [(9, 12), (8, 7)])
def test_under_autocast_the_sums_are_the_plain_ones(
    padding: str, stride: int, dilation: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    own = Depthwise(6, 6, 3, stride=stride, dilation=dilation, groups=6, padding=padding)
    plain = Conv(6, 6, 3, stride=stride, dilation=dilation, groups=6, padding=padding)
    plain.load_state_dict(own.state_dict())
    x = torch.randn(2, 6, *size)
    expected = _gradients(plain, x)
    assert all(torch.equal(a, b) for a, b in zip(_gradients(own, x), expected, strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _gradients(own, x.bfloat16())
    assert found[0].dtype == torch.bfloat16
    for ours, exact in zip(found, expected, strict=True):  # 8 bits of mantissa
        torch.testing.assert_close(ours.float(), exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))


def test_the_trainer_trains_them_and_their_names_are_the_published_ones() -> None:
    net = build_backbone("mobilenetv2", output_stride=16).net
    own = [name for name, module in net.named_modules() if isinstance(module, Depthwise)]
    assert own == [f"blocks.{i}.dw" for i in range(17)]
