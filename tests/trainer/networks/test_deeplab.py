"""DeepLab: shapes, heads, frozen BatchNorm, and the checkpoints of other tools."""

from __future__ import annotations

import re

import pytest

from infercam.engine.common.errors import ExportError, InputError

torch = pytest.importorskip("torch")

import torch.nn.functional as F

from infercam.trainer.loop.checkpoint import save_checkpoint
from infercam.trainer.networks.aspp import make_head
from infercam.trainer.networks.backbones import CAFFE_INPUT, build_backbone
from infercam.trainer.networks.deeplab import DeepLab, build_deeplab, full_scores, load_deeplab, start_deeplab
from infercam.trainer.networks.published import read_published


def resnet(
    arch="resnet101", *, layout="torchvision", head="v2", output_stride=8, classes=5, seed=0
) -> DeepLab:
    """A tenth as wide as published, with BatchNorm statistics that matter."""
    torch.manual_seed(seed)
    backbone = build_backbone(arch, output_stride=output_stride, width=4, layout=layout)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return DeepLab(backbone, classes, head).eval()


def picture(height=65, width=49):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


# -- shapes and training ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("head", ["v2", "v3"])
@pytest.mark.parametrize("arch", ["resnet101", "resnet50", "mobilenetv2"])
def test_scores_at_the_output_stride(arch, head, output_stride):
    options = {} if arch == "mobilenetv2" else {"width": 4}
    facts = {
        "backbone": {"arch": arch, "output_stride": output_stride, **options},
        "classes": 7,
        "head": head,
    }
    network = build_deeplab(facts).eval()
    with torch.no_grad():
        found = network(picture())
    assert found.shape == (2, 7, -(-65 // output_stride), -(-49 // output_stride))
    again = build_deeplab(network.facts())
    again.load_state_dict(network.state_dict())
    assert again.facts() == network.facts()


def test_summed_aspp_is_the_sum_of_its_branches():
    head = make_head("v2", 3, 2, 16)
    x = torch.randn(1, 3, 11, 13)
    branches = dict(head.named_children())
    assert [branches[f"c{i}"].dilation[0] for i in range(4)] == [
        3,
        6,
        9,
        12,
    ]  # published for stride 8: twice that
    expected = sum(
        F.conv2d(x, b.weight, b.bias, padding=b.dilation, dilation=b.dilation) for b in branches.values()
    )
    assert torch.allclose(head(x), expected, atol=1e-6)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(65, 97), (64, 96), (50, 61), (33, 90), (17, 20)])
def test_scores_lie_where_their_pixels_are(output_stride, size):
    """Whatever the size, but for what interpolates with the padding."""
    x = (torch.arange(97.0)[:, None] + 100 * torch.arange(97.0))[None, None, : size[0], : size[1]]
    found = full_scores(Sampler(output_stride), x, output_stride)
    assert found.shape == x.shape
    height, width = (side - 1 - (side - 1) % output_stride + 1 for side in size)
    assert torch.allclose(found[..., :height, :width], x[..., :height, :width], atol=1e-2)


class Sampler(torch.nn.Module):
    """What strided convolutions do to positions: every stride-th pixel, from the first."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :: self.stride, :: self.stride]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("arch", ["resnet50", "mobilenetv2"])
def test_a_cell_looks_around_its_pixel(arch, output_stride):
    """Cell (i, j) of the features is centred on pixel (i, j) * stride, as full_scores takes it.

    In the middle, where the picture's edge cuts off as much on all sides."""
    options = {} if arch == "mobilenetv2" else {"width": 4}
    backbone = build_backbone(arch, output_stride=output_stride, **options).eval()
    for parameter in backbone.parameters():  # every convolution an average: nothing is cut off
        parameter.data.fill_(1 / parameter[0].numel() if parameter.ndim > 1 else 0)
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.fill_(1)
    x = 1e-4 * (1 + 0.01 * torch.rand(1, 3, 129, 193, generator=torch.Generator().manual_seed(0)))
    x.requires_grad_()
    i, j = 64 // output_stride, 96 // output_stride
    backbone(x)["c5"][0, :, i, j].sum().backward()
    seen = x.grad[0].sum(0).double()
    for seen_along, pixel in ((seen.sum(1), 64), (seen.sum(0), 96)):
        places = torch.arange(len(seen_along), dtype=torch.float64)
        assert (seen_along @ places / seen_along.sum()).item() == pytest.approx(pixel, abs=0.5)


def test_backbone_norms_stay_and_v3_norms_train():
    network = resnet(head="v3").train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network(picture()).sum().backward()
    after = network.state_dict()
    moved = {k for k in after if "running" in k and not torch.equal(before[k], after[k])}
    assert moved and all(k.startswith("classifier.") for k in moved)
    assert network.backbone.net.bn1.weight.grad is None and network.backbone.net.conv1.weight.grad is not None


def test_from_random_weights_all_norms_train():
    network, notes = start_deeplab("small", None, classes=3, random=True)
    network.train()
    before = network.backbone.net.features[1].running_mean.clone()
    network(picture()).sum().backward()
    assert not notes and not torch.equal(before, network.backbone.net.features[1].running_mean)


def test_every_trained_parameter_has_one_rate():
    network = resnet()
    groups = network.parameter_groups(head_scale=3.0)
    listed = [p for g in groups for p in g["params"]]
    assert len(listed) == len({id(p) for p in listed})
    assert {id(p) for p in listed} == {id(p) for p in network.parameters() if p.requires_grad}
    assert [g.get("scale", 1) for g in groups] == [1, 3, 6] and groups[2]["weight_decay"] == 0
    assert len(groups[2]["params"]) == 4


# -- names of other tools --------------------------------------------------------------------------------------
KAZUTO = {"conv1": "reduce", "conv2": "conv3x3", "conv3": "increase", "downsample": "shortcut"}


def kazuto(network: DeepLab, prefix="base.", aspp="aspp.c") -> dict[str, torch.Tensor]:
    """As deeplab-pytorch names it."""
    out = {}
    for key, value in network.state_dict().items():
        key = key.removeprefix("backbone.net.")
        if m := re.match(r"classifier\.c(\d)\.(.+)", key):
            new = f"{aspp}{m[1]}.{m[2]}"
        elif m := re.match(r"(conv|bn)1\.(.+)", key):
            new = f"layer1.conv1.{m[1]}.{m[2]}"
        else:
            m = re.match(r"layer(\d)\.(\d+)\.(downsample|conv\d|bn\d)\.(.+)", key)
            step, rest = m[3], m[4]
            kind = "bn" if step.startswith("bn") else "conv"
            if step == "downsample":
                kind, rest = ("conv", "bn")[int(rest[0])], rest[2:]
            name = KAZUTO["downsample" if step == "downsample" else f"conv{step[-1]}"]
            new = f"layer{int(m[1]) + 1}.block{int(m[2]) + 1}.{name}.{kind}.{rest}"
        out[prefix + new] = value
    return out


def torchvision(network: DeepLab) -> dict[str, torch.Tensor]:
    state = {k.replace("backbone.net.", "backbone."): v for k, v in network.state_dict().items()}
    return {**state, "aux_classifier.0.weight": torch.zeros(3), "aux_classifier.4.bias": torch.zeros(3)}


def conv2d_list(network: DeepLab) -> dict[str, torch.Tensor]:
    """Older ports of version 2 to PyTorch."""
    state = {k.removeprefix("backbone.net."): v for k, v in network.state_dict().items()}
    return {f"Scale.{re.sub(r'^classifier.c', 'layer5.conv2d_list.', k)}": v for k, v in state.items()}


def bare(network: DeepLab) -> dict[str, torch.Tensor]:
    state = {
        k.removeprefix("backbone.net."): v
        for k, v in network.state_dict().items()
        if k.startswith("backbone")
    }
    return {**state, "fc.weight": torch.zeros(10, 128), "fc.bias": torch.zeros(10)}


@pytest.mark.parametrize("arch", ["resnet101", "resnet50"])
@pytest.mark.parametrize(
    "prefix, aspp, wrap",
    [
        ("base.", "aspp.c", lambda s: s),
        ("module.base.", "aspp.c", lambda s: {"state_dict": s}),
        ("scale_net.", "aspp.c", lambda s: s),
        ("scale.", "aspp.stages.c", lambda s: {"model": s}),
        ("", "aspp.c", lambda s: s),
    ],
)
def test_deeplab_pytorch_names(tmp_path, arch, prefix, aspp, wrap):
    network = resnet(arch, layout="caffe")
    torch.save(wrap(kazuto(network, prefix, aspp)), tmp_path / "x.pth")
    found = load_deeplab(tmp_path / "x.pth").eval()
    assert found.input == CAFFE_INPUT and found.facts()["backbone"]["arch"] == arch
    with torch.no_grad():
        assert torch.equal(found(picture()), network(picture()))


def test_caffes_layout_is_another_function():
    one, two = resnet(layout="caffe"), resnet(layout="torchvision")
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert one(picture()).shape == two(picture()).shape
        assert not torch.allclose(one(picture()), two(picture()), atol=1e-3)
    block = one.backbone.net.layer2[0]
    assert block.conv1.stride == (2, 2) and block.conv2.stride == (1, 1)
    assert one.backbone.net.layer3[0].conv2.dilation == (2, 2)
    assert two.backbone.net.layer3[0].conv2.dilation == (1, 1)


def test_older_ports_names(tmp_path):
    network = resnet(layout="caffe")
    torch.save(conv2d_list(network), tmp_path / "x.pth")
    found = load_deeplab(tmp_path / "x.pth").eval()
    with torch.no_grad():
        assert found.backbone.layout == "caffe" and torch.equal(found(picture()), network(picture()))


def test_torchvisions_deeplabv3(tmp_path):
    network = resnet(head="v3", classes=21)
    torch.save(torchvision(network), tmp_path / "x.pth")
    found = load_deeplab(tmp_path / "x.pth").eval()
    assert found.facts() == network.facts()
    with torch.no_grad():
        assert torch.equal(found(picture()), network(picture()))
    denser, coarser = found, load_deeplab(tmp_path / "x.pth", output_stride=16)
    assert denser.backbone.output_stride == 8 and coarser.backbone.output_stride == 16


def test_a_classifier_starts_a_new_head(tmp_path):
    network = resnet()
    torch.save(bare(network), tmp_path / "x.pth")
    found, notes = start_deeplab("resnet101", tmp_path / "x.pth", classes=5)
    assert not notes and found.backbone.layout == "torchvision"
    assert torch.equal(found.backbone.net.conv1.weight, network.backbone.net.conv1.weight)
    assert not torch.equal(found.classifier.c0.weight, network.classifier.c0.weight)


def test_heads_are_taken_where_they_fit(tmp_path):
    network = resnet(layout="caffe", classes=5)
    torch.save(kazuto(network), tmp_path / "x.pth")
    same, notes = start_deeplab("resnet101", tmp_path / "x.pth", classes=5)
    assert not notes and torch.equal(same.classifier.c3.weight, network.classifier.c3.weight)
    other, notes = start_deeplab("resnet101", tmp_path / "x.pth", classes=9)
    assert other.backbone.layout == "caffe" and other.classes == 9
    assert len(notes) == 1 and "its head (v2, 5 classes) is left out" in notes[0]


def test_our_checkpoints(tmp_path):
    network = resnet(head="v3")
    save_checkpoint(tmp_path / "best.ckpt", "segment", network.state_dict(), network.facts())
    found = load_deeplab(tmp_path / "best.ckpt").eval()
    with torch.no_grad():
        assert torch.equal(found(picture()), network(picture()))
    started, _ = start_deeplab("resnet101", tmp_path / "best.ckpt", classes=3, output_stride=16)
    assert started.classes == 3 and torch.equal(
        started.backbone.net.conv1.weight, network.backbone.net.conv1.weight
    )


# -- refused in one line ---------------------------------------------------------------------------------------
def refused(call, *parts: str) -> None:
    with pytest.raises((InputError, ExportError)) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(part in text for part in parts), text


def test_another_architecture_is_refused(tmp_path):
    torch.save(bare(resnet("resnet50")), tmp_path / "fifty.pth")
    torch.save(kazuto(resnet("resnet50", layout="caffe")), tmp_path / "deeplab50.pth")
    save_checkpoint(tmp_path / "ours.ckpt", "segment", resnet().state_dict(), resnet().facts())
    save_checkpoint(tmp_path / "affinity.ckpt", "affinity", {}, {})
    torch.save({"features.0.0.weight": torch.zeros(2)}, tmp_path / "mobile.pth")
    for name in ("fifty.pth", "deeplab50.pth", "mobile.pth"):
        refused(lambda name=name: start_deeplab("resnet101", tmp_path / name), name, "resnet101", "missing")
    refused(lambda: start_deeplab("resnet50", tmp_path / "ours.ckpt"), "resnet101, not resnet50")
    refused(lambda: load_deeplab(tmp_path / "fifty.pth"), "not a DeepLab over ResNet-50 or -101")
    refused(lambda: load_deeplab(tmp_path / "mobile.pth"), "not a DeepLab over ResNet-50 or -101")
    refused(lambda: load_deeplab(tmp_path / "affinity.ckpt"), "'affinity', not 'segment'")
    refused(lambda: load_deeplab(tmp_path / "none.pth"), "no such checkpoint")


def test_options_are_refused(tmp_path):
    refused(lambda: start_deeplab("vgg16", None, random=True), "no architecture 'vgg16'")
    refused(lambda: start_deeplab("resnet101", None), "give pre-trained weights")
    refused(lambda: start_deeplab("resnet101", None, random=True, output_stride=32), "DeepLab has 8 or 16")


def test_part_of_a_head_is_refused(tmp_path):
    state = kazuto(resnet(layout="caffe"))
    del state["base.aspp.c2.weight"]
    torch.save(state, tmp_path / "x.pth")
    refused(lambda: load_deeplab(tmp_path / "x.pth"), "ASPP v2", "c2.weight")


def test_what_a_published_file_holds(tmp_path):
    torch.save(kazuto(resnet(layout="caffe")), tmp_path / "x.pth")
    found = read_published(tmp_path / "x.pth")
    assert (found.arch, found.head, found.layout) == ("resnet101", ("v2", 5), "caffe")
    assert found.options == {"layout": "caffe", "width": 4}
