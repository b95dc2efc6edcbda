"""Published checkpoints become bundles: verified, with the right classes, stride and preprocessing."""

from __future__ import annotations

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from PIL import Image

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import ExportError
from infercam.export.archs import VOC_CLASSES, export_arch, load_arch
from infercam.export.archs.resnet38 import ResNet38
from tests.shared import SHARED

NARROW = (4, 6, 8, 8, 12, 16, 24)


def from_torch_module():
    """The module, which `infercam.export.from_torch` is not: that is the function."""
    return sys.modules["infercam.export.writing.from_torch"]


def unavailable(*_args):
    raise RuntimeError("not in this test")


def run(bundle, batch):
    session = ort.InferenceSession(bundle.graph(), providers=["CPUExecutionProvider"])
    return session.run(["scores", "response"], {bundle.manifest.input.name: batch})


def random_batch(n, h, w):
    return np.random.default_rng(h).standard_normal((n, 3, h, w)).astype(np.float32)


def test_seam_style_resnet38_becomes_a_bundle_of_20_classes(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(ResNet38.__init__.__kwdefaults__, "widths", NARROW)
    monkeypatch.setattr(from_torch_module(), "_export_dynamo", unavailable)  # tracing is ten times as quick
    module = ResNet38(21)
    state = {f"module.{k}": v for k, v in module.state_dict().items()}
    state["module.f9.weight"] = torch.zeros(192, 195, 1, 1)
    file = tmp_path / "resnet38_SEAM.pth"
    torch.save(state, file)
    bundle = Bundle.load(export_arch("resnet38", file, tmp_path / "b").path)
    m = bundle.manifest
    assert (m.classes, m.stride, m.bias) == (list(VOC_CLASSES), 8, [0.0] * 20)
    assert (m.name, m.source["arch"], m.source["weights"]) == ("resnet38_SEAM", "resnet38", file.name)
    assert any("f9" in n for n in m.source["notes"])
    assert any("f9" in r.message for r in caplog.records)
    batch = random_batch(2, 41, 58)
    scores, response = run(bundle, batch)
    with torch.no_grad():
        want = module.eval()(torch.from_numpy(batch))[:, 1:].numpy()
    np.testing.assert_allclose(scores, want, atol=1e-4 * np.abs(want).max())
    assert response.shape == (2, 20, 6, 8)


@pytest.mark.shared
def test_voc_mobilenetv2_becomes_a_bundle(tmp_path):
    models = SHARED / "models"
    if not models.is_dir():
        pytest.skip("needs ../shared/models, which is not here")
    file = models / "mobilenetv2_voc_folded_fp16.safetensors"
    with Image.open(SHARED / "voc/VOC2012/JPEGImages/2007_000464.jpg") as im:
        picture = np.asarray(im.convert("RGB"))
    bundle = export_arch("mobilenetv2", file, tmp_path / "b", images=[picture])
    m = bundle.manifest
    assert (m.classes, m.stride) == (list(VOC_CLASSES), 16)
    assert (m.input.mean, m.input.std, m.input.scale) == ((1, 1, 1), (1, 1, 1), 1 / 127.5)
    assert any(line.startswith("image 1") for line in m.verification.inputs)
    module = load_arch("mobilenetv2", file).module.eval()
    for n, h, w in [(1, 96, 64), (2, 97, 65), (1, 98, 127)]:  # padding decided in the graph
        batch = random_batch(n, h, w)
        scores, response = run(bundle, batch)
        with torch.no_grad():
            want = module(torch.from_numpy(batch)).numpy()
            cam = module.forward_cam(torch.from_numpy(batch)).numpy()
        np.testing.assert_allclose(scores, want, atol=1e-4 * np.abs(want).max())
        np.testing.assert_allclose(np.maximum(response, 0), cam, atol=1e-4 * cam.max())


def test_a_checkpoint_that_does_not_fit_leaves_no_bundle(tmp_path):
    file = tmp_path / "w.pth"
    torch.save({"classifier.weight": torch.zeros(20, 1280)}, file)
    with pytest.raises(
        ExportError, match=r"does not fit mobilenetv2: 104 missing: stem\.weight, stem\.bias, "
    ):
        export_arch("mobilenetv2", file, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet38", "resnet50"])
def test_full_size_network(tmp_path, arch):
    """All 105 M (24 M) parameters, random; the BatchNorms are those of a fresh network."""
    if arch == "resnet38":
        module = ResNet38()
    else:
        from infercam.export.archs.resnet50 import ResNet50

        module = ResNet50()
    file = tmp_path / "w.pth"
    torch.save(module.state_dict(), file)
    parameters = sum(p.numel() for p in module.parameters())
    del module
    bundle = export_arch(arch, file, tmp_path / "b")
    assert bundle.manifest.stride == {"resnet38": 8, "resnet50": 16}[arch]
    size = bundle.graph().stat().st_size
    assert 0.97 < size / (4 * parameters) < 1.03
    scores, response = run(bundle, random_batch(1, 65, 80))
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(response.mean((2, 3)), scores, rtol=1e-4, atol=1e-5)
