"""Which backend `auto` takes, and what it says of the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from infercam.engine import backends
from infercam.engine.api import Engine
from infercam.engine.backends import choice, choose_backend, load_backend, load_chosen
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, BundleError, MissingExtra
from infercam.engine.device.driver import DeviceError
from infercam.engine.device.probe import Gpu, Probe
from infercam.engine.runners.plan import Environment, PlanError
from tests.engine import tiny

H100 = Probe((13, 1), [Gpu("NVIDIA H100", (9, 0), 80 << 30)])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """A machine with everything; `lack(...)` takes parts away."""

    def nothing(*args, **named):
        return None

    def lack(part: str, error: Exception) -> None:
        def refuse(*args, **named):
            raise error

        monkeypatch.setattr(choice, part, refuse)

    monkeypatch.setattr(choice, "probe", lambda: H100)
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    monkeypatch.setattr(choice, "find_lean", nothing)
    monkeypatch.setattr(choice, "require_tensorrt", nothing)
    monkeypatch.setattr(choice, "environment", lambda info: Environment(info.name, (9, 0), "10.16"))
    monkeypatch.setattr(choice, "find_plan", nothing)
    monkeypatch.setattr(choice, "import_onnxruntime", nothing)
    monkeypatch.setattr(choice, "accepted", nothing)
    return SimpleNamespace(lack=lack, patch=monkeypatch)


def test_tensorrt_first(machine, tiny_bundle: Bundle) -> None:
    found = choose_backend(tiny_bundle)
    assert found.name == "tensorrt" and found.reasons == {} and str(found) == "tensorrt"


def test_without_a_plan_onnxruntime(machine, tiny_bundle: Bundle) -> None:
    machine.lack("find_plan", PlanError("plans: no TensorRT plan; make one with: infercam build b"))
    found = choose_backend(tiny_bundle)
    assert found.name == "ort-cuda" and set(found.reasons) == {"tensorrt"}
    assert str(found) == "ort-cuda (not tensorrt: plans: no TensorRT plan; make one with: infercam build b)"


def test_without_a_driver_the_cpu_and_one_reason(machine, tiny_bundle: Bundle) -> None:
    machine.lack("probe", DeviceError("no NVIDIA driver"))
    assert choose_backend(tiny_bundle).name == "openvino"
    machine.lack("accepted", BackendError("no record"))
    found = choose_backend(tiny_bundle)
    assert found.name == "cpu" and set(found.reasons) == {"tensorrt", "ort-cuda", "ort-tensorrt", "openvino"}
    assert str(found) == "cpu (not tensorrt, ort-cuda: no NVIDIA driver; not openvino: no record)"


def test_each_missing_library_is_named(machine, tiny_bundle: Bundle) -> None:
    machine.lack("import_onnxruntime", BackendError("needs onnxruntime-gpu"))
    machine.lack("require_tensorrt", MissingExtra("tensorrt", "gpu", "the tensorrt backend"))
    machine.lack("accepted", BackendError("no record"))
    found = choose_backend(tiny_bundle)
    assert found.name == "cpu" and "infercam[gpu]" in found.reasons["tensorrt"]
    assert found.reasons["ort-cuda"] == "needs onnxruntime-gpu"
    machine.patch.setattr(choice, "find_spec", lambda name: None)
    assert "pycuda" in choose_backend(tiny_bundle).reasons["ort-tensorrt"]


def test_a_precision_that_nothing_has(machine, tiny_bundle: Bundle) -> None:
    machine.lack("find_plan", PlanError("no fp8 plan"))
    machine.lack("accepted", BackendError("no fp8"))
    with pytest.raises(
        BackendError, match="no backend can run this: not tensorrt: no fp8 plan; not ort-cuda"
    ):
        choose_backend(tiny_bundle, "fp8")


def test_what_has_all_it_needs_and_does_not_start(machine, tiny_bundle: Bundle) -> None:
    load, tried = backends._load, []

    def broken(name, bundle, threads, precision):
        tried.append(name)
        if name != "cpu":
            raise BackendError(f"{name} broke")
        return load(name, bundle, threads, precision)

    machine.patch.setattr(backends, "_load", broken)
    backend, found = load_chosen("auto", tiny_bundle, 1)
    backend.close()
    assert tried == ["tensorrt", "ort-cuda", "openvino", "cpu"] and backend.name == "cpu"
    assert found.reasons == {name: f"{name} broke" for name in tried[:3]}
    with pytest.raises(BackendError, match="ort-cuda broke"):  # asked for by name: no other is taken
        load_backend("ort-cuda", tiny_bundle)


def test_here_a_gpu_backend_is_one_line(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from infercam.engine.device import cuda

    def no_driver() -> Probe:
        raise DeviceError("no NVIDIA driver on this machine")

    monkeypatch.setattr(cuda, "probe", no_driver)
    for name in ("tensorrt", "ort-cuda", "ort-tensorrt"):
        with pytest.raises(BackendError, match="no NVIDIA driver"):
            load_backend(name, tiny_bundle)
    with pytest.raises(BackendError, match="no backend 'cuda'; there are: auto, tensorrt, ort-cuda"):
        load_backend("cuda", tiny_bundle)


def test_the_cpu_and_precisions(tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "b")
    for precision in ("bf16", "fp8", "tf32"):
        with pytest.raises(BackendError, match=f"no {precision} arithmetic"):
            load_backend("cpu", bundle, precision=precision)
    with pytest.raises(BundleError, match="no fp16 graph"):
        Engine.load(bundle, "cpu", precision="fp16")
    with Engine.load(bundle, "cpu", threads=1) as engine:
        assert engine.backend.precision == "fp32" and str(engine.choice) == "cpu"
