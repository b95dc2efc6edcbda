"""COCO's 80 object categories, and how their ids (1 to 90, with gaps) become classes without gaps."""

from __future__ import annotations

from collections.abc import Mapping

_NAMES = {
    1: "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant",
    13: "stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe",
    27: "backpack umbrella",
    31: "handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard "
    "surfboard tennis_racket bottle",
    46: "wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut "
    "cake chair couch potted_plant bed",
    67: "dining_table",
    70: "toilet",
    72: "tv laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator",
    84: "book clock vase scissors teddy_bear hair_drier toothbrush",
}
CATEGORIES: Mapping[int, str] = {
    first + i: name.replace("_", " ")
    for first, names in _NAMES.items()
    for i, name in enumerate(names.split())
}
"""Category id -> name, as in every instances_*.json of 2014 and 2017, ascending."""

CLASSES = list(CATEGORIES.values())
"""The 80 names by class index; class c is mask value c + 1."""


def mask_values(categories: Mapping[int, str]) -> dict[int, int]:
    """Category id -> mask value 1, 2, … by ascending id: COCO's 91 ids to 80 classes."""
    return {category: value for value, category in enumerate(sorted(categories), start=1)}
