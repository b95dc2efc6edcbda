"""Vision transformers from PyTorch: one that interpolates its positions by itself, one that takes a single size."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from infercam.export import from_torch

D, PATCH, SIDE = 16, 8, 32


class Transformer(nn.Module):
    def __init__(self, interpolates: bool) -> None:
        super().__init__()
        self.interpolates = interpolates
        self.patch = nn.Conv2d(3, D, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, D))
        self.position = nn.Parameter(torch.randn(1, D, SIDE // PATCH, SIDE // PATCH))
        self.qkv, self.out, self.norm = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.LayerNorm(D)
        self.head = nn.Linear(D, 3)

    def forward(self, image):
        x = self.patch(image)
        position = self.position
        if self.interpolates:
            position = nn.functional.interpolate(
                position, size=x.shape[2:], mode="bilinear", align_corners=False
            )
        else:
            assert image.shape[2] == SIDE and image.shape[3] == SIDE, "one size only"
        x = (x + position).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = x + self.out((q @ k.transpose(1, 2) / D**0.5).softmax(-1) @ v)
        return self.head(self.norm(x)[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("interpolates", [True, False])
def test_positions_of_a_module(tmp_path, interpolates):
    """Its own interpolation is kept and compared at other sizes; without one that of the graph cannot be."""
    torch.manual_seed(0)
    module = Transformer(interpolates)
    bundle = from_torch(module, tmp_path / "b", classes=["a", "b", "c"], example_size=(SIDE, SIDE))
    m = bundle.manifest
    assert (m.method, m.decomposition, m.stride) == ("patch-tokens", "none", PATCH)
    compared = [i for i in m.verification.inputs if "not compared" not in i]
    if interpolates:
        assert m.input.fixed_size is None and m.input.multiple == PATCH
        assert len(compared) == len(m.verification.inputs)
        assert not any("interpolated" in n for n in m.source["notes"])
    else:
        assert compared and all(f"{SIDE}x{SIDE}" in i for i in compared)
