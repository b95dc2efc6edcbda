"""`infercam saliency`: options; the work is in saliency/saliency.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infercam.engine.common.options import options
from infercam.engine.inputs import SourceSettings
from infercam.trainer.commands.shared import ConfigOption, report


def register(app: typer.Typer) -> None:
    app.command("saliency")(options(saliency))


def saliency(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the saliency maps, <id>.png.")],
    source: SourceSettings,
    weights: Annotated[
        Path | None,
        typer.Option(help="ImageNet classifier whose features tell superpixels apart (else colour alone)."),
    ] = None,
    arch: Annotated[str, typer.Option(help="Its architecture.")] = "mobilenetv2",
    config: ConfigOption = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes (default: one a core).")] = None,
) -> None:
    """Saliency maps from photos alone: no masks, no image labels, no saliency data set.

    8-bit PNGs, 0 background to 255 salient. Run it again to go on. Photos that fail are listed in
    OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.engine.store.output_folder import check_output
    from infercam.trainer.loop.config import make_config
    from infercam.trainer.photos.job import pool_size
    from infercam.trainer.photos.photos import open_photos
    from infercam.trainer.saliency.saliency import SaliencyConfig, make_saliency

    photos = open_photos(source)
    check_output(out, photos.ends())
    settings = make_config(SaliencyConfig, config)
    done = make_saliency(
        photos, out, settings, weights=weights, arch=arch, workers=pool_size(workers, settings)
    )
    report(done, "saliency", out)
