"""What only TensorRT-RTX has, as the code declares it and as the stand-in has it, against the module itself."""

from __future__ import annotations

import ast
import inspect
from types import SimpleNamespace

import pytest

from infercam.engine.runners import rtx
from infercam.engine.runners.options import Kernels, RuntimeSwitches
from infercam.engine.runners.plan import PlanError
from infercam.engine.runners.tensorrt_api import make_log
from tests import fake_tensorrt, fake_tensorrt_rtx, trt_api
from tests.trt_api import Listing, Use

module = pytest.importorskip("tensorrt_rtx", reason="needs infercam[rtx]")
REAL_NAMES = {"RtxEngine": "ICudaEngine", "RtxRuntime": "Runtime", "TensorRTRTX": "TensorRT"}


@pytest.fixture(scope="module")
def listing() -> Listing:
    return trt_api.listing_of(module)


def test_what_only_rtx_has_is_declared_as_it_is(listing: Listing) -> None:
    found = []
    for cls in ast.parse(inspect.getsource(rtx)).body:
        if isinstance(cls, ast.ClassDef) and any(getattr(b, "id", "") == "Protocol" for b in cls.bases):
            found += _declared(cls, REAL_NAMES.get(cls.name, cls.name))
    assert len(found) >= 14
    assert [p for use in found for p in trt_api.problems(use, {"rtx": listing})] == []


def _declared(cls: ast.ClassDef, real: str) -> list[Use]:
    out = []
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            out.append(Use(real, node.target.id, node.lineno, stored=True))
        elif isinstance(node, ast.FunctionDef):
            names = tuple(a.arg for a in [*node.args.args[1:], *node.args.kwonlyargs])
            out.append(Use(real, node.name, node.lineno, not node.decorator_list, keywords=names))
    return out


def test_members_of_its_enums() -> None:
    assert set(rtx.REASONS) == set(module.EngineInvalidityDiagnostics.__members__)
    assert {"INVALID", "SUBOPTIMAL"} <= set(module.EngineValidity.__members__)
    kernels = module.DynamicShapesKernelSpecializationStrategy.__members__
    assert {k.upper() for k in Kernels.__args__} == set(kernels)  # type: ignore[attr-defined]
    assert int(kernels[RuntimeSwitches().kernels.upper()]) == 0, "the runtime's own default"
    assert set(module.CudaGraphStrategy.__members__) == {"DISABLED", "WHOLE_GRAPH_CAPTURE"}


def test_the_stand_in_has_nothing_that_the_module_has_not(listing: Listing) -> None:
    own = (fake_tensorrt.__name__, fake_tensorrt_rtx.__name__)
    classes = {n: v for n, v in vars(fake_tensorrt_rtx).items() if inspect.isclass(v) and v.__module__ in own}
    assert len(classes) >= 9
    for name, value in classes.items():
        cls = listing[name]
        if hasattr(value, "__members__"):
            assert set(value.__members__) <= cls.members, name
            continue
        for method in [m for m in dir(value) if not m.startswith("_")]:
            assert method in cls.names(), f"{name}.{method}"
            signatures = cls.methods.get(method)
            if signatures:
                params = list(inspect.signature(getattr(value, method)).parameters)[1:]
                assert any(params == s.params[: len(params)] for s in signatures), f"{name}.{method}{params}"
    for name, bits in fake_tensorrt_rtx.EngineInvalidityDiagnostics.__members__.items():
        assert int(module.EngineInvalidityDiagnostics.__members__[name]) == bits
    assert set(fake_tensorrt_rtx.EngineValidity.__members__) == set(module.EngineValidity.__members__)


def test_the_module_itself_refuses_what_is_no_plan() -> None:
    """Its answer to a header needs no GPU where the header is none of its own."""
    log = make_log(module)
    runtime = module.Runtime(log)
    with pytest.raises(
        PlanError, match=r"^/p: the plan is no TensorRT-RTX plan, or a damaged one: build it again$"
    ):
        rtx.check_validity(module, runtime, log, SimpleNamespace(folder="/p"), b"x" * 1000)  # type: ignore[arg-type]
