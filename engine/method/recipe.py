"""Recipes: every constant of the method, named, validated and recorded in the output (method/README.md §1 to §3)."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infercam.engine.common.errors import InputError
from infercam.engine.common.validation import first_problem

Mode = Literal["baseline", "split", "erase", "both"]
MODES: tuple[Mode, ...] = get_args(Mode)
Scale = Annotated[float, Field(gt=0, le=8)]
Scales = Annotated[tuple[Scale, ...], Field(min_length=1)]
ANY_NUMBER = 254  # of classes: as many as a label PNG has values for
_BEFORE = {
    "ladder": False,
    "windows": False,
    "compete": False,
    "erase_up_to": ANY_NUMBER,
    "refine": "none",
    "refine_steps": 1,
}
"""Constants that older stores do not know, and what they had."""
EPSILON = 1e-5  # added to every maximum before dividing by it


class Views(BaseModel):
    """The copies of a tile that the network sees in one iteration: each scale, with or without its mirror."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scales: Scales = (1.0, 0.5, 1.5, 2.0)
    mirror: bool = True

    @property
    def count(self) -> int:
        return len(self.scales) * (1 + self.mirror)

    @property
    def cost(self) -> float:
        """Network pixels per image pixel: 15 for scales 0.5, 1, 1.5, 2 with mirrors."""
        return sum(s * s for s in self.scales) * (1 + self.mirror)


class Recipe(BaseModel):
    """One complete setting of the method.

    The defaults are the released code's constants with its two mask quirks mended (`corrected`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "custom"
    views: Views = Field(default_factory=Views, description="views of the first iteration")
    tile_views: Views | None = Field(
        default=None, description="views of a tile's first iteration, where not those of the whole image"
    )
    later_views: Views | None = Field(
        default=None, description="views after the first iteration (None: same)"
    )
    centre_views: Views | None = Field(
        default=None, description="views of the pass that only finds the centres (None: `views`)"
    )

    split: Literal["released", "paper", "none"] = Field(
        default="released",
        description="tiles of 3+ classes: whole image (released) or each class's own (paper)",
    )
    buffer_one: int = Field(default=10, ge=0, description="pixels past the split line, one class")
    buffer_two: int = Field(default=20, ge=0, description="pixels past the split line, two classes")
    overlap: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="overlap past the split line, at least this share of the image's side",
    )
    snap: int = Field(
        default=1, ge=1, description="tile edges snapped outward to multiples of this many pixels"
    )

    threshold: float = Field(default=0.7, gt=0, le=1, description="normalised response that gets erased")
    stop_share: float = Field(
        default=0.02, ge=0, lt=1, description="stop when less than this share is newly erased"
    )
    iterations: int = Field(default=5, ge=1, le=100, description="at most this many on a tile")
    accumulate: Literal["max", "sum", "mean"] = Field(
        default="max", description="over iterations; a sum is divided by its own maximum at the end"
    )
    compete: bool = Field(
        default=False,
        description="after the first iteration a class's map counts only where, so far, no class of the image was "
        "higher: what an erased image still answers often lies on its other objects",
    )
    erase_up_to: int = Field(
        default=ANY_NUMBER,
        ge=0,
        le=ANY_NUMBER,
        description="an image of more classes than this is inferred once, and its maps are divided by their maximum: "
        "what it still answers once erased lies on its other objects",
    )
    mask_mirrored: bool = Field(
        default=True,
        description="the mirrored copy is masked with the mirrored mask (the released code forgets to)",
    )
    mask_cascade: bool = Field(
        default=False,
        description="each scale's mask is resized from the previous "
        "scale's (the released code's quirk), not from the full one",
    )

    whole: Literal["none", "max", "mean"] = Field(
        default="none", description="unite tiles with the whole image's map"
    )
    whole_weight: float = Field(
        default=0.5, ge=0, le=1, description="weight of the whole image's map in `mean`"
    )
    whole_iterations: int = Field(
        default=1, ge=1, le=100, description="erase iterations on the whole image beside tiles"
    )
    peak_floor: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="a map is divided by no less than this share of the raw peak of the whole image's first pass, "
        "so that a tile without the object, or what is left after erasing it, is not lifted to a peak of 1",
    )
    probe: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="a tile whose smallest view peaks below this share "
        "of the whole image's, in every class, is not inferred further",
    )

    ladder: bool = Field(
        default=False,
        description="views are inferred at few sizes (sides from 64 in steps of about a quarter), whatever their "
        "tile's, so that they fill batches and a GPU prepares few shapes; False: at their exact size",
    )

    windows: bool = Field(
        default=True,
        description="a network that takes one size sees each view in windows of that size, which overlap; False: one "
        "view, the picture stretched to that size",
    )

    refine: Literal["none", "affinity"] = Field(
        default="none",
        description="each view's response times the bundle's attention among its patches (CLIP-ES, WeCLIP)",
    )
    refine_steps: int = Field(default=1, ge=1, le=16, description="how often")

    peak_quantile: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="quantile of a tile's pixels that counts as its peak (1: the maximum); maps are cut at 1",
    )

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.peak_floor and self.accumulate == "sum":
            raise ValueError("peak_floor is lost in accumulate 'sum': use 'max' or 'mean'")
        return self

    def of(self, classes: int) -> Recipe:
        """What holds for an image of so many classes (see erase_up_to)."""
        if classes <= self.erase_up_to:
            return self
        return self.model_copy(update={"iterations": 1, "whole_iterations": 1, "peak_quantile": 1.0})

    def first_of_tile(self) -> Views:
        return self.tile_views or self.views

    def later(self) -> Views:
        return self.later_views or self.views

    def probing(self) -> Views:
        """The one cheap view of a probe: a tile's smallest."""
        return Views(scales=(min(self.first_of_tile().scales),), mirror=False)

    def fingerprint(self, mode: Mode) -> str:
        """Hash of everything here that can change a map; the recipe's name is not part of it."""
        key = {"mode": mode, **self.model_dump(exclude={"name"})}
        for name, before in _BEFORE.items():  # as it was before there was one: what stores hold stays valid
            if key[name] == before:
                del key[name]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        Recipe(name="paper", split="paper", accumulate="sum", stop_share=0.01, iterations=10),
        Recipe(name="released", mask_mirrored=False, mask_cascade=True),
        Recipe(name="corrected"),
        # Ours, found on VOC training photos with a stride-16 MobileNetV2 (benchmarks/results/study.json) and looked
        # at again with an EfficientNet-Lite0 (two_networks.json): what an erased image still answers, in the units of
        # its first pass, averaged with it. There, splitting gave nothing beyond that; no mirrors, one scale more
        # pay for themselves. On images of three and more classes the plain maximum and one pass did best, with both.
        Recipe(
            name="fast",
            ladder=True,
            split="none",
            views=Views(mirror=False),
            later_views=Views(scales=(1.0, 0.5, 1.5), mirror=False),
            iterations=2,
            accumulate="mean",
            peak_floor=1.0,
        ),
        Recipe(
            name="best",
            ladder=True,
            split="none",
            views=Views(scales=(1.0, 0.5, 1.5, 2.0, 2.5)),
            later_views=Views(scales=(1.0, 0.5, 1.5)),
            iterations=2,
            accumulate="mean",
            peak_floor=1.0,
            peak_quantile=0.99,
            erase_up_to=2,
        ),
    )
}


def checked_mode(name: str) -> Mode:
    """The mode of that name; raises InputError, which lists them."""
    if name not in MODES:
        raise InputError(f"no mode {name!r}; there are: {', '.join(MODES)}")
    return name


def recipe(name_or_recipe: str | Recipe, **changes: Any) -> Recipe:
    """A named recipe (or the one given) with some constants changed.

    Raises InputError for an unknown name, an unknown constant or a value out of range.
    """
    if isinstance(name_or_recipe, Recipe):
        base = name_or_recipe
    elif name_or_recipe in RECIPES:
        base = RECIPES[name_or_recipe]
    else:
        raise InputError(f"no recipe {name_or_recipe!r}; there are: {', '.join(RECIPES)}")
    if not changes:
        return base
    try:
        return Recipe.model_validate({**base.model_dump(), "name": f"{base.name}, changed", **changes})
    except ValidationError as e:
        raise InputError(f"recipe {base.name}: {first_problem(e, 'recipe')}") from None
