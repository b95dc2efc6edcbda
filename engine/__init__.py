"""engine: images + bundle -> response maps. Never imports torch.

from infercam.engine import Engine
maps = Engine.load("bundle").maps("photo.jpg", classes=["dog"])   # float32 (K, H, W)
"""

if __name__ == "engine":  # pragma: no cover - `import engine` from the repository root
    raise ImportError("import infercam.engine, not engine: the latter would be a second copy")

import os

# ONNX Runtime reports its use and leaves a device id in the home folder unless told not to before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from infercam.engine.api import Engine, Result
from infercam.engine.bundle import Bundle
from infercam.engine.data.images import read_image
from infercam.engine.method.recipe import RECIPES, Recipe, Views, recipe

__all__ = ["RECIPES", "Bundle", "Engine", "Recipe", "Result", "Views", "read_image", "recipe"]
