"""Response maps with a saliency map of the same photo: classes say what, saliency says where objects end.

mean      (m_c + s) / 2: either alone can make a pixel an object
product   m_c s: both have to
share     s m_c / sum of the maps: the saliency, divided among the photo's classes; equally where no map has anything
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from infercam.trainer.refine.settings import SaliencyRule

Float = NDArray[np.float32]


def fused(maps: Float, saliency: NDArray[np.uint8], rule: SaliencyRule) -> Float:
    """K×H×W float32 in 0..1 of K maps and a saliency map H×W uint8 (255: salient)."""
    salient = saliency.astype(np.float32) / np.float32(255)
    if rule == "mean":
        return np.asarray((maps + salient) / 2, np.float32)
    if rule == "product":
        return np.asarray(maps * salient, np.float32)
    total = maps.sum(axis=0, keepdims=True)
    shares = np.divide(maps, total, out=np.full_like(maps, 1 / max(1, len(maps))), where=total > 0)
    return np.asarray(shares * salient, np.float32)
