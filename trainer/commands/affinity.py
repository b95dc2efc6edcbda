"""`infercam affinity`: options; the work is in affinity/stage.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infercam.engine.common.options import Changes, options
from infercam.engine.common.progress import stderr
from infercam.engine.inputs import SourceSettings
from infercam.trainer.affinity.settings import AffinityConfig
from infercam.trainer.commands.shared import ConfigOption, RandomOption, SkipOption, WeightsOption, noted


def register(app: typer.Typer) -> None:
    app.command("affinity")(options(affinity))


def affinity(
    labels: Annotated[Path, typer.Argument(help="Affinity labels, PNGs made by `infercam labels`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: best.ckpt and more.")],
    source: SourceSettings,
    changes: Annotated[dict[str, Any], Changes(AffinityConfig)],
    weights: WeightsOption = None,
    random: RandomOption = False,
    classes: Annotated[
        int | None,
        typer.Option(min=1, max=254, help="Object classes of another tool's labels (default: VOC's 20)."),
    ] = None,
    skip_bad_labels: SkipOption = False,
    config: ConfigOption = None,
) -> None:
    """Train AffinityNet: which neighbouring cells of a photo belong together, for `infercam walk`.

    Run it again to go on after a stop. Ends with OUT/best.ckpt.
    """
    from infercam.engine.store.output_folder import check_output
    from infercam.trainer.affinity.settings import affinity_config
    from infercam.trainer.affinity.stage import train_affinity
    from infercam.trainer.photos.photos import open_photos

    settings = affinity_config(config, **changes)
    photos = noted(open_photos(source))
    check_output(out, photos.ends(), [labels])
    done = train_affinity(
        photos,
        labels,
        out,
        settings,
        classes=classes,
        weights=weights,
        random=random,
        skip_bad_labels=skip_bad_labels,
    )
    stderr.print(
        f"{done.checkpoint}: {done.epochs} epochs on {done.photos} photos, loss {done.loss:.3f}, "
        f"{100 * done.accuracy:.1f} % of pairs told rightly, {done.seconds:.0f} s",
        soft_wrap=True,
    )
