"""Dense CRF (Krähenbühl & Koltun): scores of labels are pulled to the photo's edges (engine/method/README.md §4).

Only labels that can occur are passed: time grows with their number (0.3 s for 2, 1 s for 21, at 500×375).
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from infercam.engine.common.errors import InputError, MissingExtra

LEAST = 1e-5
"""Scores are clipped to at least this before the logarithm, as psa's `unary_from_softmax` does."""


class CrfConfig(BaseModel):
    """psa's constants: a Gaussian kernel (smoothness) and a bilateral one (pixels of one colour agree)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iterations: int = Field(default=10, ge=1)
    gaussian_sxy: float = Field(default=3, gt=0, description="reach of the Gaussian kernel, pixels")
    gaussian_compat: float = Field(default=3, ge=0)
    bilateral_sxy: float = Field(default=80, gt=0, description="reach of the bilateral kernel, pixels")
    bilateral_srgb: float = Field(default=13, gt=0, description="its reach in colour, 0..255")
    bilateral_compat: float = Field(default=10, ge=0)


Settings = TypeVar("Settings", bound=BaseModel)


def with_crf(config: Settings, wanted: bool | None) -> Settings:
    """Settings whose dense CRF is switched on (constants: its own, else psa's), off, or as it was (None)."""
    if wanted is None:
        return config
    had: CrfConfig | None = getattr(config, "crf", None)
    return config.model_copy(update={"crf": (had or CrfConfig()) if wanted else None})


def refine(
    image: NDArray[np.uint8],
    scores: NDArray[np.float32],
    config: CrfConfig | None = None,
    *,
    least_peak: float = 0.0,
) -> NDArray[np.float32]:
    """Probabilities (L, H, W) float32 of L labels after mean-field inference; they sum to 1 at each pixel.

    image: (H, W, 3) uint8 RGB.
    scores: (L, H, W), not negative; a factor common to all labels of a pixel makes no difference, so they
        need not sum to 1.
    least_peak: labels whose score reaches this nowhere are left out and get probability 0.

    Raises MissingExtra without pydensecrf, InputError for scores of another size than the image.
    """
    config = config or CrfConfig()
    dcrf = _library()
    if scores.shape[1:] != image.shape[:2]:
        (h, w), (image_h, image_w) = scores.shape[1:], image.shape[:2]
        raise InputError(
            f"scores are {w}×{h}, the photo {image_w}×{image_h}; make the maps from these photos"
        )
    present = np.flatnonzero(scores.max(axis=(1, 2)) >= least_peak)
    out = np.zeros(scores.shape, np.float32)
    if len(present) <= 1:  # nothing to decide
        out[present if len(present) else 0] = 1
        return out
    height, width = image.shape[:2]
    crf = dcrf.DenseCRF2D(width, height, len(present))
    unary = -np.log(np.clip(scores[present], LEAST, None, dtype=np.float32))
    crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(len(present), -1)))
    crf.addPairwiseGaussian(sxy=config.gaussian_sxy, compat=config.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=config.bilateral_sxy,
        srgb=config.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=config.bilateral_compat,
    )
    out[present] = np.asarray(crf.inference(config.iterations)).reshape(len(present), height, width)
    return out


def check_crf() -> None:
    """Raise MissingExtra, before any work, where the library is not installed."""
    _library()


def _library() -> Any:
    try:
        import pydensecrf.densecrf as dcrf
    except ImportError:
        raise MissingExtra("pydensecrf2", "crf", "the dense CRF") from None
    return dcrf
