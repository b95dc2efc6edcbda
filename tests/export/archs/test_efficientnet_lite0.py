"""EfficientNet-Lite0: both published layouts give what a network written out by their names gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F

from infercam.engine.common.errors import ExportError
from infercam.export.archs import load_arch
from infercam.export.archs.efficientnet_lite0 import EfficientNetLite0

# expansion, kernel, stride of the first, in, out, blocks: table 1 of the EfficientNet paper
STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
NORM = ("weight", "bias", "running_mean", "running_var")


class ByName:
    """The network as its publishers wrote it: every convolution and BatchNorm by name, made when first asked for."""

    def __init__(self, timm: bool) -> None:
        self.timm, self.state = timm, {"classifier.weight" if timm else "_fc.weight": torch.randn(20, 1280)}

    def __call__(self, x: Any) -> Any:
        x = self._layer(x, *(("conv_stem", "bn1") if self.timm else ("_conv_stem", "_bn0")), 32, 3, 2)
        number = 0
        for s, (expansion, kernel, stride, cin, cout, blocks) in enumerate(STAGES):
            for i in range(blocks):
                own = stride if i == 0 else 1
                y = self._block(x, s, i, number, expansion, kernel, own, cout)
                x = x + y if i else y
                number += 1
                assert x.shape[1] == cout and (i or cin)
        x = self._layer(x, *(("conv_head", "bn2") if self.timm else ("_conv_head", "_bn1")), 1280)
        return x.mean((2, 3)) @ next(iter(self.state.values())).T

    def _block(
        self, x: Any, s: int, i: int, number: int, expansion: int, kernel: int, stride: int, cout: int
    ) -> Any:
        wide = x.shape[1] * expansion
        steps = [("expand", "pw", wide, 1, 1, 1)] if expansion > 1 else []
        last = "pwl" if expansion > 1 else "pw"
        steps += [("depthwise", "dw", wide, kernel, stride, wide), ("project", last, cout, 1, 1, 1)]
        for n, (long, short, channels, k, step, groups) in enumerate(steps, 3 - len(steps)):
            if self.timm:
                names = (f"blocks.{s}.{i}.conv_{short}", f"blocks.{s}.{i}.bn{n + 1 - (3 - len(steps))}")
            else:
                names = (f"_blocks.{number}._{long}_conv", f"_blocks.{number}._bn{n}")
            x = self._layer(x, *names, channels, k, step, groups, active=long != "project")
        return x

    def _layer(
        self,
        x: Any,
        conv: str,
        norm: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> Any:
        if f"{conv}.weight" not in self.state:
            shape = (channels, x.shape[1] // groups, kernel, kernel)
            self.state[f"{conv}.weight"] = torch.randn(shape) / np.sqrt(np.prod(shape[1:]) / 2)
            values = (torch.rand(channels) + 0.5, torch.randn(channels) / 4, torch.randn(channels) / 4)
            self.state |= dict(
                zip((f"{norm}.{k}" for k in NORM), (*values, torch.rand(channels) + 0.5), strict=True)
            )
            self.state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
        sides = []  # TensorFlow's SAME
        for side in reversed(x.shape[2:]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            sides += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, sides), self.state[f"{conv}.weight"], stride=stride, groups=groups)
        weight, bias, mean, var = (self.state[f"{norm}.{k}"] for k in NORM)
        x = F.batch_norm(x, mean, var, weight, bias, eps=1e-3)
        return F.relu6(x) if active else x


def _saved(tmp_path: Path, state: dict[str, Any]) -> Path:
    torch.save(state, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize("timm", [False, True])
def test_published_layouts(tmp_path: Path, timm: bool) -> None:
    torch.manual_seed(0)
    theirs = ByName(timm)
    theirs(torch.randn(1, 3, 64, 64))  # makes the weights
    ours = load_arch("efficientnet_lite0", _saved(tmp_path, theirs.state), output_stride=32)
    assert ours.input.scale == 1 / 128 and ours.input.mean == (127 / 128,) * 3
    for size in ((64, 96), (65, 83), (33, 31)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            want, got = theirs(x), ours.module.eval()(x)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def test_what_classify_writes_is_read_again(tmp_path: Path) -> None:
    net = EfficientNetLite0(20)
    loaded = load_arch("efficientnet_lite0", _saved(tmp_path, net.state_dict()))
    assert loaded.module.state_dict().keys() == net.state_dict().keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("_bn1.running_var"), r"2 missing: head\.weight, head\.bias"),
        (lambda s: s.update({"_blocks.16.w": torch.ones(1)}), r"1 unexpected: _blocks\.16\.w$"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    theirs = ByName(timm=False)
    theirs(torch.randn(1, 3, 32, 32))
    change(theirs.state)
    with pytest.raises(ExportError, match=f"does not fit efficientnet_lite0: .*{message}"):
        load_arch("efficientnet_lite0", _saved(tmp_path, theirs.state))


@pytest.mark.shared
def test_the_real_one_equals_its_onnx_file(shared: Path, tmp_path: Path) -> None:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    file = shared / "models" / "efficientnet_lite0_imagenet.onnx"
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(file).graph.initializer}
    net = EfficientNetLite0(1000, bias=True)
    convs = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert convs.pop(0) == "stem" and convs.pop() == "head"
    state = {}
    for i, name in enumerate(["stem", *convs, "head"], 1):
        state[f"{name}.weight"] = torch.from_numpy(weights[f"c{i}.w"].copy())
        state[f"{name}.bias"] = torch.from_numpy(weights[f"c{i}.b"].copy())
    state["classifier.weight"] = torch.from_numpy(weights["fc.w"].copy())
    state["classifier.bias"] = torch.from_numpy(weights["fc.b"].copy())
    classes = [str(i) for i in range(1000)]
    ours = load_arch(
        "efficientnet_lite0", _saved(tmp_path, state), classes=classes, output_stride=32
    ).module.eval()
    session = ort.InferenceSession(str(file))
    for size in ((224, 224), (65, 97)):
        x = np.random.default_rng(0).standard_normal((1, 3, *size)).astype(np.float32)
        with torch.no_grad():
            got = ours(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(got, session.run(None, {"image": x})[0], atol=1e-4)
