"""The loop and the CAM libraries as contestants: their maps are what they should be; absent, they say so."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn

from infercam.benchmarks.bench import peers, process, worker
from infercam.benchmarks.bench.job import BenchJob, NotMeasured
from infercam.benchmarks.bench.pictures import collect, save
from infercam.benchmarks.yardsticks import pytorch_loop
from infercam.engine.bundle import InputSpec
from infercam.engine.common.errors import MissingExtra
from infercam.engine.common.safe_pickle import load_npy_dict
from infercam.engine.data.sources import folder_source
from infercam.export.archs import Classifier
from tests.engine import tiny


class Twin(nn.Module):
    """tiny.py's network in PyTorch, with its very weights."""

    def __init__(self) -> None:
        super().__init__()
        w = {k: torch.from_numpy(v) for k, v in tiny.weights().items()}
        self.convs = nn.ModuleList(nn.Conv2d(c, 8, 3, 2, 1) for c in (3, 8))
        for i, conv in enumerate(self.convs):
            conv.weight.data, conv.bias.data = w[f"w{i}"], w[f"b{i}"]
        self.classifier = nn.Conv2d(8, 5, 1, bias=False)
        self.classifier.weight.data = w["head"]

    def features(self, x):
        for conv in self.convs:
            x = torch.relu(conv(x))
        return x

    def forward_cam(self, x):
        return torch.relu(self.classifier(self.features(x)))


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What a job needs, with the twin as the classifier behind any --model."""
    bundle = tiny.build(tmp_path / "bundle")
    data = tiny.write_dataset(tmp_path / "data", 2)
    found = collect(list(folder_source(data / "images")), lambda id: [1, 3], "tiny", None)
    twin = Classifier(Twin(), tuple(tiny.CLASSES), InputSpec())
    monkeypatch.setattr(pytorch_loop, "load_classifier", lambda arch, weights: twin)
    (tmp_path / "model.pth").write_bytes(b"the twin stands for it")
    return {
        "bundle": bundle.path,
        "pictures": save(found, tmp_path / "list"),
        "digest": found.digest,
        "count": 2,
        "model": tmp_path / "model.pth",
    }


def maps_of(folder: Path) -> dict[str, np.ndarray]:
    return {f.stem: np.stack(list(load_npy_dict(f).values())) for f in sorted(folder.glob("*.npy"))}


def measured(given, tmp_path: Path, **job: object) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Maps and, per pass, the shapes that the network saw."""
    one = BenchJob.model_validate({**given, **job})
    out = tmp_path / "-".join(map(str, job.values()))
    seen = worker.measure(one, out)
    folder = "cam" if job.get("mode") == "baseline" else "maps"
    return maps_of(out / "maps" / folder), {s: n // seen.passes for s, n in seen.shapes.items()}


def test_the_loop_over_the_module_and_over_the_graph_give_the_same(given, tmp_path) -> None:
    over_torch, seen = measured(given, tmp_path, kind="loop", network="torch")
    over_onnx, seen_too = measured(given, tmp_path, kind="loop", network="onnx")
    assert list(over_torch) == ["p000", "p001"]
    assert seen == seen_too
    for name, maps in over_torch.items():
        assert np.abs(maps - over_onnx[name]).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("manner", peers.manners(8))
def test_torch_cam_in_every_manner_is_the_loops_baseline(given, tmp_path, monkeypatch, manner) -> None:
    pytest.importorskip("torchcam", reason="needs torchcam")
    monkeypatch.setattr(peers, "fastest", lambda call, every: manner)
    theirs, seen = measured(given, tmp_path, kind="torch-cam", views=8)
    loop, _ = measured(given, tmp_path, kind="loop", mode="baseline")
    assert sum(seen.values()) == 2 * 8
    for name, maps in loop.items():
        assert np.abs(maps - theirs[name]).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("manner", peers.manners(8))
def test_grad_cam_in_every_manner_gives_the_same(given, tmp_path, monkeypatch, manner) -> None:
    _needs_grad_cam()
    monkeypatch.setattr(peers, "fastest", lambda call, every: manner)
    found, _ = measured(given, tmp_path, kind="grad-cam", views=8)
    monkeypatch.setattr(peers, "fastest", lambda call, every: peers.Manner(False, False))
    plain, _ = measured(given, tmp_path, kind="grad-cam", views=8, threads=1)
    for name, maps in plain.items():
        assert np.abs(maps - found[name]).max() < 1e-4


@pytest.mark.parametrize("job", [{"kind": "loop"}, {"kind": "loop", "mode": "baseline"}])
def test_autocast_moves_the_maps_a_little(given, tmp_path, job) -> None:
    plain, _ = measured(given, tmp_path, **job)
    low, _ = measured(given, tmp_path, **job, autocast=True)
    apart = [np.abs(low[name] - maps) for name, maps in plain.items()]
    assert all(0 < a.mean() < 0.05 for a in apart)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch-cam", "grad-cam"])
def test_the_libraries_under_autocast(given, tmp_path, kind) -> None:
    pytest.importorskip("torchcam", reason="needs torchcam")
    if kind == "grad-cam":
        _needs_grad_cam()
    plain, _ = measured(given, tmp_path, kind=kind)
    low, _ = measured(given, tmp_path, kind=kind, autocast=True)
    for name, maps in plain.items():
        assert 0 < np.abs(low[name] - maps).mean() < 0.05


def test_the_fastest_manner_is_the_one_with_the_shortest_call(monkeypatch) -> None:
    now = [0.0]
    every = peers.manners(8)
    took = dict(zip(every, ([9, 5, 4], [9, 3, 9], [1, 8, 8], [9, 4, 4]), strict=True))
    assert len(set(every)) == 4 and len(peers.manners(1)) == 2

    def call(manner) -> None:
        now[0] += took[manner].pop(0)

    monkeypatch.setattr(peers.time, "perf_counter", lambda: now[0])
    assert peers.fastest(call, every) == every[1]  # the third was short in the call that prepares


@pytest.mark.slow
def test_torch_cam_with_8_views_is_the_loops_baseline(given, tmp_path) -> None:
    pytest.importorskip("torchcam", reason="needs torchcam")
    theirs, seen = measured(given, tmp_path, kind="torch-cam", views=8)
    loop, seen_too = measured(given, tmp_path, kind="loop", mode="baseline")
    assert seen == seen_too
    for name, maps in loop.items():
        assert np.abs(maps - theirs[name]).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("views", [1, 8])
def test_grad_cam_is_the_plain_cam_of_such_a_head(given, tmp_path, views) -> None:
    pytest.importorskip("torchcam", reason="needs torchcam")
    _needs_grad_cam()
    grad, seen = measured(given, tmp_path, kind="grad-cam", views=views)
    plain, seen_too = measured(given, tmp_path, kind="torch-cam", views=views)
    assert seen == seen_too
    assert sum(seen.values()) == 2 * views
    for name, maps in plain.items():
        for a, b in zip(
            maps, grad[name], strict=True
        ):  # it stretches each view to 0..1, and upsamples by OpenCV
            assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9


def _needs_grad_cam() -> None:
    from infercam.benchmarks.bench.peers import import_torchvision

    import_torchvision()
    pytest.importorskip("pytorch_grad_cam", reason="needs grad-cam and all that it needs")


@pytest.mark.slow
def test_torchvision_imports_even_beside_another_pytorch() -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("needs torchvision")
    program = (
        "from infercam.benchmarks.bench.peers import import_torchvision as go; go(); go()\n"
        "import torchvision; from torchvision.models import resnet18; print(type(resnet18()).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "ResNet\n", done.stderr


@pytest.mark.parametrize(("kind", "module"), [("torch-cam", "torchcam"), ("grad-cam", "pytorch_grad_cam")])
def test_a_library_that_is_not_installed_is_named_with_its_extra(given, monkeypatch, kind, module) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == module]:  # imported by another test
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"infercam\[bench\]"):
        worker.prepare(BenchJob.model_validate({**given, "kind": kind}))


@pytest.mark.parametrize("kind", ["loop", "torch-cam", "grad-cam"])
def test_without_torch(given, monkeypatch, kind) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"infercam\[train\]"):
        worker.prepare(BenchJob.model_validate({**given, "kind": kind}))


def test_another_classifier_is_refused(given, monkeypatch) -> None:
    other = Classifier(Twin(), ("a", "b", "c", "d", "e"), InputSpec())
    monkeypatch.setattr(pytorch_loop, "load_classifier", lambda arch, weights: other)
    with pytest.raises(NotMeasured, match="its classes are not the bundle's"):
        worker.prepare(BenchJob.model_validate({**given, "kind": "loop"}))


def test_a_checkpoint_that_does_not_fit_is_a_reason(given, tmp_path) -> None:
    """In a process of its own, where nothing stands in for the checkpoint."""
    outcome = process.measure(BenchJob.model_validate({**given, "kind": "loop"}), tmp_path / "scratch")
    assert outcome.measured is None
    assert "model.pth" in (outcome.reason or "")
    assert "\n" not in (outcome.reason or "")
