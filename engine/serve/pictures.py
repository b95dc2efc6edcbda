"""Maps and masks as PNG."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray

_FAST = [cv2.IMWRITE_PNG_COMPRESSION, 1]
_MASK = [cv2.IMWRITE_PNG_BILEVEL, 1, *_FAST]


def grey_png(levels: NDArray[np.uint8]) -> str:
    """H×W uint8 as an 8-bit grey PNG, in base64."""
    return _encoded(levels, _FAST)


def mask_png(mask: NDArray[np.bool_]) -> str:
    """H×W bool as a 1-bit PNG (white: true), in base64."""
    return _encoded(mask.astype(np.uint8) * np.uint8(255), _MASK)


def _encoded(pixels: NDArray[np.uint8], options: list[int]) -> str:
    done, data = cv2.imencode(".png", pixels, options)
    assert done
    return base64.b64encode(data.tobytes()).decode("ascii")
