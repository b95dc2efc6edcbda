"""Which backend `auto` takes, and what it says of the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from infercam.engine import backends
from infercam.engine.api import Engine
from infercam.engine.backends import PREFERENCE, choice, choose_backend, load_backend, load_chosen
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, BundleError, MissingExtra
from infercam.engine.device.driver import DeviceError
from infercam.engine.device.probe import Gpu, Probe
from infercam.engine.runners import tensorrt
from infercam.engine.runners.plan import PlanError
from tests.engine import tiny

H100 = Probe((13, 1), [Gpu("NVIDIA H100", (9, 0), 80 << 30)])
RTX = Probe((13, 1), [Gpu("RTX 4090", (8, 9), 24 << 30)])


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
    monkeypatch.setattr(tensorrt, "installed", {"tensorrt": "10.16", "tensorrt-rtx": "1.7.1"}.get)
    monkeypatch.setattr(choice, "find_plan", nothing)
    monkeypatch.setattr(choice, "import_onnxruntime", nothing)
    monkeypatch.setattr(choice, "accepted", nothing)
    return SimpleNamespace(lack=lack, patch=monkeypatch)


def test_tensorrt_first(machine, tiny_bundle: Bundle) -> None:
    machine.patch.setattr(choice, "probe", lambda: RTX)
    found = choose_backend(tiny_bundle)
    assert found.name == "tensorrt" and found.reasons == {} and str(found) == "tensorrt"


def _no_plan_of(runtime: str):
    def find(bundle, precision, environment, cache=None, *, runtime: str, refused: str = runtime):
        if runtime == refused:
            raise PlanError(f"no {runtime} plan")

    return find


def test_then_tensorrt_rtx_where_it_takes_the_card(machine, tiny_bundle: Bundle) -> None:
    machine.patch.setattr(choice, "probe", lambda: RTX)
    machine.patch.setattr(choice, "find_plan", _no_plan_of("tensorrt"))
    assert str(choose_backend(tiny_bundle)) == "tensorrt-rtx (not tensorrt: no tensorrt plan)"
    machine.patch.setattr(choice, "probe", lambda: H100)
    found = choose_backend(tiny_bundle)
    assert found.name == "ort-cuda" and set(found.reasons) == {"tensorrt", "tensorrt-rtx"}
    assert found.reasons["tensorrt-rtx"] == (
        "TensorRT-RTX does not run on NVIDIA H100 (compute 9.0); it takes 7.5, 8.0, 8.6, 8.9, 12.0 and later: use "
        "--backend tensorrt or ort-cuda"
    )


def test_a_card_that_rtx_refuses_comes_before_a_package_that_is_missing(machine) -> None:
    machine.patch.setattr(tensorrt, "installed", lambda kind: None)
    assert "does not run on NVIDIA H100" in str(choice.obstacle("tensorrt-rtx", None))
    machine.patch.setattr(choice, "probe", lambda: RTX)
    missing = choice.obstacle("tensorrt-rtx", None)
    assert (
        isinstance(missing, MissingExtra) and missing.extra == "rtx" and "tensorrt-rtx-cu13" in str(missing)
    )


def test_without_a_plan_onnxruntime(machine, tiny_bundle: Bundle) -> None:
    machine.lack("find_plan", PlanError("plans: no TensorRT plan; make one with: infercam build b"))
    found = choose_backend(tiny_bundle)
    assert found.name == "ort-cuda" and set(found.reasons) == {"tensorrt", "tensorrt-rtx"}
    assert str(found).startswith(
        "ort-cuda (not tensorrt: plans: no TensorRT plan; make one with: infercam build b; not tensorrt-rtx: "
    )


def test_without_a_driver_the_cpu_and_one_reason(machine, tiny_bundle: Bundle) -> None:
    machine.lack("probe", DeviceError("no NVIDIA driver"))
    assert choose_backend(tiny_bundle).name == "openvino"
    machine.lack("accepted", BackendError("no record"))
    found = choose_backend(tiny_bundle)
    assert found.name == "cpu" and set(found.reasons) == {*choice.BACKENDS} - {"cpu"}
    assert str(found) == (
        "cpu (not tensorrt, tensorrt-rtx, ort-cuda: no NVIDIA driver; not openvino: no record)"
    )


def test_each_missing_library_is_named(machine, tiny_bundle: Bundle) -> None:
    machine.lack("import_onnxruntime", BackendError("needs onnxruntime-gpu"))
    machine.patch.setattr(tensorrt, "installed", lambda kind: None)
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
        BackendError,
        match=r"no backend can run this: not tensorrt: no fp8 plan; not tensorrt-rtx: .*; not ort-cuda",
    ):
        choose_backend(tiny_bundle, "fp8")


def test_what_has_all_it_needs_and_does_not_start(machine, tiny_bundle: Bundle) -> None:
    load, tried = backends._load, []

    def broken(name, bundle, threads, precision):
        tried.append(name)
        if name != "cpu":
            raise BackendError(f"{name} broke")
        return load(name, bundle, threads, precision)

    machine.patch.setattr(choice, "probe", lambda: RTX)
    machine.patch.setattr(backends, "_load", broken)
    backend, found = load_chosen("auto", tiny_bundle, 1)
    backend.close()
    assert tried == [*PREFERENCE] and backend.name == "cpu"
    assert found.reasons == {name: f"{name} broke" for name in PREFERENCE[:-1]}
    with pytest.raises(BackendError, match="ort-cuda broke"):  # asked for by name: no other is taken
        load_backend("ort-cuda", tiny_bundle)


def test_here_a_gpu_backend_is_one_line(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from infercam.engine.device import cuda

    def no_driver() -> Probe:
        raise DeviceError("no NVIDIA driver on this machine")

    monkeypatch.setattr(cuda, "probe", no_driver)
    for name in set(choice.BACKENDS) - {"openvino", "cpu"}:
        with pytest.raises(BackendError, match="no NVIDIA driver"):
            load_backend(name, tiny_bundle)
    with pytest.raises(
        BackendError, match="no backend 'cuda'; there are: auto, tensorrt, tensorrt-rtx, ort-cuda"
    ):
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
