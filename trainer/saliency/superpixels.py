"""SLIC superpixels (Achanta et al. 2012), without the step that enforces connectedness, and what touches what."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.errors import MissingExtra

Float = NDArray[np.float32]
Index = NDArray[np.int32]


def lab(image: NDArray[np.uint8]) -> Float:
    """H×W×3 uint8 RGB -> CIE Lab float32, L in 0..100."""
    return cv2.cvtColor(image.astype(np.float32) / np.float32(255), cv2.COLOR_RGB2Lab)  # type: ignore[return-value]


def slic(colour: Float, count: int, compactness: float = 20.0, rounds: int = 5) -> Index:
    """About `count` superpixels of a Lab picture H×W×3: index of each pixel, H×W, 0..n-1 without gaps.

    compactness: the Lab distance that weighs as much as a superpixel's side. Raises MissingExtra without
    scikit-image.
    """
    try:
        from skimage.segmentation import slic as segment
    except ImportError:
        raise MissingExtra("scikit-image", "train", "superpixels") from None
    span = float(colour.max() - colour.min()) or 1.0  # scikit-image brings the picture to 0..1
    index = segment(
        colour,
        n_segments=count,
        compactness=compactness / span,
        max_num_iter=rounds,
        convert2lab=False,
        enforce_connectivity=False,
        start_label=0,
    )
    return np.unique(index, return_inverse=True)[1].reshape(index.shape).astype(np.int32)


def means(values: Float, index: Index, count: int) -> Float:
    """Mean of H×W×K values over each superpixel: count×K (an empty one: far from everything)."""
    flat, at = values.reshape(-1, values.shape[-1]), index.ravel()
    pixels = np.bincount(at, minlength=count)
    sums = np.stack([np.bincount(at, flat[:, k], count) for k in range(flat.shape[1])], 1)
    out = np.full(sums.shape, 1e6, np.float32)
    out[pixels > 0] = sums[pixels > 0] / pixels[pixels > 0, None]
    return out


def neighbours(index: Index) -> NDArray[np.int64]:
    """Pairs (i, j), i < j, of superpixels that touch: P×2, each once, in order."""
    across = np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], 1)
    down = np.stack([index[:-1].ravel(), index[1:].ravel()], 1)
    pairs = np.sort(np.concatenate([across, down]), 1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0).astype(np.int64)


def border(index: Index) -> NDArray[np.int64]:
    """Superpixels that reach the picture's edge, ascending."""
    return np.unique(np.concatenate([index[0], index[-1], index[:, 0], index[:, -1]])).astype(np.int64)
