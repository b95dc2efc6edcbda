"""export: a frozen classifier becomes a bundle (its response graph, checked against the classifier itself).

    from infercam.export import export_onnx, from_torch, response_graph, write_bundle

Nothing here imports onnx, onnxruntime or torch before it is used, so that `infercam --help` and the engine
work without the `export` and `train` extras.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if __name__ == "export":  # pragma: no cover - `import export` from the repository root
    raise ImportError("import infercam.export, not export: the latter would be a second copy")

if TYPE_CHECKING:
    from .bundle_writer import write_bundle
    from .onnx_source import export_onnx
    from .surgery import ResponseGraph, response_graph

_HOME = {
    "ResponseGraph": "surgery",
    "response_graph": "surgery",
    "write_bundle": "bundle_writer",
    "export_onnx": "onnx_source",
    "from_torch": "from_torch",
}

__all__ = ["ResponseGraph", "export_onnx", "from_torch", "response_graph", "write_bundle"]  # noqa: F822


def require_onnx() -> None:
    """Raise MissingExtra unless onnx and ONNX Runtime are installed."""
    from infercam.engine.errors import MissingExtra

    for package, extra in (("onnx", "export"), ("onnxruntime", "cpu")):
        if find_spec(package) is None:
            raise MissingExtra(package, extra, "infercam export")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_onnx()
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """`from_torch` names a function here and the module that holds it: importing the module must not hide
    the function (the import system sets a package attribute for every sub-module)."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
