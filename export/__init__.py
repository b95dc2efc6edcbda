"""From a frozen classifier (ONNX or PyTorch) to a bundle that the engine runs."""

if __name__ == "export":  # pragma: no cover - `import export` from the repository root
    raise ImportError("import infercam.export, not export: the latter would be a second copy")

from .from_torch import from_torch

__all__ = ["from_torch"]
