"""`infercam walk`: options; the work is in affinity/pseudo_labels.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infercam.engine.common.options import Changes, options
from infercam.engine.inputs import SourceSettings
from infercam.trainer.affinity.settings import WalkConfig
from infercam.trainer.commands.shared import (
    AcceleratorOption,
    ConfigOption,
    CrfOption,
    FormatOption,
    MapClassesOption,
    MapsArgument,
    PoolOption,
    ThreadsOption,
    report,
)


def register(app: typer.Typer) -> None:
    app.command("walk")(options(walk))


def walk(
    maps: MapsArgument,
    affinity: Annotated[Path, typer.Option(help="Checkpoint of `infercam affinity`, or psa's AffinityNet.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Labels go to OUT/walk and OUT/crf.")],
    source: SourceSettings,
    changes: Annotated[dict[str, Any], Changes(WalkConfig, hide=("crf",))],
    fmt: FormatOption = None,
    classes: MapClassesOption = None,
    crf: CrfOption = None,
    config: ConfigOption = None,
    accelerator: AcceleratorOption = None,
    threads: ThreadsOption = None,
    workers: PoolOption = None,
) -> None:
    """Carry response maps along AffinityNet's affinities: pseudo labels into OUT/walk, after a CRF OUT/crf.

    Run it again to go on: what was made from the same maps, checkpoint and settings is kept. Photos that fail
    are listed in OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.engine.store.open_maps import open_maps
    from infercam.engine.store.output_folder import check_output
    from infercam.trainer.affinity.crf import with_crf
    from infercam.trainer.affinity.pseudo_labels import make_walk
    from infercam.trainer.loop.config import make_config
    from infercam.trainer.photos.job import pool_size
    from infercam.trainer.photos.photos import open_photos

    settings = with_crf(make_config(WalkConfig, config, **changes), crf)
    photos = open_photos(source)
    check_output(out, photos.ends(), [maps])
    done = make_walk(
        open_maps(maps, fmt, classes),
        photos,
        affinity,
        out,
        settings,
        device=accelerator or "auto",
        threads=threads,
        workers=pool_size(workers, settings.crf),
    )
    report(done, "walk", out)
