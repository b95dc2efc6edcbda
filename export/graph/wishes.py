"""What a response graph is to be made with, beyond what its head says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ZeroShot:
    """Texts that an image encoder's embeddings (N, E) are compared with.

    texts: unit vectors float32 (K, E), the wanted classes first, then the background's; wanted: how many of them are
    classes; scale: what multiplies the cosines before the softmax (CLIP's exp(logit_scale), 100 as published).
    """

    texts: np.ndarray
    wanted: int
    scale: float

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, E) -> scale times the cosine with each class, (N, wanted) float32."""
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return (self.scale * unit @ self.texts[: self.wanted].T).astype(np.float32)


@dataclass(frozen=True)
class MapWishes:
    """attention: of a class-token head: the map times the last block's attention from class token to patches.
    zero_shot: the source is an image encoder, and this is its classifier (zero_shot.py).
    recipro: any head, one position at a time (recipro.py). affinity: the self-attention of so many last blocks as a
    further output (attention.py); 0: none."""

    attention: bool = False
    zero_shot: ZeroShot | None = None
    recipro: bool = False
    affinity: int = 0
