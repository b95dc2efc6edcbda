"""A folder of labels as one of FORMATS: `infercam labels … --to FORMAT`. Images go through one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from infercam.engine.common.errors import InputError, StoreError, shown
from infercam.engine.common.progress import JobProgress
from infercam.engine.evaluation.label_folder import LabelFolder
from infercam.engine.evaluation.label_png import read_mask
from infercam.engine.labelling.regions import LabelledImage, regions_of
from infercam.engine.store.mapstore import MapStore
from infercam.trainer.annotations.coco_rle import write_coco
from infercam.trainer.annotations.cvat import write_cvat
from infercam.trainer.annotations.datumaro import write_datumaro
from infercam.trainer.annotations.fiftyone import write_fiftyone
from infercam.trainer.annotations.label_studio import write_label_studio
from infercam.trainer.annotations.yolo import write_yolo
from infercam.trainer.photos.photos import Photos

Write = Callable[[Iterable[LabelledImage], list[str], Path, float], Path]
"""(images, class names, folder, tolerance of polygons in pixels): writes, and says where."""
FORMATS: dict[str, Write] = {
    "coco-rle": write_coco,
    "yolo-seg": write_yolo,
    "label-studio": write_label_studio,
    "fiftyone": write_fiftyone,
    "cvat": write_cvat,
    "datumaro": write_datumaro,
}
TOLERANCE = 1.0


def check_format(fmt: str) -> None:
    """Raises InputError, which lists them, for an unknown format; MissingExtra where it needs a package."""
    if fmt not in FORMATS:
        raise InputError(f"--to is one of {', '.join(FORMATS)}, not {fmt!r}")
    if fmt in ("coco-rle", "fiftyone", "datumaro"):
        from infercam.trainer.annotations.coco_rle import run_lengths

        run_lengths()


def write_annotations(
    labels: Path, store: MapStore, photos: Photos | None, fmt: str, tolerance: float = TOLERANCE
) -> Path:
    """Write the labels of a folder into it, as `fmt`; says where. Photos give the pictures' names (else ID.jpg).

    Images without a label are left out. Raises InputError, StoreError naming the file that cannot be read or written.
    """
    folder = LabelFolder.open(labels)
    try:
        return FORMATS[fmt](_images(folder, store, photos), store.info.classes, labels, tolerance)
    except OSError as e:
        raise StoreError(f"{shown(labels)}: {fmt} cannot be written: {e.strerror or e}") from None


def _images(folder: LabelFolder, store: MapStore, photos: Photos | None) -> Iterator[LabelledImage]:
    ids = [id for id in (store.ids() if photos is None else photos.ids) if id in folder and id in store]
    with JobProgress("annotations", len(ids)) as bar:
        for id in ids:
            label, record = read_mask(folder.file(id)), store.read(id)
            if label.shape != record.maps.shape[1:]:
                raise InputError(f"{shown(folder.file(id))}: of another size than its maps; make it again")
            picture = None if photos is None else photos.path(id)
            suffix = ".jpg" if picture is None else picture.suffix
            regions = regions_of(label, record.classes, record.maps)
            height, width = label.shape
            yield LabelledImage(id, f"{id}{suffix}", height, width, regions, picture)
            bar.advance(1)
