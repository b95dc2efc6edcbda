"""Makes tests/golden_scene.npz, the map that the built wheel must reproduce: python tests/make_golden_scene.py

The maps come from the plain reference, not from the engine that is tested against them.
"""

from pathlib import Path

import numpy as np
import onnxruntime

from infercam.engine.bundle import Bundle
from infercam.engine.demo.ablation import BUNDLE
from infercam.engine.demo.scenes import scene
from infercam.engine.method.recipe import RECIPES
from infercam.engine.method.reference import response_maps

SEED = 7

if __name__ == "__main__":
    bundle = Bundle.load(BUNDLE)
    session = onnxruntime.InferenceSession(str(bundle.graph()))
    one = scene(SEED)
    maps = response_maps(
        one.image,
        one.classes,
        RECIPES["released"],
        "both",
        lambda x: session.run(["response"], {bundle.manifest.input.name: x})[0],
        bundle.manifest.input,
    )
    file = Path(__file__).parent / "golden_scene.npz"
    np.savez_compressed(file, seed=SEED, classes=one.classes, maps=maps.astype(np.float16))
