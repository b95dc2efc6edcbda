"""What `infercam classify` is given: the photos and labels that are named, or the demo's own scenes."""

from __future__ import annotations

from pathlib import Path

from infercam.engine.common.errors import InputError
from infercam.engine.demo.scenes import CLASS_NAMES
from infercam.engine.inputs import SourceSettings
from infercam.engine.store.output_folder import check_output
from infercam.trainer.classify.scene_tree import TRAIN_SEED, VALIDATION_SEED, scene_tree
from infercam.trainer.classify.settings import DemoSettings, HeldOutSettings
from infercam.trainer.photos.photos import Photos, class_names, open_photos

Inputs = tuple[list[str], Photos, Photos | None]


def open_inputs(
    out: Path,
    source: SourceSettings,
    held_out: HeldOutSettings,
    demo: DemoSettings,
    labels: str | None,
    classes: Path | None,
) -> Inputs:
    """Class names, training photos, and validation photos if any are named; the demo's scenes are drawn below `out`.

    Raises InputError for what cannot be used or does not go together.
    """
    if demo.demo:
        named = source != SourceSettings(limit=source.limit)
        if named or labels or held_out.val_split or held_out.val_list or classes:
            raise InputError("--demo draws its own images; give no other source, labels or classes")
        return (
            list(CLASS_NAMES),
            _scenes(out / "scenes" / "train", demo.scenes, TRAIN_SEED),
            _scenes(out / "scenes" / "val", demo.val_scenes, VALIDATION_SEED),
        )
    names = class_names(classes, labels)
    photos = open_photos(source, labels, names)
    check_output(out, photos.ends(), [labels])
    return names, photos, _held_out(source, held_out, labels, names)


def _scenes(folder: Path, count: int, seed: int) -> Photos:
    tree = scene_tree(folder, count, seed)
    return open_photos(SourceSettings(voc=tree, split="train"), tree / "labels.json", CLASS_NAMES)


def _held_out(
    source: SourceSettings, asked: HeldOutSettings, labels: str | None, names: list[str]
) -> Photos | None:
    if asked.val_split is not None:
        return open_photos(SourceSettings(voc=source.voc, split=asked.val_split), labels, names)
    if asked.val_list is not None:
        root = source.root or source.voc
        return open_photos(SourceSettings(list_file=asked.val_list, root=root), labels, names)
    return None
