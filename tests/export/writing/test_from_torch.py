"""`from_torch`: any module with global average pooling and a linear layer; free sizes; clear refusals."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import torch.nn.functional as F
from torch import nn

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import ExportError
from infercam.export import from_torch
from infercam.export.writing.from_torch import evaluation_mode, to_onnx

CLASSES = ["cat", "dog", "cow", "owl", "emu"]
SIZES = [(1, 32, 48), (3, 33, 47), (2, 70, 41)]


class Body(nn.Module):
    """Two convolutions with BatchNorm, and padding that depends on whether the size is even."""

    def __init__(self, classes=5):
        super().__init__()
        self.c1, self.n1 = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8)
        self.c2 = nn.Conv2d(8, 12, 3, 2, bias=False)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(12, classes)
        self.n1.running_mean.normal_()
        self.n1.running_var.uniform_(0.5, 2)

    def features(self, x):
        for step in (lambda v: self.n1(self.c1(v)), self.c2):
            h, w = x.shape[-2:]
            x = F.relu(step(F.pad(x, (w % 2, 1, h % 2, 1))))
        return x

    def forward(self, x):
        return self.fc(self.drop(self.features(x).mean((2, 3))))


class Adaptive(Body):
    def forward(self, x):
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))


class LikePsa(Body):
    def forward(self, x):
        x = self.features(x)
        x = F.avg_pool2d(x, kernel_size=(x.size(2), x.size(3)), padding=0)
        return F.conv2d(x, self.fc.weight[:, :, None, None]).view(x.size(0), -1)


class LikeIrn(Body):
    def forward(self, x):
        x = self.features(x)
        x = torch.mean(x.view(x.size(0), x.size(1), -1), -1).view(x.size(0), x.size(1), 1, 1)
        return F.conv2d(x, self.fc.weight[:, :, None, None]).view(-1, 5)


class ConvFirst(Body):
    def forward(self, x):
        return F.conv2d(self.features(x), self.fc.weight[:, :, None, None], self.fc.bias).mean((2, 3))


class Probabilities(Body):
    def forward(self, x):
        return torch.sigmoid(super().forward(x) * 30)


class Softmax(Body):
    def forward(self, x):
        return F.softmax(super().forward(x), dim=1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def session(path):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(bundle, batch):
    return session(bundle.graph()).run(["scores", "response"], {bundle.manifest.input.name: batch})


class Mlp(Body):
    """As ConvNeXt (a norm after the pooling) and MobileNetV3 (a hidden layer) together."""

    def __init__(self):
        super().__init__()
        width = self.fc.in_features
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 9), nn.Hardswish(), nn.Dropout(), nn.Linear(9, len(CLASSES))
        )

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def test_a_head_with_a_norm_and_a_hidden_layer(tmp_path):
    module = Mlp()
    bundle = from_torch(module, tmp_path / "b", classes=CLASSES, example_size=(64, 64))
    m = bundle.manifest
    assert m.per_image_bias and not any(m.bias) and m.verification.max_score_error < 1e-5
    batch = np.random.default_rng(0).standard_normal((3, 3, 70, 91)).astype(np.float32)
    names = ["scores", "response", "bias"]
    scores, response, bias = session(bundle.graph()).run(names, {m.input.name: batch})
    with torch.no_grad():
        want = module.eval()(torch.from_numpy(batch)).numpy()
    np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(response.mean((2, 3)) + bias, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Body, Adaptive, LikePsa, LikeIrn, ConvFirst])
def test_bundle_equals_the_module_at_even_and_odd_sizes(tmp_path, kind):
    module = kind()
    bundle = from_torch(module, tmp_path / "b", classes=CLASSES, example_size=(64, 64), name="toy")
    m = Bundle.load(bundle.path).manifest
    assert (m.name, m.classes, m.stride, m.multi_label) == ("toy", CLASSES, 4, True)
    assert (m.input.height, m.input.width, m.input.dynamic_batch) == (None, None, True)
    assert m.source["module"] == kind.__name__
    module.eval()
    for n, h, w in SIZES:
        batch = np.random.default_rng(h).standard_normal((n, 3, h, w)).astype(np.float32)
        scores, response = run(bundle, batch)
        with torch.no_grad():
            x = torch.from_numpy(batch)
            want = module(x).numpy()
            maps = torch.einsum("oc,nchw->nohw", module.fc.weight, module.features(x)).numpy()
        np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(response, maps, rtol=1e-4, atol=1e-5)
        assert response.shape[2:] == (-(-h // 4), -(-w // 4))


@pytest.mark.parametrize(("kind", "multi_label"), [(Probabilities, True), (Softmax, False)])
def test_a_final_activation_is_left_out(tmp_path, kind, multi_label):
    module = kind()
    bundle = from_torch(module, tmp_path / "b", classes=CLASSES, example_size=(64, 64))
    assert bundle.manifest.multi_label is multi_label
    batch = np.random.default_rng(0).standard_normal((2, 3, 40, 40)).astype(np.float32)
    with torch.no_grad():
        probability = module.eval()(torch.from_numpy(batch)).numpy()
    scores = torch.from_numpy(run(bundle, batch)[0])
    again = torch.sigmoid(scores) if multi_label else F.softmax(scores, 1)
    np.testing.assert_allclose(again.numpy(), probability, atol=1e-5)


def test_a_module_that_normalises_by_itself_is_given_plain_pixels(tmp_path):
    class Whole(Body):
        def forward(self, x):
            return super().forward((x / 255 - 0.45) / 0.225)

    m = from_torch(Whole(), tmp_path / "b", classes=CLASSES, example_size=(64, 64)).manifest
    assert (m.input.mean, m.input.std, m.input.scale) == ((0, 0, 0), (1, 1, 1), 1)
    assert any("normalises its input by itself" in n for n in m.source["notes"])


def test_options_reach_the_manifest_and_keep_classes_picks_rows(tmp_path):
    module = Body(7)
    bundle = from_torch(
        module,
        tmp_path / "b",
        classes=["x", "y"],
        keep_classes=[5, 2],
        example_size=(64, 64),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.1),
        scale=1.0,
        colour="BGR",
        multi_label=False,
        source={"url": "here"},
    )
    m = bundle.manifest
    assert (m.input.mean, m.input.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    assert (m.input.scale, m.input.colour, m.multi_label) == (1.0, "BGR", False)
    assert m.source["url"] == "here"
    np.testing.assert_allclose(m.bias, module.fc.bias.detach().numpy()[[5, 2]], rtol=1e-6)


def test_training_flags_are_put_back_even_when_it_fails(tmp_path):
    module = Body().train()
    module.drop.eval()
    flags = [m.training for m in module.modules()]
    mean = module.n1.running_mean.clone()
    for out, classes in ((tmp_path / "b", CLASSES), (tmp_path / "c", ["one"])):
        try:
            from_torch(module, out, classes=classes, example_size=(64, 64))
        except ExportError:
            assert classes == ["one"]
        assert [m.training for m in module.modules()] == flags
    assert torch.equal(module.n1.running_mean, mean)
    assert all(p.requires_grad for p in module.parameters())


def test_evaluation_mode_does_not_call_train():
    class Stubborn(Body):
        def train(self, mode=True):
            raise AssertionError("published classifiers override train() with side effects")

    module = Stubborn()
    with evaluation_mode(module):
        assert not module.drop.training
        assert not torch.is_grad_enabled()
    assert module.drop.training


class FlatHead(Body):
    def __init__(self):
        super().__init__()
        self.big = nn.Linear(12 * 16 * 16, 5)

    def forward(self, x):
        return self.big(self.features(x).flatten(1))


class MaxPooled(Body):
    def forward(self, x):
        return self.fc(F.adaptive_max_pool2d(self.features(x), 1).flatten(1))


class TwoOutputs(Body):
    def forward(self, x):
        return super().forward(x), x


class Maps(Body):
    def forward(self, x):
        return self.features(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (FlatHead, "."),
        (MaxPooled, "."),
        (TwoOutputs, r"returns a tuple, not a tensor of scores; wrap it"),
        (Maps, r"gives \(2, 12, 16, 16\) for a batch of 2"),
        (lambda: Body().double(), r"weights are torch\.float64; call module\.float\(\)"),
        (lambda: Body(4), "scores 4 classes but 5 names"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(tmp_path, make, message):
    with pytest.raises(ExportError, match=message) as e:
        from_torch(make(), tmp_path / "b", classes=CLASSES, example_size=(64, 64))
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_fails_says_what_it_said(tmp_path):
    class Picky(Body):
        def forward(self, x):
            raise ValueError("needs 5 channels\nand more")

    with pytest.raises(
        ExportError, match=r"cannot run a \(2, 3, 64, 64\) input: ValueError: needs 5 channels$"
    ):
        from_torch(Picky(), tmp_path / "b", classes=CLASSES, example_size=(64, 64))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"colour": "HSV"}, "colour: "), ({"std": (0.2, 0.0, 0.2)}, "std must be"), ({"mean": (1, 2)}, "mean")],
)
def test_preprocessing_that_cannot_be(tmp_path, options, message):
    with pytest.raises(ExportError, match=message):
        from_torch(Body(), tmp_path / "b", classes=CLASSES, example_size=(64, 64), **options)


def test_keep_classes_out_of_range(tmp_path):
    with pytest.raises(ExportError, match="names output 5, but the module has 5"):
        from_torch(Body(), tmp_path / "b", classes=["a"], keep_classes=[5], example_size=(64, 64))


def test_untraceable_module_gives_both_reasons(monkeypatch):
    module = Body().eval()

    def fail(*_args, **_kwargs):
        raise RuntimeError("no\nsuch operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ExportError, match=r"torch\.export: RuntimeError: no; tracing: RuntimeError: no\)"):
        list(to_onnx(module, (64, 64)))


def test_second_exporter_is_used_when_the_first_fails(monkeypatch):
    module, real = Body().eval(), torch.onnx.export

    def only_tracing(*args, **kwargs):
        if kwargs["dynamo"]:
            raise RuntimeError("not today")
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", only_tracing)
    with torch.no_grad():
        model = next(to_onnx(module, (64, 64)))
        s = session(model.SerializeToString())
        for n, h, w in SIZES:  # evenness decided in the graph here too
            x = torch.randn(n, 3, h, w)
            np.testing.assert_allclose(s.run(None, {"image": x.numpy()})[0], module(x).numpy(), atol=1e-5)


def test_the_other_exporters_graph_is_taken_where_the_first_has_no_head(tmp_path, monkeypatch):
    module, real, asked = Body().eval(), torch.onnx.export, []

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x) * self.module(x)

    def spoilt(given, *args, **kwargs):
        asked.append(kwargs["dynamo"])
        return real(Other() if kwargs["dynamo"] else given, *args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", spoilt)
    bundle = from_torch(module, tmp_path / "a", classes=CLASSES, example_size=(64, 64))
    assert bundle.manifest.input.height is None and asked == [True, False]
