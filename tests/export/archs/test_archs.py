"""Published architectures: names, shapes, strides, and every published form of checkpoint."""

from __future__ import annotations

import json
import logging
from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F
from PIL import Image
from torch import nn

from infercam.engine.common.errors import ExportError
from infercam.export.archs import ARCHS, VOC_CLASSES, load_arch
from infercam.export.archs.mobilenetv2 import Conv, MobileNetV2
from infercam.export.archs.resnet38 import ResNet38
from infercam.export.archs.resnet50 import ResNet50
from tests.shared import SHARED

NARROW = (4, 6, 8, 8, 12, 16, 24)
BN = ("weight", "bias", "running_mean", "running_var")


@pytest.fixture
def narrow(monkeypatch):
    """Both ResNets a few channels wide, so that loading is quick."""
    monkeypatch.setitem(ResNet38.__init__.__kwdefaults__, "widths", NARROW)
    monkeypatch.setitem(ResNet50.__init__.__kwdefaults__, "width", 4)


def names(module):
    return {k for k in module.state_dict() if not k.endswith("num_batches_tracked")}


def resnet38_names():
    plain = [
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
        "b5",
        "b5_1",
        "b5_2",
    ]
    out = {"conv1a.weight", "fc8.weight", *(f"bn7.{p}" for p in BN)}
    for block in [*plain, "b6", "b7"]:
        steps = ("2a", "2b1", "2b2") if block in ("b6", "b7") else ("2a", "2b1")
        out |= {f"{block}.conv_branch{s}.weight" for s in steps}
        out |= {f"{block}.bn_branch{s}.{p}" for s, p in product(steps, BN)}
    return out | {f"{b}.conv_branch1.weight" for b in ("b2", "b3", "b4", "b5", "b6", "b7")}


def test_resnet38_has_the_published_names_and_size():
    with torch.device("meta"):
        module = ResNet38()
    assert names(module) == resnet38_names()
    shapes = {k: list(v.shape) for k, v in module.state_dict().items()}
    assert shapes["fc8.weight"] == [20, 4096, 1, 1]
    assert shapes["b5.conv_branch2b1.weight"] == [1024, 512, 3, 3]
    assert shapes["b5_1.conv_branch2a.weight"] == [512, 1024, 3, 3]
    assert shapes["b6.conv_branch2b1.weight"] == [1024, 512, 3, 3]
    assert shapes["b7.conv_branch2b2.weight"] == [4096, 2048, 1, 1]
    assert round(sum(p.numel() for p in module.parameters()) / 1e6) in (104, 105)


def resnet50_names(prefix="resnet50."):
    out = {f"{prefix}conv1.weight", *(f"{prefix}bn1.{p}" for p in BN)}
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            at = f"{prefix}layer{layer}.{block}"
            out |= {f"{at}.conv{i}.weight" for i in (1, 2, 3)}
            out |= {f"{at}.bn{i}.{p}" for i, p in product((1, 2, 3), BN)}
            if block == 0:
                out |= {f"{at}.downsample.0.weight", *(f"{at}.downsample.1.{p}" for p in BN)}
    return out


def test_resnet50_has_torchvisions_names():
    with torch.device("meta"):
        module = ResNet50()
    assert names(module) == resnet50_names() | {"classifier.weight"}
    assert list(module.classifier.weight.shape) == [20, 2048, 1, 1]
    backbone = sum(p.numel() for p in module.resnet50.parameters())
    assert backbone == 23_508_032  # torchvision's resnet50 without fc


def mobilenetv2_names():
    out = {f"{layer}.{p}" for layer, p in product(("stem", "head"), ("weight", "bias"))}
    for block in range(17):
        steps = ("dw", "project") if block == 0 else ("expand", "dw", "project")
        out |= {f"blocks.{block}.{s}.{p}" for s, p in product(steps, ("weight", "bias"))}
    return out | {"classifier.weight"}


def test_mobilenetv2_has_the_folded_names():
    assert names(MobileNetV2()) == mobilenetv2_names()


@pytest.mark.parametrize(
    ("build", "stride"),
    [
        *((lambda s=s: ResNet38(3, widths=NARROW, output_stride=s), s) for s in (8, 16)),
        *((lambda s=s: ResNet50(3, width=4, output_stride=s), s) for s in (8, 16, 32)),
        *((lambda s=s: MobileNetV2(3, output_stride=s), s) for s in (8, 16, 32)),
        *((lambda s=s: MobileNetV2(3, output_stride=s, padding="symmetric"), s) for s in (8, 16, 32)),
    ],
)
@pytest.mark.parametrize("size", [(64, 96), (65, 83)])
def test_shapes_strides_and_the_response_identity(build, stride, size):
    module = build().eval()
    with torch.no_grad():
        for p in module.parameters():  # keep activations alive through the narrow networks
            if p.ndim == 4:
                nn.init.kaiming_normal_(p)
        x = torch.randn(2, 3, *size)
        scores, cam, features = module(x), module.forward_cam(x), module.features(x)
    grid = [-(-s // stride) for s in size]
    assert list(cam.shape) == [2, 3, *grid]
    assert list(scores.shape) == [2, 3]
    linear = getattr(module, "fc8", None) or module.classifier
    response = torch.einsum("oc,nchw->nohw", linear.weight.flatten(1), features)
    torch.testing.assert_close(response.mean((2, 3)), scores, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(F.relu(response), cam, rtol=1e-4, atol=1e-4)
    assert (scores[0] - scores[1]).abs().max() > 1e-6


@pytest.mark.parametrize("side", [64, 65, 66, 67, 79])
def test_stride_two_padding_by_evenness(side):
    """`same` is TensorFlow's rule; `after` agrees with it as long as every level's side is even."""
    column = torch.arange(1.0, side + 1)[None, None, :, None].expand(1, 1, side, side).contiguous()
    outputs = {}
    for padding in ("same", "after", "symmetric"):
        conv = Conv(1, 1, 3, stride=2, padding=padding)
        nn.init.constant_(conv.bias, 0)
        nn.init.constant_(conv.weight, 0)
        conv.weight.data[..., 0, 1] = 1  # picks the window's first row
        with torch.no_grad():
            outputs[padding] = conv(column)[0, 0, :, 1].tolist()
    total = max((-(-side // 2) - 1) * 2 + 3 - side, 0)  # TensorFlow's padding, less than half of it before
    first = [float(i * 2 + 1 - total // 2) if i * 2 >= total // 2 else 0.0 for i in range(-(-side // 2))]
    assert outputs["same"] == first
    assert outputs["after"] == [float(i * 2 + 1) for i in range(side // 2)]
    assert outputs["symmetric"] == [float(max(i * 2, 0)) for i in range(-(-side // 2))]
    assert (outputs["same"] == outputs["after"]) == (side % 2 == 0)


def lively(module):
    """Random BatchNorm statistics and weights that keep activations of order one."""
    generator = torch.Generator().manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, generator=generator)
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
            m.weight.data.uniform_(0.5, 1, generator=generator)
            m.bias.data.normal_(0, 0.3, generator=generator)
    return module.eval()


@pytest.mark.parametrize("size", [(64, 96), (72, 83)])
@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        (lambda: ResNet38(3, widths=NARROW), lambda: ResNet38(3, widths=NARROW, output_stride=16)),
        (lambda: ResNet50(3, width=4, output_stride=8), lambda: ResNet50(3, width=4)),
    ],
)
def test_the_other_output_stride_is_the_same_function_sampled(dense, sparse, size):
    a, b = lively(dense()), sparse().eval()
    b.load_state_dict(a.state_dict())
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        fine, coarse = a.features(x), b.features(x)
    torch.testing.assert_close(fine[..., ::2, ::2], coarse, rtol=1e-4, atol=1e-4)


def test_dropout_only_in_training():
    module = lively(ResNet38(3, widths=NARROW))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(module(x), module(x))
        module.train()
        assert not torch.equal(module(x), module(x))


def save(tmp_path, state, name="weights.pth"):
    file = tmp_path / name
    torch.save(state, file)
    return file


def resnet38_state(classes=20):
    return dict(lively(ResNet38(classes, widths=NARROW)).state_dict())


def scores_of(classifier, x):
    with torch.no_grad():
        out = classifier.module.eval()(x)
    return out if classifier.keep_classes is None else out[:, list(classifier.keep_classes)]


X = torch.randn(1, 3, 48, 40, generator=torch.Generator().manual_seed(3))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("prefix", ["", "module."])
def test_psa_checkpoint(tmp_path, prefix):
    state = {f"{prefix}{k}": v for k, v in resnet38_state().items() if "num_batches" not in k}
    classifier = load_arch("resnet38", save(tmp_path, state))
    assert classifier.classes == VOC_CLASSES
    assert classifier.keep_classes is None
    assert classifier.notes == []
    wanted = ResNet38(20, widths=NARROW).eval()
    wanted.load_state_dict(resnet38_state())
    with torch.no_grad():
        torch.testing.assert_close(scores_of(classifier, X), wanted(X))


@pytest.mark.usefixtures("narrow")
def test_seam_checkpoint_loses_background_and_says_so(tmp_path):
    state = resnet38_state(21)
    plain = {**state, "fc8.weight": state["fc8.weight"][1:]}
    extra = {f"{n}.weight": torch.zeros(2, 2, 1, 1) for n in ("f8_3", "f8_4", "f9")}
    classifier = load_arch("resnet38", save(tmp_path, {f"module.{k}": v for k, v in (state | extra).items()}))
    assert classifier.classes == VOC_CLASSES
    assert classifier.keep_classes == tuple(range(1, 21))
    assert "f8_3, f8_4, f9" in classifier.notes[0]
    assert "background" in classifier.notes[1]
    wanted = load_arch("resnet38", save(tmp_path, plain, "plain.pth"))
    torch.testing.assert_close(scores_of(classifier, X), scores_of(wanted, X))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(("head", "count"), [(None, 20), ("20", 20), ("200", 200)])
def test_sc_cam_checkpoint(tmp_path, head, count):
    state = resnet38_state()
    first = state.pop("fc8.weight")
    many = torch.randn(200, NARROW[-1], 1, 1)
    state |= {"fc8_20.weight": first, "fc8_200.weight": many}
    classifier = load_arch("resnet38", save(tmp_path, state), head=head)
    assert len(classifier.classes) == count == len(set(classifier.classes))
    assert torch.equal(classifier.module.fc8.weight, first if count == 20 else many)
    assert ("fc8_200" if count == 20 else "fc8_20 ") in classifier.notes[0]
    if count == 200:
        assert classifier.classes[:11:10] == ("aeroplane/0", "bicycle/0")


def irn_state(copies):
    """A checkpoint as irn's Net saves it: the same tensors under one to three names."""
    torch.manual_seed(0)
    own = lively(ResNet50(20, width=4)).state_dict()
    out = {}
    for key, value in own.items():
        out[key] = value
        name = key.removeprefix("resnet50.")
        part, _, rest = name.partition(".")
        if part == "classifier":
            out["newly_added.0.weight"] = value
            continue
        number, member = {"conv1": (1, 0), "bn1": (1, 1), "layer1": (1, 4)}.get(part, (part[-1], 0))
        if copies > 1:
            out[f"stage{number}.{member}.{rest}"] = value
        if copies > 2:
            out[f"backbone.{int(number) - 1}.{member}.{rest}"] = value
        if copies == 0:  # only the sequentials
            out[f"stage{number}.{member}.{rest}"] = out.pop(key)
    return out


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("copies", [0, 1, 2, 3])
def test_irn_checkpoint_with_any_number_of_copies(tmp_path, copies):
    state = irn_state(copies)
    classifier = load_arch("resnet50", save(tmp_path, state))
    wanted = lively(ResNet50(20, width=4))
    wanted.load_state_dict({k: v for k, v in irn_state(1).items() if not k.startswith("newly")})
    with torch.no_grad():
        torch.testing.assert_close(scores_of(classifier, X), wanted(X))
    assert classifier.classes == VOC_CLASSES


@pytest.mark.usefixtures("narrow")
def test_irn_copies_that_differ_are_refused(tmp_path):
    state = irn_state(3)
    state["stage2.0.0.conv1.weight"] = state["stage2.0.0.conv1.weight"] + 1
    with pytest.raises(ExportError, match=r"another copy of resnet50\.layer2\.0\.conv1\.weight differ"):
        load_arch("resnet50", save(tmp_path, state))


@pytest.mark.usefixtures("narrow")
def test_torchvision_resnet50_with_fc(tmp_path):
    own = lively(ResNet50(7, width=4, bias=True)).state_dict()
    state = {k.removeprefix("resnet50.").replace("classifier.", "fc."): v for k, v in own.items()}
    state["fc.weight"] = state["fc.weight"].flatten(1)
    file = save(tmp_path, state)
    with pytest.raises(ExportError, match=r"scores 7 classes, which is not VOC's 20; give their names"):
        load_arch("resnet50", file)
    classifier = load_arch("resnet50", file, classes=list("abcdefg"), output_stride=32)
    assert torch.equal(classifier.module.classifier.bias, own["classifier.bias"])
    assert classifier.module.features(X).shape[-2:] == (2, 2)


class TorchvisionStyle(nn.Module):
    """MobileNetV2 as torchvision lays it out (its own code is not needed for the names to be checked)."""

    def __init__(self, classes):
        super().__init__()

        def conv(cin, cout, k, stride=1, groups=1):
            return nn.Conv2d(cin, cout, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)

        def active(*args, **kwargs):
            return nn.Sequential(*conv(*args, **kwargs), nn.ReLU6())

        layers, cin = [active(3, 32, 3, 2)], 32
        for t, c, n, s in [
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ]:
            for i in range(n):
                block = nn.Module()
                mid, stride = cin * t, s if i == 0 else 1
                steps = [] if t == 1 else [active(cin, mid, 1)]
                steps += [active(mid, mid, 3, stride, mid), *conv(mid, c, 1)]
                block.conv = nn.Sequential(*steps)
                block.residual = stride == 1 and cin == c
                layers.append(block)
                cin = c
        layers.append(active(320, 1280, 1))
        self.features = nn.ModuleList(layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x):
        for layer in self.features:
            if isinstance(layer, nn.Sequential):
                x = layer(x)
            else:
                x = x + layer.conv(x) if layer.residual else layer.conv(x)
        return self.classifier(x.mean((2, 3)))


def test_torchvision_mobilenetv2_is_folded_on_loading(tmp_path):
    source = lively(TorchvisionStyle(20))
    classifier = load_arch("mobilenetv2", save(tmp_path, source.state_dict()), output_stride=32)
    assert classifier.input.std == (0.229, 0.224, 0.225)
    for size in ((64, 96), (65, 83)):
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            want, got = source(x), classifier.module.eval()(x)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


def test_torchvision_mobilenetv2_missing_norm_is_named(tmp_path):
    state = dict(TorchvisionStyle(20).state_dict())
    del state["features.18.1.running_var"]
    with pytest.raises(ExportError, match=r"2 missing: head\.weight, head\.bias; 4 unexpected: features\.18"):
        load_arch("mobilenetv2", save(tmp_path, state))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("fc8.weight"), r"does not fit resnet38: 1 missing: fc8\.weight$"),
        (lambda s: s.update({"fc9.weight": torch.ones(1)}), r"1 unexpected: fc9\.weight$"),
        (lambda s: s.update({"bn7.bias": torch.ones(5)}), r"bn7\.bias \(file \[5\], network \[24\]\)$"),
        (lambda s: s.update({"fc8.weight": s["fc8.weight"][:7]}), "scores 7 classes"),
    ],
)
def test_resnet38_that_does_not_fit(tmp_path, change, message):
    state = resnet38_state()
    change(state)
    with pytest.raises(ExportError, match=message):
        load_arch("resnet38", save(tmp_path, state))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("vgg16", {}, "no architecture 'vgg16'; known: efficientnet_lite0, mobilenetv2, resnet38, resnet50"),
        ("resnet38", {"output_stride": 32}, r"resnet38: output_stride must be one of \(8, 16\)"),
        ("resnet38", {"head": "20"}, "this one has neither"),
        ("resnet50", {"head": "20"}, "resnet50 has one linear layer"),
        ("resnet38", {"classes": ["a", "b"]}, "scores 20 classes but 2 names"),
    ],
)
def test_options_that_do_not_fit(tmp_path, arch, options, message):
    file = save(tmp_path, resnet38_state())
    with pytest.raises(ExportError, match=message):
        load_arch(arch, file, **options)


@pytest.mark.usefixtures("narrow")
def test_unknown_sc_cam_head(tmp_path):
    state = resnet38_state()
    state["fc8_20.weight"] = state["fc8_200.weight"] = state.pop("fc8.weight")
    with pytest.raises(ExportError, match="no head '100'; choose 20 or 200"):
        load_arch("resnet38", save(tmp_path, state), head="100")


def test_registry():
    assert set(ARCHS) == {"resnet38", "resnet50", "mobilenetv2", "efficientnet_lite0"}
    assert len(VOC_CLASSES) == 20 == len(set(VOC_CLASSES))
    assert (VOC_CLASSES[0], VOC_CLASSES[7], VOC_CLASSES[-1]) == ("aeroplane", "cat", "tvmonitor")
    assert logging.getLogger("infercam.export.archs").level == logging.NOTSET


@pytest.fixture
def models():
    folder = SHARED / "models"
    if not folder.is_dir():
        pytest.skip("needs ../shared/models, which is not here")
    return folder


def picture(name, size):
    with Image.open(SHARED / "voc/VOC2012/JPEGImages" / f"{name}.jpg") as im:
        return np.asarray(im.convert("RGB").resize(size[::-1]), np.float32)


def as_input(pixels, spec):
    x = (pixels * spec.scale - np.asarray(spec.mean)) / np.asarray(spec.std)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)


@pytest.mark.shared
def test_voc_mobilenetv2_equals_the_onnx_file(models):
    """Same weights, rounded to half precision; each fed its own normalisation of the same picture."""
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(models / "mobilenetv2_voc.onnx")
    classifier = load_arch("mobilenetv2", models / "mobilenetv2_voc_folded_fp16.safetensors")
    assert names(classifier.module) == mobilenetv2_names()
    assert classifier.classes == VOC_CLASSES
    imagenet = classifier.input.model_copy(
        update={"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    )
    for size in ((160, 224), (96, 96)):  # every level even, where the file's frozen padding is right
        pixels = picture("2007_000464", size)
        want = session.run(None, {"image": as_input(pixels, imagenet)})[0]
        got = scores_of(classifier, torch.from_numpy(as_input(pixels, classifier.input))).numpy()
        assert want.std() > 1  # real, spread-out scores
        np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())


@pytest.mark.shared
@pytest.mark.parametrize("output_stride", [16, 32])
def test_imagenet_mobilenetv2_knows_cats_from_dogs(models, output_stride):
    """A wrong input scale, colour order or padding would show here."""
    classes = (models / "imagenet_classes.txt").read_text().splitlines()
    file = models / "mobilenetv2_imagenet_folded_fp16.safetensors"
    classifier = load_arch("mobilenetv2", file, classes=classes, output_stride=output_stride)
    labels = json.loads((SHARED / "voc/labels.json").read_text())["labels"]
    right = {"cat": range(281, 286), "dog": range(151, 269)}
    hits = total = 0
    for name, held in sorted(labels.items()):
        if held in (["cat"], ["dog"]) and total < 12:
            x = torch.from_numpy(as_input(picture(name, (224, 224)), classifier.input))
            hits += int(scores_of(classifier, x).argmax()) in right[held[0]]
            total += 1
    assert total == 12
    assert hits >= 8
