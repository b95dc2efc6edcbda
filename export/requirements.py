"""What the commands of this room need beside the engine."""

from __future__ import annotations

from importlib.util import find_spec

from infercam.engine.common.errors import MissingExtra


def require_onnx(what: str = "infercam export") -> None:
    """Raise MissingExtra, saying what needs them, unless onnx and ONNX Runtime are installed."""
    for package, extra in (("onnx", "export"), ("onnxruntime", "cpu")):
        if find_spec(package) is None:
            raise MissingExtra(package, extra, what)
