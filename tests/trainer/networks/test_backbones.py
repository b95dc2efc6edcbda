"""Backbones: the same features as the exported classifiers, four levels, weights under published names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from infercam.engine.common.errors import ExportError, InfercamError, InputError
from infercam.export.archs import efficientnet_lite0, mobilenetv2, resnet38, resnet50
from infercam.trainer.loop.checkpoint import save_checkpoint
from infercam.trainer.networks.backbones import BACKBONES, LEVELS, Backbone, build_backbone, load_backbone

WIDTHS = {"resnet38": 8, "resnet50": 8, "mobilenetv2": 64, "efficientnet_lite0": 64}


def small(arch: str, output_stride: int = 8) -> Backbone:
    return build_backbone(arch, output_stride=output_stride, width=WIDTHS[arch]).eval()


def randomise(network: torch.nn.Module) -> None:
    """BatchNorm statistics other than 0 and 1, so that a norm left out or done twice is seen."""
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("arch", WIDTHS)
@pytest.mark.parametrize("size", [(64, 96), (61, 75)])
def test_levels_have_the_channels_and_strides_they_say(
    arch: str, output_stride: int, size: tuple[int, int]
) -> None:
    net = small(arch, output_stride)
    with torch.no_grad():
        out = net(torch.rand(2, 3, *size))
    assert tuple(out) == LEVELS
    for level, x in out.items():
        cells = [-(-side // net.strides[level]) for side in size]
        assert list(x.shape) == [2, net.channels[level], *cells], level
    assert net.strides["c2"] == 4 and net.strides["c3"] == 8 and net.strides["c5"] == output_stride


def classifier(arch: str) -> torch.nn.Module:
    made = {
        "resnet38": lambda: resnet38.ResNet38(20, widths=(8, 16, 32, 64, 128, 256, 512)),
        "resnet50": lambda: resnet50.ResNet50(20, width=8),
        "mobilenetv2": lambda: mobilenetv2.MobileNetV2(20, output_stride=16),
        "efficientnet_lite0": lambda: efficientnet_lite0.EfficientNetLite0(20, output_stride=16),
    }[arch]()
    randomise(made)
    return made.eval()


@pytest.mark.parametrize("arch", WIDTHS)
def test_last_level_is_the_classifiers_feature_map(arch: str, tmp_path: Path) -> None:
    whole = classifier(arch)
    torch.save(whole.state_dict(), tmp_path / "cls.pth")
    stride = 8 if arch == "resnet38" else 16  # as published
    net = load_backbone(arch, tmp_path / "cls.pth", output_stride=stride).eval()
    assert net.width == WIDTHS[arch]
    x = torch.randn(1, 3, 64, 81)
    with torch.no_grad():
        torch.testing.assert_close(net(x)["c5"], whole.features(x))


@pytest.mark.parametrize("arch", WIDTHS)
def test_published_heads_are_left_out(arch: str, tmp_path: Path) -> None:
    state = classifier(arch).state_dict()
    for name in BACKBONES[arch].heads:
        state[f"{name}.weight"] = torch.zeros(3, 4, 1, 1)
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "cls.pth")
    load_backbone(arch, tmp_path / "cls.pth", output_stride=8)


def test_resnet38_levels_are_psas() -> None:
    """conv4 and conv5 are what b5 and b6 see after their first BatchNorm and ReLU."""
    net = small("resnet38")
    randomise(net)
    seen = {}
    for name in ("b5", "b6"):
        norm = net.net.get_submodule(name).bn_branch2a
        norm.register_forward_hook(lambda _, __, out, name=name: seen.setdefault(name, out))
    with torch.no_grad():
        out = net(torch.randn(1, 3, 48, 48))
    torch.testing.assert_close(out["c3"], seen["b5"].relu())
    torch.testing.assert_close(out["c4"], seen["b6"].relu())
    assert net.early()[-1] is net.net.b2_2


def test_torchvision_layout_brings_its_input_and_padding(tmp_path: Path) -> None:
    state = {}
    for conv, norm, name in mobilenetv2._torchvision_layers():
        ours = mobilenetv2.MobileNetV2().get_submodule(name).weight
        state[f"{conv}.weight"] = ours
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{key}"] = torch.ones(ours.shape[0])
    state["classifier.1.weight"], state["classifier.1.bias"] = torch.ones(1000, 1280), torch.ones(1000)
    torch.save(state, tmp_path / "tv.pth")
    net = load_backbone("mobilenetv2", tmp_path / "tv.pth", output_stride=16)
    assert net.facts()["padding"] == "symmetric"
    assert net.input.mean[0] == pytest.approx(0.485)
    again = build_backbone(**net.facts())
    assert again.facts() == net.facts() and again.input == net.input


def test_a_stages_checkpoint_is_read(tmp_path: Path) -> None:
    net = small("resnet50")
    randomise(net)
    inside = {f"backbone.{k}": v for k, v in net.state_dict().items()} | {"head.weight": torch.zeros(2)}
    facts = {"backbone": net.facts()}
    save_checkpoint(tmp_path / "best.ckpt", "segment", inside, facts)
    again = load_backbone("resnet50", tmp_path / "best.ckpt", output_stride=8)
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    with pytest.raises(InputError, match="a checkpoint of resnet50, not resnet38"):
        load_backbone("resnet38", tmp_path / "best.ckpt", output_stride=8)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    torch.save(classifier("resnet50").state_dict(), tmp_path / "r50.pth")
    cases = {
        "no architecture 'vgg'": ("vgg", None, 8),
        "give pre-trained weights": ("resnet38", None, 8),
        "output_stride must be one of": ("resnet50", tmp_path / "r50.pth", 7),
        "no such checkpoint": ("resnet50", tmp_path / "absent.pth", 8),
        "does not fit resnet38.*missing.*unexpected": ("resnet38", tmp_path / "r50.pth", 8),
    }
    for message, (arch, weights, stride) in cases.items():
        with pytest.raises(InfercamError, match=message) as caught:
            load_backbone(arch, weights, output_stride=stride)
        assert "\n" not in str(caught.value)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(ExportError, match=r"damaged\.pth"):
        load_backbone("resnet50", damaged, output_stride=8)


def test_facts_are_json_and_gradients_reach_every_layer() -> None:
    for arch in BACKBONES:
        width = WIDTHS.get(arch, 8)
        net = build_backbone(arch, output_stride=8, width=width)
        assert build_backbone(**json.loads(json.dumps(net.facts()))).facts() == net.facts()
        sum(level.square().mean() for level in net(torch.randn(2, 3, 40, 40)).values()).backward()
        assert all(p.grad is not None for p in net.parameters()), arch
