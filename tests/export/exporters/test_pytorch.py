"""PyTorch's two exporters at every operator set they write, with and without constant folding: sizes are free."""

from __future__ import annotations

import warnings

import onnx
import pytest

from infercam.export import export_onnx

torch = pytest.importorskip("torch")
nn = torch.nn
slow = pytest.mark.slow
CLASSES = 5


def convolution(channels: int, out: int) -> object:
    return nn.Sequential(
        nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out), nn.Hardswish()
    )


class Gated(nn.Module):
    """Squeeze and excitation, a hidden layer after the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(3, 8), convolution(8, 12))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 12, 1), nn.Hardsigmoid())
        self.head = nn.Sequential(nn.Linear(12, 16), nn.Hardswish(), nn.Dropout(), nn.Linear(16, CLASSES))

    def forward(self, x):
        x = self.body(x)
        x = x * self.gate(x)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class Normed(nn.Module):
    """Channels last and first in turn, a chunk of the channels, a norm after the pooling (ConvNeXt and its kin)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 8)
        self.last, self.fc = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.norm(self.stem(x).permute(0, 2, 3, 1))
        a, b = self.up(x).chunk(2, dim=-1)
        x = (x + self.down(nn.functional.gelu(a) * b)).permute(0, 3, 1, 2)
        return self.fc(self.last(x.mean((-2, -1))))


class Tokens(nn.Module):
    """One block of attention, a mean over the tokens; no position table, so that any size runs."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 8, stride=8), nn.LayerNorm(16)
        self.qkv, self.out, self.fc = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return self.fc(self.norm(x).mean(1))


class Windows(nn.Module):
    """Attention-like mixing in windows of a padded, rolled map (Swin), a norm before the pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(16, 16)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = nn.functional.pad(x, (0, 0, 0, -w % 4, 0, -h % 4))
        rows, columns = y.shape[1] // 4, y.shape[2] // 4
        y = torch.roll(y, (-2, -2), (1, 2)).reshape(n, rows, 4, columns, 4, c)
        y = y.permute(0, 1, 3, 5, 2, 4).reshape(-1, c, 16)
        y = self.mix(y).reshape(n, rows, columns, c, 4, 4).permute(0, 1, 4, 2, 5, 3)
        y = torch.roll(y.reshape(n, rows * 4, columns * 4, c), (2, 2), (1, 2))[:, :h, :w]
        return self.fc(self.norm(x + y).permute(0, 3, 1, 2).mean((2, 3)))


def write(
    module, file, *, dynamo: bool, opset: int, folding: bool = True, free: bool = True, half: bool = False
):
    """The file that the exporter writes; of random weights, normalisations' statistics included."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*module.named_buffers(), *module.named_parameters()]:
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif value.ndim == 1:
                value.uniform_(-0.5, 1.5, generator=generator)
    module = module.eval().half() if half else module.eval()
    x = torch.randn(2, 3, 64, 64).to(torch.float16 if half else torch.float32)
    more: dict = {"dynamo": dynamo, "opset_version": opset}
    axes = {0: "N", 2: "H", 3: "W"}
    if dynamo:
        more |= {"dynamic_shapes": (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)} if free else {}
        more |= {"optimize": folding, "verbose": False}
    else:
        more |= {"dynamic_axes": {"image": axes, "scores": {0: "N"}}} if free else {}
        more |= {"do_constant_folding": folding}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, input_names=["image"], output_names=["scores"], **more)
    return file


QUICK = [
    (Gated, False, 11, True),
    (Gated, False, 20, False),
    (Normed, True, 18, True),
    (Tokens, False, 17, True),
]
FULL = [
    *(
        (m, False, o, f)
        for m in (Gated, Normed, Tokens, Windows)
        for o in range(11, 21)
        for f in (True, False)
    ),
    *(
        (m, True, o, f)
        for m in (Gated, Normed, Tokens, Windows)
        for o in range(18, 24)
        for f in (True, False)
    ),
]


def _id(value) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


@pytest.mark.parametrize(
    ("module", "dynamo", "opset", "folding"),
    [*QUICK, *(pytest.param(*c, marks=slow) for c in FULL if c not in QUICK)],
    ids=_id,
)
def test_free_sizes(tmp_path, module, dynamo, opset, folding):
    if module is Tokens and not dynamo and opset < 14:
        pytest.skip("PyTorch writes no attention there")
    file = write(module(), tmp_path / "m.onnx", dynamo=dynamo, opset=opset, folding=folding)
    assert max(o.version for o in onnx.load(file).opset_import if not o.domain) == opset
    bundle = export_onnx(file, tmp_path / "b")
    spec = bundle.manifest.input
    assert (spec.height, spec.width, spec.dynamic_batch) == (None, None, True), bundle.manifest.source[
        "notes"
    ]
    assert bundle.manifest.verification.max_source_error < 1e-5


@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=slow)])
@pytest.mark.parametrize(
    "module", [Normed, pytest.param(Gated, marks=slow), pytest.param(Tokens, marks=slow)]
)
def test_a_fixed_export_is_freed(tmp_path, module, dynamo):
    bundle = export_onnx(
        write(module(), tmp_path / "m.onnx", dynamo=dynamo, opset=18, free=False), tmp_path / "b"
    )
    spec = bundle.manifest.input
    assert (spec.height, spec.width, spec.dynamic_batch) == (None, None, True), bundle.manifest.source[
        "notes"
    ]
