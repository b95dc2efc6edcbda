"""`infercam labels`: options; the work is in pseudo_labels.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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

if TYPE_CHECKING:
    from infercam.trainer.affinity.settings import LabelConfig
    from infercam.trainer.photos.job import JobSummary

MapsArgument = Annotated[Path, typer.Argument(help="Map store made by `infercam run`.", show_default=False)]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="psa or irn: MAPS is a folder of that tool (read without running it)."),
]
ClassesOption = Annotated[
    Path | None,
    typer.Option("--classes", help="Class names, for folders of other tools; VOC's if not given."),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML or JSON of settings.")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Processes (default: one a core with a CRF, else none)."),
]


def register(app: typer.Typer) -> None:
    app.command("labels")(labels)


def labels(
    maps: MapsArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the label PNGs.")],
    voc: VocOption = None,
    split: SplitOption = None,
    images: ImagesOption = None,
    coco: CocoOption = None,
    list_file: ListOption = None,
    root: RootOption = None,
    limit: LimitOption = None,
    fmt: FormatOption = None,
    classes: ClassesOption = None,
    kind: Annotated[
        str, typer.Option(help="affinity: for `infercam affinity`. threshold: argmax of [threshold, maps].")
    ] = "affinity",
    low_alpha: Annotated[
        float | None, typer.Option(help="affinity: foreground beyond (1 - max)^this (default 4).")
    ] = None,
    high_alpha: Annotated[
        float | None, typer.Option(help="affinity: background by (1 - max)^this (default 32).")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="threshold: the background's score; see `infercam eval MAPS`.")
    ] = None,
    ignore_between: Annotated[
        tuple[float, float] | None,
        typer.Option(help="threshold: leave open (255) where the highest map lies between these two."),
    ] = None,
    crf: Annotated[
        bool | None, typer.Option("--crf/--no-crf", help="Refine by a dense CRF (default: affinity only).")
    ] = None,
    config: ConfigOption = None,
    workers: WorkersOption = None,
) -> None:
    """Turn response maps into label PNGs: 0 background, 1.. the classes, 255 left open.

    Run it again to go on: what was made from the same maps with the same settings is kept. Photos that fail
    are listed in OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.engine.store.open_maps import open_maps
    from infercam.trainer.affinity.pseudo_labels import make_labels

    given = {
        "low_alpha": low_alpha,
        "high_alpha": high_alpha,
        "threshold": threshold,
        "ignore_between": ignore_between,
    }
    settings = _settings(kind, config, {k: v for k, v in given.items() if v is not None}, crf)
    store = open_maps(maps, fmt, classes)
    source = {
        "voc": voc,
        "split": split,
        "images": images,
        "coco": coco,
        "list_file": list_file,
        "root": root,
    }
    photos = open_photos(**source, limit=limit) if any(v is not None for v in source.values()) else None
    report(make_labels(store, photos, out, settings, workers=pool_size(workers, settings.crf)), "labels", out)


def _settings(kind: str, file: Path | None, changes: dict[str, Any], crf: bool | None) -> LabelConfig:
    from infercam.engine.common.errors import InputError
    from infercam.trainer.affinity.settings import AffinityLabelConfig, ThresholdLabelConfig
    from infercam.trainer.loop.config import make_config

    kinds = {"affinity": AffinityLabelConfig, "threshold": ThresholdLabelConfig}
    if kind not in kinds:
        raise InputError(f"--kind is one of {', '.join(kinds)}, not {kind!r}")
    chosen = kinds[kind]
    for name in changes:
        if name not in chosen.model_fields:
            raise InputError(f"--{name.replace('_', '-')} is not for --kind {kind}")
    if kind == "threshold" and file is None and "threshold" not in changes:
        raise InputError("--kind threshold needs --threshold T; `infercam eval MAPS` tells the best one")
    return with_crf(make_config(chosen, file, **changes), crf)


def with_crf(config: Any, wanted: bool | None) -> Any:
    """Settings whose dense CRF is switched on (constants: the file's, else psa's), off, or as it was (None)."""
    from infercam.trainer.affinity.crf import CrfConfig

    if wanted is None:
        return config
    return config.model_copy(update={"crf": (config.crf or CrfConfig()) if wanted else None})


def pool_size(asked: int | None, crf: object) -> int:
    """Processes: as asked, else one a core where there is a CRF to compute."""
    from infercam.engine.common.cores import available_cores

    if asked is not None:
        return asked
    return available_cores() if crf is not None else 0


def report(done: JobSummary, what: str, out: Path) -> None:
    """One line, and the exit code where something failed or was stopped."""
    from infercam.engine.common.progress import stderr as console

    console.print(done.line(what, out), soft_wrap=True)
    if done.exit_code():
        raise typer.Exit(done.exit_code())
