"""`infercam walk`: options; the work is in pseudo_labels.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infercam.trainer.commands.labels import (
    ClassesOption,
    ConfigOption,
    FormatOption,
    MapsArgument,
    WorkersOption,
    pool_size,
    report,
    with_crf,
)
from infercam.trainer.commands.source_options import (
    CocoOption,
    ImagesOption,
    LimitOption,
    ListOption,
    RootOption,
    SplitOption,
    VocOption,
    open_photos,
)
from infercam.trainer.commands.training_options import AcceleratorOption, ThreadsOption


def register(app: typer.Typer) -> None:
    app.command("walk")(walk)


def walk(
    maps: MapsArgument,
    affinity: Annotated[Path, typer.Option(help="Checkpoint of `infercam affinity`, or psa's AffinityNet.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Labels go to OUT/walk and OUT/crf.")],
    voc: VocOption = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    coco: CocoOption = None,
    list_file: ListOption = None,
    root: RootOption = None,
    limit: LimitOption = None,
    fmt: FormatOption = None,
    classes: ClassesOption = None,
    beta: Annotated[float | None, typer.Option(help="Power of the affinities (default 8).")] = None,
    log2_steps: Annotated[
        int | None, typer.Option(min=0, max=14, help="The walk has 2^this many steps (default 8).")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Background score (1 - max map)^this (default 16).")
    ] = None,
    border: Annotated[
        str | None, typer.Option(help="Pairs at the border: all (default), or those psa's code takes: psa.")
    ] = None,
    least_share: Annotated[
        float | None,
        typer.Option(help="Leave open (255) where the winner has less than this share of the scores."),
    ] = None,
    crf: Annotated[
        bool | None, typer.Option("--crf/--no-crf", help="Also refine by a dense CRF, into OUT/crf.")
    ] = None,
    config: ConfigOption = None,
    accelerator: AcceleratorOption = None,
    threads: ThreadsOption = None,
    workers: WorkersOption = None,
) -> None:
    """Carry response maps along AffinityNet's affinities: pseudo labels into OUT/walk, after a CRF OUT/crf.

    Run it again to go on: what was made from the same maps, checkpoint and settings is kept. Photos that fail
    are listed in OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.engine.store.open_maps import open_maps
    from infercam.trainer.affinity.pseudo_labels import make_walk
    from infercam.trainer.affinity.settings import WalkConfig
    from infercam.trainer.loop.config import make_config

    settings = make_config(
        WalkConfig,
        config,
        beta=beta,
        log2_steps=log2_steps,
        alpha=alpha,
        border=border,
        least_share=least_share,
    )
    settings = with_crf(settings, crf)
    store = open_maps(maps, fmt, classes)
    photos = open_photos(
        voc=voc, split=split, images=images, coco=coco, list_file=list_file, root=root, limit=limit
    )
    done = make_walk(
        store,
        photos,
        affinity,
        out,
        settings,
        device=accelerator or "auto",
        threads=threads,
        workers=pool_size(workers, settings.crf),
    )
    report(done, "walk", out)
