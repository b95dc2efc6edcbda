"""`infercam labels`: options; the work is in affinity/pseudo_labels.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infercam.engine.common.options import Changes, options
from infercam.engine.common.progress import stderr
from infercam.engine.inputs import SourceSettings
from infercam.trainer.affinity.settings import AffinityLabelConfig, label_config
from infercam.trainer.commands.shared import (
    ConfigOption,
    CrfOption,
    FormatOption,
    MapClassesOption,
    MapsArgument,
    PoolOption,
    report,
)


def register(app: typer.Typer) -> None:
    app.command("labels")(options(labels))


def labels(
    maps: MapsArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the label PNGs.")],
    source: SourceSettings,
    alphas: Annotated[dict[str, Any], Changes(AffinityLabelConfig, hide=("kind", "crf"))],
    fmt: FormatOption = None,
    classes: MapClassesOption = None,
    kind: Annotated[
        str, typer.Option(help="affinity: for `infercam affinity`. threshold: argmax of [threshold, maps].")
    ] = "affinity",
    threshold: Annotated[
        float | None, typer.Option(help="threshold: the background's score; see `infercam eval MAPS`.")
    ] = None,
    ignore_between: Annotated[
        tuple[float, float] | None,
        typer.Option(help="threshold: leave open (255) where the highest map lies between these two."),
    ] = None,
    crf: CrfOption = None,
    config: ConfigOption = None,
    workers: PoolOption = None,
    to: Annotated[
        str | None,
        typer.Option(help="Also as: coco-rle, yolo-seg, label-studio, fiftyone, cvat, datumaro (into OUT)."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="With --to: pixels that a polygon's border may move by.")
    ] = 1.0,
) -> None:
    """Turn response maps into label PNGs: 0 background, 1.. the classes, 255 left open.

    Run it again to go on: what was made from the same maps with the same settings is kept. Photos that fail
    are listed in OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.engine.store.open_maps import open_maps
    from infercam.engine.store.output_folder import check_output
    from infercam.trainer.affinity.crf import with_crf
    from infercam.trainer.affinity.pseudo_labels import make_labels
    from infercam.trainer.annotations.write import check_format, write_annotations
    from infercam.trainer.photos.job import pool_size
    from infercam.trainer.photos.photos import open_photos

    if to is not None:
        check_format(to)
    given = {"threshold": threshold, "ignore_between": ignore_between}
    changes = {**alphas, **{k: v for k, v in given.items() if v is not None}}
    settings = with_crf(label_config(kind, config, **changes), crf)
    store = open_maps(maps, fmt, classes)
    photos = None if source == SourceSettings(limit=source.limit) else open_photos(source)
    check_output(out, [] if photos is None else photos.ends(), [maps])
    done = make_labels(store, photos, out, settings, workers=pool_size(workers, settings.crf))
    if to is not None and not done.stopped:
        file = write_annotations(out, store, photos, to, tolerance)
        stderr.print(f"{to}: {file}", soft_wrap=True)
    report(done, "labels", out)
