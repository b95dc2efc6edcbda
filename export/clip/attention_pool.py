"""Zero-shot maps of a CLIP ResNet: the attention pool's own projections at every position (MaskCLIP, section 3.2).

The pool averages the last map's positions with weights that ask what is in the picture; without them each position
keeps its value projection, and `c_proj(v_proj(x))` is an embedding of its own, to be compared with the texts as
export/graph/zero_shot.py says. The positions' table belongs to the pool, so that only the scores have it; it is
interpolated (bicubic) to the size of the map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infercam.export.graph.wishes import ZeroShot
from infercam.export.writing.from_torch import import_torch

if TYPE_CHECKING:
    from torch import nn

_POOL = ("positional_embedding", "q_proj", "k_proj", "v_proj", "c_proj", "num_heads")


def has_attention_pool(visual: Any) -> bool:
    """Whether an image encoder is CLIP's ResNet, in open_clip's names."""
    pool = getattr(visual, "attnpool", None)
    return all(hasattr(pool, name) for name in _POOL)


def response_module(visual: Any, wish: ZeroShot) -> nn.Module:
    """A module N×3×H×W -> (scores N×C, response N×C×h×w) around `visual`, which is not changed."""
    torch = import_torch()
    pool = visual.attnpool

    class AttentionPoolMaps(torch.nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.visual = visual
            self.training = False  # or the exporter would put all of it back into training mode
            self.register_buffer("texts", torch.from_numpy(wish.scale * wish.texts.T).float())

        def forward(self, image: Any) -> tuple[Any, Any]:
            x = self._features(image)
            n, _, h, w = x.shape
            rows = x.flatten(2).transpose(1, 2)  # N, h·w, channels
            patches = _unit(pool.c_proj(pool.v_proj(rows)))
            chances = (patches @ self.texts).softmax(dim=-1)[..., : wish.wanted]
            response = chances.transpose(1, 2).reshape(n, wish.wanted, h, w)
            scores = _unit(_pooled(pool, rows, (h, w))) @ self.texts[:, : wish.wanted]
            return scores, response

        def _features(self, image: Any) -> Any:
            kept = self.visual.attnpool
            self.visual.attnpool = torch.nn.Identity()
            try:
                return self.visual(image)
            finally:
                self.visual.attnpool = kept

    return AttentionPoolMaps()


def _unit(x: Any) -> Any:
    return x / x.norm(dim=-1, keepdim=True)


def _pooled(pool: Any, rows: Any, size: tuple[Any, Any]) -> Any:
    """The attention pool of (N, P, channels), its positions those of a map of `size`."""
    torch = import_torch()
    table = pool.positional_embedding
    side = round((len(table) - 1) ** 0.5)
    grid = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=size, mode="bicubic", align_corners=False)
    positions = torch.cat([table[None, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    tokens = torch.cat([rows.mean(dim=1, keepdim=True), rows], dim=1) + positions
    heads = pool.num_heads

    def split(x: Any) -> Any:
        return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)

    query, key, value = (
        split(pool.q_proj(tokens[:, :1])),
        split(pool.k_proj(tokens)),
        split(pool.v_proj(tokens)),
    )
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return pool.c_proj((weights @ value).transpose(1, 2).flatten(2))[:, 0]
