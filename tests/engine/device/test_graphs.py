"""CUDA graphs through a stand-in for cuda-python, whose names are those of the real one where it is installed."""

from __future__ import annotations

import sys
from enum import Enum, IntEnum
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from infercam.engine.common.errors import BackendError, MissingExtra
from infercam.engine.device.graphs import CudaCapture
from tests.host_driver import HostDriver

CUresult = IntEnum("CUresult", {"CUDA_SUCCESS": 0, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": 901})
CUstreamCaptureMode = Enum("CUstreamCaptureMode", "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")


class FakeCuda:
    """`cuda.bindings.driver`: every function returns its code and its results; `broken`: the function that fails."""

    CUresult, CUstreamCaptureMode = CUresult, CUstreamCaptureMode

    def __init__(self) -> None:
        self.broken = ""
        self.calls: list[str] = []
        self.alive = 0

    @staticmethod
    def CUstream(handle: int) -> tuple[str, int]:
        return ("stream", handle)

    def _done(self, name: str, *results: object) -> tuple[object, ...]:
        self.calls.append(name)
        failed = name == self.broken
        code = CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED if failed else CUresult.CUDA_SUCCESS
        return (code, *results)

    def cuStreamBeginCapture(self, stream: object, mode: object) -> tuple[object, ...]:
        assert stream == ("stream", HostDriver.stream) and isinstance(mode, CUstreamCaptureMode)
        return self._done("cuStreamBeginCapture")

    def cuStreamEndCapture(self, stream: object) -> tuple[object, ...]:
        self.alive += 1
        return self._done("cuStreamEndCapture", "graph")

    def cuGraphInstantiate(self, graph: object, flags: int) -> tuple[object, ...]:
        assert graph == "graph" and flags == 0
        self.alive += self.broken != "cuGraphInstantiate"
        return self._done("cuGraphInstantiate", "executable")

    def cuGraphLaunch(self, executable: object, stream: object) -> tuple[object, ...]:
        assert executable == "executable"
        return self._done("cuGraphLaunch")

    def cuGraphDestroy(self, graph: object) -> tuple[object, ...]:
        self.alive -= 1
        return self._done("cuGraphDestroy")

    def cuGraphExecDestroy(self, executable: object) -> tuple[object, ...]:
        self.alive -= 1
        return self._done("cuGraphExecDestroy")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", fake)
    return fake


def test_captured_launched_and_freed(cuda: FakeCuda) -> None:
    graph = CudaCapture(HostDriver())(lambda: cuda.calls.append("work"))
    graph.launch()
    graph.launch()
    graph.close()
    assert cuda.calls == [
        *("cuStreamBeginCapture", "work", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy"),
        *("cuGraphLaunch", "cuGraphLaunch", "cuGraphExecDestroy"),
    ]
    assert cuda.alive == 0


def test_work_that_fails_ends_the_capture(cuda: FakeCuda) -> None:
    def work() -> None:
        raise BackendError("TensorRT cannot run")

    with pytest.raises(BackendError, match="TensorRT cannot run"):
        CudaCapture(HostDriver())(work)
    assert cuda.calls == ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphDestroy"] and cuda.alive == 0


@pytest.mark.parametrize("broken", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_what_cuda_refuses_is_one_line(cuda: FakeCuda, broken: str) -> None:
    cuda.broken = broken
    with pytest.raises(
        BackendError, match=rf"^CUDA graphs: {broken}: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED$"
    ):
        CudaCapture(HostDriver())(lambda: None)
    if broken == "cuGraphInstantiate":
        assert cuda.alive == 0


def test_without_cuda_python_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(MissingExtra, match=r"cuda-bindings: pip install 'infercam\[graphs\]'"):
        CudaCapture(HostDriver())


def test_the_stand_in_has_the_names_of_the_real_one() -> None:
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        pytest.skip("needs infercam[graphs]")
    from cuda.bindings import driver

    names = [n for n in vars(FakeCuda) if n.startswith("c")]
    assert len(names) == 6
    for name in names:
        signature = str(getattr(driver, name).__doc__).split("\n", 1)[0]
        mine = getattr(FakeCuda, name).__code__.co_argcount - 1
        assert len(signature.partition("(")[2].split(",")) == mine, signature
    assert int(driver.CUstream(5)) == 5
    real = SimpleNamespace(CUresult=driver.CUresult, CUstreamCaptureMode=driver.CUstreamCaptureMode)
    for enum in (CUresult, CUstreamCaptureMode):
        assert set(enum.__members__) <= set(getattr(real, enum.__name__).__members__)
    assert {int(getattr(driver.CUresult, m.name)) for m in CUresult} == set(CUresult)
