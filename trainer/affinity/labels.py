"""Labels from maps, before any training: for AffinityNet, or at one background threshold (method/README.md §4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.trainer.affinity.crf import CrfConfig, refine
from infercam.trainer.affinity.settings import AffinityLabelConfig, LabelConfig
from infercam.trainer.photos.label_png import IGNORE


def make_label(
    config: LabelConfig,
    maps: NDArray[np.float32],
    classes: Sequence[int],
    image: NDArray[np.uint8] | None,
) -> NDArray[np.uint8]:
    """The label (H, W) uint8 of one image: 0 background, c + 1 class c, 255 left open.

    maps: (K, H, W) in [0, 1] of the K `classes`; image: (H, W, 3) uint8 RGB, needed with a CRF only.
    """
    if isinstance(config, AffinityLabelConfig):
        low, high = (
            _decide(with_background(maps, alpha), image, config.crf)
            for alpha in (config.low_alpha, config.high_alpha)
        )
        return named_values(combine(low, high), classes)
    background = np.full((1, *maps.shape[1:]), config.threshold, np.float32)
    label = named_values(_decide(np.concatenate([background, maps]), image, config.crf), classes)
    if config.ignore_between is not None:
        highest = maps.max(axis=0, initial=0)
        label[(highest > config.ignore_between[0]) & (highest < config.ignore_between[1])] = IGNORE
    return label


def with_background(maps: NDArray[np.float32], alpha: float) -> NDArray[np.float32]:
    """(K + 1, H, W): the background's score (1 - max of the maps)^alpha before the K maps in [0, 1]."""
    highest = maps.max(axis=0, initial=0)
    return np.concatenate([(1 - highest)[None] ** np.float32(alpha), maps]).astype(np.float32, copy=False)


def combine(low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.uint8]:
    """One label from the results at the low and at the high alpha, both (H, W) with 0 for background.

    The low result's foreground; 0 where the high result says background, also where the two contradict each
    other (psa writes that last); 255 elsewhere.
    """
    label = np.where(low == 0, IGNORE, low)
    label[high == 0] = 0
    return label.astype(np.uint8)


def named_values(winners: NDArray[Any], classes: Sequence[int]) -> NDArray[np.uint8]:
    """From indices into [background, maps] to label values: k > 0 becomes classes[k - 1] + 1; 255 stays."""
    table = np.full(256, IGNORE, np.uint8)
    table[: len(classes) + 1] = [0, *(c + 1 for c in classes)]
    label: NDArray[np.uint8] = table[winners]
    return label


def _decide(
    scores: NDArray[np.float32], image: NDArray[np.uint8] | None, crf: CrfConfig | None
) -> NDArray[np.intp]:
    if crf is not None:
        if image is None:
            raise ValueError("the dense CRF needs the photo")
        scores = refine(image, scores, crf)
    decided: NDArray[np.intp] = scores.argmax(axis=0)
    return decided
