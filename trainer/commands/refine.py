"""`infercam refine`: options; the work is in refine/refine.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infercam.engine.common.errors import InputError
from infercam.engine.common.options import options
from infercam.engine.inputs import SourceSettings
from infercam.trainer.commands.shared import (
    AcceleratorOption,
    ConfigOption,
    FormatOption,
    MapClassesOption,
    MapsArgument,
    PoolOption,
    ThreadsOption,
    report,
)


def register(app: typer.Typer) -> None:
    app.command("refine")(options(refine))


def refine(
    maps: MapsArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Map store of the refined maps.")],
    source: SourceSettings,
    saliency: Annotated[Path | None, typer.Option(help="Folder of saliency maps, <id>.png, to fuse.")] = None,
    saliency_rule: Annotated[
        str | None, typer.Option(help="mean, product or share of the classes (default: mean).")
    ] = None,
    affinity: Annotated[
        Path | None, typer.Option(help="Random walk: checkpoint of `infercam affinity`, or psa's.")
    ] = None,
    par: Annotated[bool | None, typer.Option("--par/--no-par", help="Pixel-adaptive refinement.")] = None,
    crf: Annotated[bool | None, typer.Option("--crf/--no-crf", help="Dense CRF.")] = None,
    fmt: FormatOption = None,
    classes: MapClassesOption = None,
    config: ConfigOption = None,
    accelerator: AcceleratorOption = None,
    threads: ThreadsOption = None,
    workers: PoolOption = None,
) -> None:
    """Refine response maps: saliency, AffinityNet's walk, pixel-adaptive refinement, a dense CRF, in this order.

    Constants of each: --config FILE with tables [par], [crf], [walk]. Run it again to go on. Photos that fail are
    listed in OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.engine.store.open_maps import open_maps
    from infercam.engine.store.output_folder import check_output
    from infercam.trainer.affinity.crf import with_crf
    from infercam.trainer.affinity.settings import WalkConfig
    from infercam.trainer.loop.config import make_config
    from infercam.trainer.photos.job import pool_size
    from infercam.trainer.photos.photos import open_photos
    from infercam.trainer.refine.refine import make_refined
    from infercam.trainer.refine.settings import ParConfig, RefineConfig

    if saliency is None and saliency_rule is not None:
        raise InputError("--saliency-rule needs --saliency DIR")
    settings = with_crf(make_config(RefineConfig, config, saliency=saliency_rule), crf)
    ways = {
        "saliency": None if saliency is None else settings.saliency or "mean",
        "walk": None if affinity is None else settings.walk or WalkConfig(),
        "par": settings.par if par is None else (settings.par or ParConfig()) if par else None,
    }
    settings = settings.model_copy(update=ways)
    store = open_maps(maps, fmt, classes)
    photos = None if source == SourceSettings(limit=source.limit) else open_photos(source)
    check_output(out, [] if photos is None else photos.ends(), [maps, saliency])
    done = make_refined(
        store,
        photos,
        out,
        settings,
        saliency=saliency,
        affinity=affinity,
        device=accelerator or "auto",
        threads=threads,
        workers=pool_size(workers, settings.crf),
    )
    report(done, "refine", out)
