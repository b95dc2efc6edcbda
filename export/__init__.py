"""From a frozen classifier (ONNX or PyTorch) to a bundle that the engine runs, checked against the classifier.

    from infercam.export import export_onnx, from_torch, response_graph, write_bundle

Importing this package needs neither onnx, onnxruntime nor torch: `infercam --help` and the engine work without
the `export` and `train` extras.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if __name__ == "export":  # pragma: no cover - `import export` from the repository root
    raise ImportError("import infercam.export, not export: the latter would be a second copy")

# Imported at once, not on demand: the module and the function have the same name, and importing
# the module later would put it in the function's place.
from .from_torch import from_torch

if TYPE_CHECKING:
    from .bundle_writer import write_bundle
    from .onnx_source import export_onnx
    from .surgery import ResponseGraph, response_graph

__all__ = ["ResponseGraph", "export_onnx", "from_torch", "require_onnx", "response_graph", "write_bundle"]

_HOME = {
    "ResponseGraph": "surgery",
    "response_graph": "surgery",
    "write_bundle": "bundle_writer",
    "export_onnx": "onnx_source",
}


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
