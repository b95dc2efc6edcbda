"""Every TensorRT name that the code uses, and every one that the fake has, against the listings of both versions, and
against TensorRT-RTX itself where it is installed."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from types import ModuleType

import pytest

from infercam.engine.common.errors import MissingExtra
from infercam.engine.runners import contexts, rtx, tensorrt, tensorrt_api
from infercam.export.plan import builder as trt_builder
from infercam.export.plan import rtx as trt_rtx
from tests import fake_tensorrt, trt_api
from tests.trt_api import Class, Listing, Method, Use

MODULES = [tensorrt, tensorrt_api, trt_builder]
BESIDE = {tensorrt: [contexts]}
"""What a module takes objects from that hold TensorRT's: read with it, so that their types are known."""
OTHERS = [contexts, rtx]  # rtx has names of its own: test_rtx_names.py
ROOT = Path(__file__).resolve().parents[3]
RUNTIME_ONLY = [
    "ILogger",
    "Runtime",
    "ICudaEngine",
    "IExecutionContext",
]  # what the lean package must have too
BOTH = pytest.mark.shared


@pytest.fixture(scope="module")
def real() -> dict[str, Listing]:
    """TensorRT-RTX, as it is installed here."""
    rtx = pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'infercam[rtx]'"
    )
    return {f"tensorrt_rtx {rtx.__version__}": trt_api.listing_of(rtx)}


@pytest.fixture(scope="module", params=[pytest.param("full", marks=BOTH), "real"])
def versions(request: pytest.FixtureRequest) -> dict[str, Listing]:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def listings(shared: Path) -> dict[str, Listing]:
    return trt_api.read_listings(shared / "facts" / "tensorrt_api.txt")


def source(module: ModuleType) -> str:
    """Its own and what is read with it, as one module."""
    texts = [inspect.getsource(m) for m in [*BESIDE.get(module, []), module]]
    return "\n".join(t.replace("from __future__ import annotations", "") for t in texts)


@pytest.fixture(scope="module")
def full(listings: dict[str, Listing]) -> dict[str, Listing]:
    """Of the full packages: 10.16 and 11.4."""
    found = {name: listing for name, listing in listings.items() if "bindings" in name}
    assert [name.split()[1].split(".")[0] for name in found] == ["10", "11"]
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rsplit(".", 1)[1])
def test_what_the_code_uses_is_in_every_version(module, versions):
    uses, untold = trt_api.uses(source(module), next(iter(versions.values())))
    assert untold == []
    assert [p for use in uses for p in trt_api.problems(use, versions)] == []
    assert len(uses) >= {tensorrt: 30, tensorrt_api: 3, trt_builder: 60}[module]  # the walker does find them


def test_nothing_else_touches_tensorrt():
    """Other modules go through tensorrt_api, and take no TensorRT object from it but by the checked ones."""
    allowed = {Path(m.__file__).resolve() for m in [*MODULES, *OTHERS]}
    harmless = {"require_tensorrt", "require_lean", "find_tensorrt", "find_lean", "installed"}
    for file in [*(ROOT / "engine").rglob("*.py"), *(ROOT / "export").rglob("*.py")]:
        if file.resolve() in allowed:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                assert not any(a.name.split(".")[0].startswith("tensorrt") for a in node.names), file
            elif isinstance(node, ast.ImportFrom) and (node.module or "").endswith("tensorrt_api"):
                assert {a.name for a in node.names} <= harmless, file


def test_what_only_rtx_has_is_in_it(real):
    """The names in export/plan/rtx.py, which takes the module and its objects as Any."""
    (listing,) = real.values()
    config, capability = listing["IBuilderConfig"], listing["ComputeCapability"]
    assert "num_compute_capabilities" in config.writable
    assert config.methods["set_compute_capability"][0].params == ["compute_capability", "index"]
    assert {"SM75", "SM80", "SM86", "SM89", "SM120"} <= capability.members
    source = inspect.getsource(trt_rtx)
    used = {n.attr for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute)}
    assert {"num_compute_capabilities", "set_compute_capability", "ComputeCapability"} <= used


@BOTH
def test_the_lean_runtime_has_what_running_a_plan_needs(listings):
    lean = {name: listing for name, listing in listings.items() if "lean" in name}
    assert lean
    uses, _ = trt_api.uses(source(tensorrt), next(iter(listings.values())))
    runtime = [u for u in uses if u.cls in RUNTIME_ONLY]
    assert len(runtime) > 10
    assert [p for use in runtime for p in trt_api.problems(use, lean)] == []


def test_the_types_are_the_listings(versions):
    """tensorrt_api.py declares nothing that one of the versions has not, with the same parameters."""
    tree = ast.parse(inspect.getsource(tensorrt_api))
    known = next(iter(versions.values()))
    classes = [c for c in tree.body if isinstance(c, ast.ClassDef) and c.name in known]
    assert len(classes) >= 12
    for cls in classes:
        for use in _declared(cls):
            assert trt_api.problems(use, versions) == []


def _declared(cls: ast.ClassDef) -> list[Use]:
    out = []
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            out.append(Use(cls.name, node.target.id, node.lineno, stored=True))
        elif isinstance(node, ast.FunctionDef):
            called = not node.decorator_list
            keywords = tuple(a.arg for a in node.args.args[1:])
            out.append(Use(cls.name, node.name, node.lineno, called, keywords=keywords))
    return out


@pytest.mark.parametrize(
    ("module", "name", "base"),
    [(tensorrt_api, "Collecting", "ILogger"), (trt_builder, "Monitor", "IProgressMonitor")],
)
def test_what_tensorrt_calls_has_its_parameters(module, name, base, versions):
    tree = ast.parse(inspect.getsource(module))
    cls = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name)
    methods = {f.name: [a.arg for a in f.args.args[1:]] for f in cls.body if isinstance(f, ast.FunctionDef)}
    methods.pop("__init__")
    for listing in versions.values():
        wanted = {n: s for n, s in listing[base].methods.items() if s and not n.startswith("_")}
        assert {n: s[0].params for n, s in wanted.items()} == methods


def test_the_fake_has_nothing_that_is_not_in_every_version(versions):
    for name, value in vars(fake_tensorrt).items():
        own = getattr(value, "__module__", None) == fake_tensorrt.__name__
        if not inspect.isclass(value) or not own or name == "State" or name.startswith("_"):
            continue
        for version, listing in versions.items():
            assert name in listing or name == "ITensor", f"{version} has no {name}"
            if name in listing:
                _compare(value, listing[name], f"{version}: {name}")


def _compare(fake: type, cls: Class, where: str) -> None:
    if hasattr(fake, "__members__"):
        assert set(fake.__members__) <= cls.members, where
        return
    for name, member in vars(fake).items():
        if name.startswith("_"):
            continue
        assert name in cls.names(), f"{where}.{name}"
        signatures = cls.methods.get(name)
        if inspect.isfunction(member) and signatures:
            params = list(inspect.signature(member).parameters)[1:]
            assert any(params == s.params[: len(params)] for s in signatures), f"{where}.{name}{params}"


# -- the checker itself ----------------------------------------------------------------------------------------
BAD = """
def run(trt: TensorRT, engine: ICudaEngine, log: Any) -> None:
    context = engine.{call}
    {more}
"""


@pytest.mark.parametrize(
    ("call", "more", "words"),
    [
        (
            "create_execution_context_without_device_memory()",
            "pass",
            "11.4.0.106: ICudaEngine.create_execution",
        ),
        ("device_memory_size", "pass", "11.4.0.106: ICudaEngine.device_memory_size"),
        ("get_tensor_dtype(tensor='x')", "pass", "no signature takes 0 positional and ('tensor',)"),
        ("get_tensor_name()", "pass", "no signature takes 0 positional"),
        ("get_tensor_name(0)", "flag = trt.BuilderFlag.FP16", "11.4.0.106: BuilderFlag.FP16"),
        ("get_tensor_name(0)", "trt.Runtime(log).deserialise(b'')", "Runtime.deserialise"),
        ("get_tensor_name(0)", "engine.num_io_tensors = 3", "cannot be assigned to"),
        ("create_execution_context()", "context.execute_async_v2(0)", "IExecutionContext.execute_async_v2"),
    ],
)
@BOTH
def test_a_name_of_one_version_only_is_found(call, more, words, full):
    uses, _ = trt_api.uses(BAD.format(call=call, more=more), next(iter(full.values())))
    found = [p for use in uses for p in trt_api.problems(use, full)]
    assert any(words in p for p in found), found


def test_a_use_on_an_unknown_object_is_reported():
    listing = {"ICudaEngine": Class(methods={"get_tensor_name": [Method(["index"], set(), "str")]})}
    _, untold = trt_api.uses("def f(x):\n    x.get_tensor_name(0)\n", listing)
    assert untold == ["line 2: .get_tensor_name of x"]


@pytest.mark.parametrize(("kind", "extra"), [("tensorrt", "gpu"), ("tensorrt-rtx", "rtx")])
def test_a_missing_runtime_names_its_own_extra(kind, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert tensorrt_api.find_tensorrt(kind) is None
    with pytest.raises(MissingExtra, match=rf"infercam\[{extra}\]"):
        tensorrt_api.require_tensorrt("a plan", kind)
