"""`infercam segment-test`: options; the work is in segment/predict.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infercam.engine.common.errors import InputError
from infercam.engine.common.options import Changes, options
from infercam.engine.inputs import SourceSettings
from infercam.trainer.commands.shared import (
    AcceleratorOption,
    ConfigOption,
    CrfOption,
    PoolOption,
    ThreadsOption,
    report,
)
from infercam.trainer.segment.settings import SegmentTestConfig

COMPETITIONS = ("comp5", "comp6")


def register(app: typer.Typer) -> None:
    app.command("segment-test")(options(segment_test))


def segment_test(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="best.ckpt of `infercam segment`, or a published DeepLab.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the label PNGs.")],
    source: SourceSettings,
    changes: Annotated[dict[str, Any], Changes(SegmentTestConfig, hide=("crf",))],
    crf: CrfOption = None,
    submission: Annotated[
        Path | None, typer.Option(help="Also write the folder and archive for VOC's server to this folder.")
    ] = None,
    competition: Annotated[
        str, typer.Option(help="comp5 (VOC's photos only) or comp6 (others too), for --submission.")
    ] = "comp6",
    classes: Annotated[
        Path | None, typer.Option("--classes", help="Class names, one a line (default: VOC's).")
    ] = None,
    output_stride: Annotated[
        int | None, typer.Option("--output-stride", help="Of a published DeepLab: 8 (default) or 16.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the scores to this file.")] = None,
    config: ConfigOption = None,
    accelerator: AcceleratorOption = None,
    threads: ThreadsOption = None,
    workers: PoolOption = None,
) -> None:
    """Label photos with a trained DeepLab; score the labels where every photo has a ground truth.

    Run it again to go on: what the same checkpoint made with the same settings is kept. Photos that fail are
    listed in OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.engine.data.class_names import read_classes
    from infercam.engine.evaluation.tables import print_labels
    from infercam.engine.store.output_folder import check_output
    from infercam.trainer.affinity.crf import with_crf
    from infercam.trainer.loop.config import make_config
    from infercam.trainer.photos.job import pool_size
    from infercam.trainer.photos.photos import open_photos
    from infercam.trainer.segment.predict import score_photos, segment_photos, write_submission

    if competition not in COMPETITIONS:
        raise InputError(f"--competition is {' or '.join(COMPETITIONS)}, not {competition!r}")
    settings = with_crf(make_config(SegmentTestConfig, config, **changes), crf)
    photos = open_photos(source)
    check_output(out, photos.ends())
    if submission is not None:
        check_output(submission, photos.ends(), option="--submission")
    done = segment_photos(
        photos,
        checkpoint,
        out,
        settings,
        class_names=None if classes is None else read_classes(classes),
        output_stride=output_stride,
        device=accelerator or "auto",
        threads=threads,
        workers=pool_size(workers, settings.crf),
    )
    report(done, "segment-test", out)
    scored = score_photos(photos, out, source.split or "all")
    if scored is not None:
        print_labels(scored, json_file)
    elif json_file is not None:
        raise InputError("--json: nothing to write, the photos have no ground truth")
    if submission is not None:
        archive = write_submission(photos, out, submission, f"{competition}_test_cls")
        typer.echo(f"for VOC's evaluation server: {archive}")
