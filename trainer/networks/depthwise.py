"""MobileNetV2's depthwise convolutions as the CPU trains them fastest in bfloat16.

PyTorch 2.13's gradients of a strided or dilated depthwise convolution take several times as long in bfloat16 as in
float32. Milliseconds of a forward and a backward pass, 8 pictures, one thread, 2 cores Intel Xeon with AMX:

    channels, side, stride, dilation    96, 129, 2, 1    144, 65, 2, 1    192, 33, 2, 1    960, 17, 1, 2
    bfloat16                                 239              87               44               214
    as here                                   57              17                6                28
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from infercam.export.archs.mobilenetv2 import Conv


class Depthwise(Conv):
    """`Conv`, computed otherwise under autocast on the CPU: a stride in float32, a dilation without one."""

    def forward(self, x: Tensor) -> Tensor:
        if not (x.is_cpu and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        if self.stride[0] > 1:
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float()).to(x.dtype)
        if self.dilation[0] > 1:
            return undilated(x, self.weight, self.bias, self.dilation[0])
        return super().forward(x)


def undilated(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """A depthwise convolution of that dilation that keeps the size, N×C×H×W, as one without on each of the
    dilation² grids that its taps never leave, stacked as a batch."""
    count, channels, height, width = x.shape
    x = F.pad(x, (0, -width % dilation, 0, -height % dilation))
    rows, columns = x.shape[2] // dilation, x.shape[3] // dilation
    # N, row, row's grid, column, column's grid, C: channels stay last, as oneDNN wants them
    x = x.permute(0, 2, 3, 1).reshape(count, rows, dilation, columns, dilation, channels)
    x = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
    x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=channels)
    x = x.permute(0, 2, 3, 1).reshape(count, dilation, dilation, rows, columns, channels)
    x = x.permute(0, 3, 1, 4, 2, 5).reshape(count, rows * dilation, columns * dilation, channels)
    return x[:, :height, :width].permute(0, 3, 1, 2)
