"""COCO 2014 and 2017: image-level labels and semantic masks from the instance annotations (extra `coco`).

What is decided here, for everything that reads COCO:

- **Classes.** COCO's 80 categories have ids from 1 to 90 with gaps. Class c, in the order of ascending category
  ids, is mask value c + 1 (0 background, 255 ignored): `coco_categories.py`. Ids and names are the file's own; one
  whose categories are not COCO's works the same way, and that is said.
- **Labels of an image** are the categories of all its annotations, crowd regions among them, whether or not
  they are hidden behind others in the mask.
- **Masks.** Larger objects are painted first, by the annotations' own `area`, so that smaller ones stay on top;
  of equal ones the lower annotation id is on top. Crowd regions are painted as their class; this and the order
  are what coco2voc does, the usual conversion. Or they become 255 (`crowd="ignore"`), or are left out.
- **Images without annotations** have no image-level label and are left out unless asked for.

Every output records these choices, and the SHA-256 of the annotation file.
"""

from infercam.engine.coco.annotations import Annotations
from infercam.engine.coco.masks import CocoMasks
from infercam.engine.coco.tree import coco_ground_truth, coco_labels, coco_source, open_annotations
from infercam.engine.data.coco_categories import CATEGORIES, CLASSES

__all__ = [
    "CATEGORIES",
    "CLASSES",
    "Annotations",
    "CocoMasks",
    "coco_ground_truth",
    "coco_labels",
    "coco_source",
    "open_annotations",
]
