"""AffinityNet: embedding, affinities against a dense loop, checkpoints of ours and of psa."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infercam.engine.common.errors import InfercamError, InputError
from infercam.export.archs.resnet38 import ResNet38
from infercam.trainer.affinity.affinitynet import STAGE, AffinityNet, edge_affinities, load_affinity
from infercam.trainer.loop.checkpoint import save_checkpoint
from infercam.trainer.networks.backbones import BACKBONES, build_backbone


def small(arch: str = "resnet38", width: int = 4, radius: int = 5) -> AffinityNet:
    torch.manual_seed(0)
    width = 64 if arch in ("mobilenetv2", "efficientnet_lite0") else width
    net = AffinityNet(build_backbone(arch, output_stride=8, width=width), radius).eval()
    with torch.no_grad():  # psa's gain of 4 on tiny random features leaves affinities of all sizes in (0, 1)
        net.f9.weight *= 2
    return net


@pytest.mark.parametrize("arch", BACKBONES)
def test_embedding_has_psas_shape(arch: str) -> None:
    net = small(arch)
    with torch.no_grad():
        g = net(torch.randn(2, 3, 40, 56))
    assert g.shape == (2, 448, 5, 7)
    assert g.min() >= -1  # ELU
    assert [layer.weight.shape[0] for layer in net.new_layers()] == [64, 128, 256, 448]


@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 5))
@settings(max_examples=12)
def test_affinities_are_those_of_a_dense_loop(height: int, width: int, radius: int) -> None:
    """Any size: the padded picture's embedding, every pair of cells closer than the radius, nothing else."""
    net = small(radius=radius)
    rng = np.random.default_rng(height * 100 + width)
    image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    got = edge_affinities(net, image)

    spec = net.backbone.input
    h, w = -(-height // 8), -(-width // 8)
    padded = np.zeros((h * 8, w * 8, 3), np.float32)
    padded[:height, :width] = (image * np.float32(spec.scale) - spec.mean) / spec.std
    with torch.no_grad():
        g = net(torch.from_numpy(padded.transpose(2, 0, 1).copy())[None])[0].numpy()
    dense = np.exp(-np.abs(g[:, :, :, None, None] - g[:, None, None]).mean(0))  # h, w, h, w
    want = np.zeros((len(net.offsets), h, w), np.float32)
    for y in range(h):
        for x in range(w):
            for y2 in range(h):
                for x2 in range(w):
                    dy, dx = y2 - y, x2 - x
                    if dy * dy + dx * dx < radius * radius and (dy, dx) > (0, 0):
                        want[net.offsets.index((dy, dx)), y, x] = dense[y, x, y2, x2]
    assert got.shape == want.shape and got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-6)


def test_first_layers_do_not_train() -> None:
    net = small().train()
    frozen = {n.split(".")[2] for n, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1a", "b2", "b2_1", "b2_2"}
    before = {n: p.clone() for n, p in net.named_parameters()}
    net(torch.randn(1, 3, 32, 32)).square().mean().backward()
    for name, p in net.named_parameters():
        assert (p.grad is None) == (not p.requires_grad), name
        assert torch.equal(p, before[name])


def test_only_output_stride_8_is_taken() -> None:
    with pytest.raises(ValueError, match="output stride 8"):
        AffinityNet(build_backbone("mobilenetv2", output_stride=16))


def psa_state(width: int = 4) -> dict[str, torch.Tensor]:
    """A state dict under psa's flat names, as `resnet38_aff.Net().state_dict()` has them."""
    widths = tuple(w * width // 64 for w in (64, 128, 256, 512, 1024, 2048, 4096))
    torch.manual_seed(3)
    state = {k: v for k, v in ResNet38(20, widths=widths).state_dict().items() if not k.startswith("fc8")}
    state["f8_3.weight"] = torch.randn(64, widths[3], 1, 1)
    state["f8_4.weight"] = torch.randn(128, widths[4], 1, 1)
    state["f8_5.weight"] = torch.randn(256, widths[6], 1, 1)
    state["f9.weight"] = torch.randn(448, 448, 1, 1) * 0.1
    return state


def test_psas_checkpoint_loads_and_computes_psas_forward(tmp_path: Path) -> None:
    state = psa_state()
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "aff.pth")
    net = load_affinity(tmp_path / "aff.pth")
    assert not net.training and net.backbone.arch == "resnet38"

    whole = ResNet38(20, widths=(4, 8, 16, 32, 64, 128, 256)).eval()
    whole.load_state_dict({k: v for k, v in state.items() if not k.startswith("f")}, strict=False)
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        y = whole.conv1a(x)
        for name in (
            "b2",
            "b2_1",
            "b2_2",
            "b3",
            "b3_1",
            "b3_2",
            "b4",
            "b4_1",
            "b4_2",
            "b4_3",
            "b4_4",
            "b4_5",
        ):
            y = whole.get_submodule(name)(y)
        conv4 = whole.b5.bn_branch2a(y).relu()
        y = whole.b5_2(whole.b5_1(whole.b5(y)))
        conv5 = whole.b6.bn_branch2a(y).relu()
        conv6 = whole.bn7(whole.b7(whole.b6(y))).relu()
        parts = [
            torch.nn.functional.elu(torch.nn.functional.conv2d(conv, state[f"{name}.weight"]))
            for conv, name in ((conv4, "f8_3"), (conv5, "f8_4"), (conv6, "f8_5"))
        ]
        want = torch.nn.functional.elu(torch.nn.functional.conv2d(torch.cat(parts, 1), state["f9.weight"]))
        torch.testing.assert_close(net(x), want)


@pytest.mark.parametrize("arch", ["resnet50", "mobilenetv2"])
def test_own_checkpoint_comes_back(arch: str, tmp_path: Path) -> None:
    net = small(arch, radius=4)
    save_checkpoint(tmp_path / "best.ckpt", STAGE, net.state_dict(), net.facts())
    again = load_affinity(tmp_path / "best.ckpt")
    image = np.random.default_rng(0).integers(0, 255, (37, 50, 3), dtype=np.uint8)
    assert again.offsets == net.offsets
    torch.testing.assert_close(edge_affinities(again, image), edge_affinities(net, image))


def test_other_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    net = small()
    classifier = {k: v for k, v in psa_state().items() if not k.startswith("f")}
    shortened = {k: v for k, v in psa_state().items() if not k.startswith("b7")}
    torch.save(classifier, tmp_path / "classifier.pth")
    torch.save(shortened, tmp_path / "shortened.pth")
    save_checkpoint(tmp_path / "segment.ckpt", "segment", net.state_dict(), net.facts())
    other = {**net.facts(), "backbone": small("resnet50").backbone.facts()}
    save_checkpoint(tmp_path / "arch.ckpt", STAGE, net.state_dict(), other)
    save_checkpoint(tmp_path / "facts.ckpt", STAGE, net.state_dict(), {"backbone": {"arch": "vgg"}})
    (tmp_path / "damaged.ckpt").write_bytes(b"PK\x03\x04 nothing")
    cases = {
        "classifier.pth": "not an AffinityNet, f8_3, f8_4, f8_5, f9 missing",
        "shortened.pth": "does not fit psa's AffinityNet.*missing: backbone.net.b7",
        "segment.ckpt": "a checkpoint of the stage 'segment', not 'affinity'",
        "arch.ckpt": "not a checkpoint of this architecture",
        "facts.ckpt": "does not say which AffinityNet",
        "damaged.ckpt": "damaged.ckpt",
        "absent.ckpt": "absent.ckpt",
    }
    for name, message in cases.items():
        with pytest.raises(InfercamError, match=message) as caught:
            load_affinity(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_new_affinitynet_needs_weights() -> None:
    from infercam.trainer.networks.backbones import load_backbone

    with pytest.raises(InputError, match="--weights FILE"):
        load_backbone("resnet38", None, output_stride=8)
