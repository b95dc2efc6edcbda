"""From a frozen classifier (ONNX or PyTorch) to a bundle that the engine runs, checked against the classifier.

    from infercam.export import export_onnx, from_torch, response_graph, write_bundle

Importing this package needs neither onnx, onnxruntime nor torch: `infercam --help` and the engine work without
the `export` and `train` extras.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ == "export":  # pragma: no cover - `import export` from the repository root
    raise ImportError("import infercam.export, not export: the latter would be a second copy")

from infercam.export.requirements import require_onnx

if TYPE_CHECKING:
    from infercam.export.graph.surgery import ResponseGraph, response_graph
    from infercam.export.writing.bundle_writer import write_bundle
    from infercam.export.writing.from_torch import from_torch
    from infercam.export.writing.onnx_source import export_onnx

__all__ = ["ResponseGraph", "export_onnx", "from_torch", "require_onnx", "response_graph", "write_bundle"]

_HOME = {
    "ResponseGraph": "graph.surgery",
    "response_graph": "graph.surgery",
    "write_bundle": "writing.bundle_writer",
    "export_onnx": "writing.onnx_source",
    "from_torch": "writing.from_torch",
}


def __getattr__(name: str) -> Any:
    """Each name at its first use, with a line that names the extra where onnx is missing."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "from_torch":  # which says itself what it needs
        require_onnx()
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
