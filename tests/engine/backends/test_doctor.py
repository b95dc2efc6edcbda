"""The doctor in healthy, sick and impossible environments: it always ends with a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from infercam.engine.backends import BACKENDS, doctor
from infercam.engine.backends.doctor import Finding, Report, examine
from infercam.engine.bundle import Bundle
from infercam.engine.cli import app
from infercam.engine.common.errors import BackendError
from infercam.engine.device.driver import DeviceError
from infercam.engine.device.probe import Gpu, Probe
from infercam.engine.runners.plan import Found
from tests.engine import tiny


def one(report: Report, section: str, name: str) -> Finding:
    (found,) = [f for f in report.sections[section] if f.name == name]
    return found


@pytest.fixture(autouse=True)
def compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking nvcc for its version takes a while."""
    monkeypatch.setattr(doctor, "find_nvcc", lambda: SimpleNamespace(version="13.0", path="/cuda/bin/nvcc"))
    monkeypatch.setattr(doctor, "find_nvrtc", lambda: None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    gpus = [Gpu("NVIDIA H100", (9, 0), 80 << 30)]
    monkeypatch.setattr(doctor, "probe", lambda: Probe((13, 1), gpus))
    monkeypatch.setattr(doctor, "device_obstacle", lambda: None)
    monkeypatch.setattr(doctor, "obstacle", lambda name, bundle: None)
    monkeypatch.setattr(doctor, "objection", lambda name, bundle: None)
    monkeypatch.setattr(doctor, "plan_environment", lambda: None)
    return gpus


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    error = DeviceError("no NVIDIA driver")

    def refuse() -> Probe:
        raise error

    monkeypatch.setattr(doctor, "probe", refuse)
    monkeypatch.setattr(doctor, "device_obstacle", lambda: error)


def test_without_a_gpu_the_cpu_works(no_gpu, tiny_bundle: Bundle) -> None:
    report = examine(tiny_bundle.path)
    assert report.works and report.backend == "cpu"
    assert one(report, "GPU", "driver") == Finding(
        "driver", "missing", "no NVIDIA driver", "only the cpu backend can run"
    )
    assert one(report, "bundle", "bundle").detail.startswith("tiny-4: 5 classes, stride 4, any size")
    assert one(report, "bundle", "fp32 graph").state == "ok"
    assert "0 found; none can run: no NVIDIA driver" in one(report, "plans", "plans").detail
    assert all(f.state != "missing" for f in report.sections["CUDA"]), "of no use without a GPU"


def test_with_a_gpu(gpu: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_kernel_module", lambda: "580.65.06")
    monkeypatch.setattr(doctor, "_library", lambda name: None)
    report = examine()
    assert report.backend == "tensorrt" and "bundle" not in report.sections
    assert one(report, "GPU", "driver").detail == "580.65.06, runs CUDA up to 13.1"
    assert one(report, "GPU", "GPU 0").detail == "NVIDIA H100, compute capability 9.0, 80.0 GiB"
    assert one(report, "CUDA", "cuDNN").remedy == "pip install nvidia-cudnn-cu13"
    assert one(report, "CUDA", "nvcc").detail == "13.0 (/cuda/bin/nvcc)"
    monkeypatch.setattr(doctor, "find_nvcc", lambda: None)
    gpu.append(Gpu("Tesla P100", (6, 0), 16 << 30))
    report = examine()
    assert one(report, "GPU", "GPU 1").state == "problem"
    assert one(report, "CUDA", "compiler").remedy == "pip install nvidia-cuda-nvrtc"
    assert "CUDA_VISIBLE_DEVICES" in one(report, "GPU", "choice").detail


def test_plans_that_fit_and_that_do_not(gpu, tiny_bundle: Bundle, monkeypatch, tmp_path: Path) -> None:
    record = SimpleNamespace(precision="fp16", profiles=["1-8 views"], runtime="tensorrt-rtx")
    plan = SimpleNamespace(record=record)
    found = [
        Found(tmp_path / "0123456789", plan, None),
        Found(tmp_path / "abcdefghij", plan, "made by TensorRT 9, here is 10"),
        Found(tmp_path / "broken0000", None, "plan.json: not a plan's record"),
    ]
    monkeypatch.setattr(doctor, "list_plans", lambda bundle, environment: found)
    plans = examine(tiny_bundle.path).sections["plans"]
    assert [(f.name, f.state) for f in plans] == [
        ("fp16 01234567", "ok"),
        ("fp16 abcdefgh", "problem"),
        ("plan broken00", "problem"),
    ]
    assert plans[0].detail == "TensorRT-RTX, fits; 1-8 views" and plans[0].remedy == ""
    assert plans[1].remedy == f"infercam build {tiny_bundle.path} --precision fp32 --runtime tensorrt-rtx"
    assert (
        "TensorRT 9" in plans[1].detail
        and plans[2].remedy == f"infercam build {tiny_bundle.path} --precision fp32"
    )
    monkeypatch.setattr(doctor, "list_plans", lambda bundle, environment: [])
    assert examine(tiny_bundle.path).sections["plans"][0].state == "missing"


def test_what_holds_for_tensorrt_rtx(gpu: list[Gpu], monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("INFERCAM_CUDA_GRAPHS", raising=False)
    monkeypatch.setenv("INFERCAM_RTX_KERNELS", "eager")
    monkeypatch.setattr(doctor, "installed", {"tensorrt-rtx": "1.7.1.116"}.get)
    report = examine()
    assert one(report, "TensorRT-RTX", "package").detail.startswith("1.7.1.116")
    refused = one(report, "TensorRT-RTX", "GPU")
    assert refused.state == "note" and "does not run on NVIDIA H100 (compute 9.0)" in refused.detail
    assert (
        one(report, "TensorRT-RTX", "switches").detail
        == "INFERCAM_RTX_KERNELS=eager, INFERCAM_CUDA_GRAPHS=off"
    )
    folder = tmp_path / "infercam" / "rtx"
    kernels = one(report, "TensorRT-RTX", "kernels")
    assert (kernels.state, kernels.detail) == ("note", f"those of 0 plans, 0.0 MB, kept in {folder}")
    folder.mkdir(parents=True)
    (folder / "a.kernels").write_bytes(b"x" * 2_500_000)
    gpu[:] = [Gpu("RTX 4090", (8, 9), 24 << 30)]
    monkeypatch.setenv("INFERCAM_CUDA_GRAPHS", "maybe")
    monkeypatch.setattr(doctor, "installed", lambda kind: None)
    report = examine()
    assert one(report, "TensorRT-RTX", "GPU") == Finding("GPU", "ok", "takes RTX 4090")
    assert one(report, "TensorRT-RTX", "package").remedy == "pip install 'infercam[rtx]'"
    assert one(report, "TensorRT-RTX", "kernels").detail.startswith("those of 1 plans, 2.5 MB")
    assert one(report, "TensorRT-RTX", "switches").state == "problem"
    assert not [f for f in report.sections["TensorRT-RTX"] if f.name == "driver"]
    monkeypatch.setattr(doctor, "probe", lambda: Probe((12, 9), gpu))
    assert one(examine(), "TensorRT-RTX", "driver").detail == "runs CUDA up to 12.9, 13.0 is needed"


def test_without_a_gpu_rtx_can_build(no_gpu) -> None:
    found = one(examine(), "TensorRT-RTX", "GPU")
    assert (found.state, found.detail) == ("note", "none to run plans on: no NVIDIA driver")


def test_both_builds_of_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "1.31" if name.startswith("onnxruntime") else None)
    finding = one(examine(), "packages", "onnxruntime")
    assert finding.state == "problem" and finding.remedy.startswith(
        "pip uninstall onnxruntime onnxruntime-gpu"
    )


def test_onnxruntime_missing_or_broken(no_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = examine()
    assert one(report, "packages", "onnxruntime").remedy == "pip install 'infercam[cpu]'"
    assert not report.works and one(report, "backends", "cpu").state == "missing"
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1 and "no backend works here" in result.output


@pytest.mark.parametrize(
    "part", ["machine", "gpus", "packages", "cuda", "tensorrt_rtx", "_graphs", "plans", "_backends"]
)
def test_whatever_breaks_there_is_a_report(part: str, tiny_bundle: Bundle, monkeypatch) -> None:
    def broken(*args):
        raise RuntimeError("never seen\nbefore")

    monkeypatch.setattr(doctor, part, broken)
    report = examine(tiny_bundle.path)
    (failure,) = [f for fs in report.sections.values() for f in fs if f.name == "doctor"]
    assert failure.detail == "RuntimeError: never seen\\nbefore" and len(report.sections) == 8


def test_a_bundle_that_is_none(tmp_path: Path) -> None:
    report = examine(tmp_path)
    assert "not a bundle" in one(report, "bundle", "bundle").detail and "plans" not in report.sections
    assert report.works, "the machine is well all the same"


def test_the_command(no_gpu, tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "tiny [x]")
    result = CliRunner().invoke(app, ["doctor", str(bundle.path)])
    assert result.exit_code == 0 and "`auto` takes: cpu" in result.output
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(result.output)
    assert found["backend"] == "cpu" and found["works"] is True
    assert {"name", "state", "detail", "remedy"} == set(found["sections"]["machine"][0])


def test_memory_is_told_where_the_system_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_memory", lambda: (8 << 30, 1 << 20))
    assert one(examine(), "machine", "memory").state == "problem"
    monkeypatch.setattr(doctor, "_memory", lambda: None)
    assert not [f for f in examine().sections["machine"] if f.name == "memory"]


def test_obstacles_are_told_per_backend(no_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    why = BackendError("does not fit")
    for what in ("obstacle", "objection"):
        monkeypatch.setattr(doctor, what, lambda name, bundle: None if name == "ort-cuda" else why)
    report = examine()
    assert report.backend == "ort-cuda"
    assert [f.state for f in report.sections["backends"]] == [
        "ok" if name == "ort-cuda" else "missing" for name in BACKENDS
    ]
