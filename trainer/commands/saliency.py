"""`infercam saliency`: options; the work is in saliency/saliency.py and, with a network, saliency/learned.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from infercam.engine.common.errors import InputError
from infercam.engine.common.options import Changes, options
from infercam.engine.common.progress import stderr
from infercam.engine.inputs import SourceSettings
from infercam.trainer.commands.shared import AcceleratorOption, ConfigOption, ThreadsOption, report
from infercam.trainer.saliency.settings import SaliencyModelConfig


def register(app: typer.Typer) -> None:
    app.command("saliency")(options(saliency))


def saliency(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the saliency maps, <id>.png.")],
    source: SourceSettings,
    changes: Annotated[dict[str, Any], Changes(SaliencyModelConfig)],
    model: Annotated[
        str | None,
        typer.Option(help="Trained salient-object network: an ONNX file, or a model that rembg has fetched."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="With --model: photos a run (default 4; a graph may fix it).")
    ] = None,
    accelerator: AcceleratorOption = None,
    threads: ThreadsOption = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="ImageNet classifier whose features tell superpixels apart (else colour alone)."),
    ] = None,
    arch: Annotated[str, typer.Option(help="Its architecture.")] = "mobilenetv2",
    config: ConfigOption = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes (default: one a core).")] = None,
) -> None:
    """Saliency maps: by a trained network (--model), or from photos alone: no masks, labels or saliency data set.

    8-bit PNGs, 0 background to 255 salient. Run it again to go on. Photos that fail are listed in
    OUT/failures.jsonl; the rest goes on, and the exit code is 1.
    """
    from infercam.engine.store.output_folder import check_output
    from infercam.trainer.loop.config import make_config
    from infercam.trainer.photos.job import pool_size
    from infercam.trainer.photos.photos import open_photos

    given = {**changes, "batch": batch, "accelerator": accelerator, "threads": threads}
    _check_kind(model, given, {"weights": weights, "workers": workers})
    photos = open_photos(source)
    check_output(out, photos.ends(), [model])
    if model is None:
        from infercam.trainer.saliency.saliency import SaliencyConfig, make_saliency

        settings = make_config(SaliencyConfig, config)
        how: dict[str, Any] = {"weights": weights, "arch": arch, "workers": pool_size(workers, settings)}
        report(make_saliency(photos, out, settings, **how), "saliency", out)
        return
    from infercam.trainer.saliency.learned import BATCH, make_learned_saliency
    from infercam.trainer.saliency.network import SaliencyNetwork, model_file

    file = model_file(model)
    asked = make_config(SaliencyModelConfig, config, **changes)
    where: Any = accelerator or "auto"
    network = SaliencyNetwork(file, asked, accelerator=where, threads=threads)
    if network.note:
        stderr.print(f"note: {network.note}", soft_wrap=True)
    report(make_learned_saliency(photos, out, network, file, batch=batch or BATCH), "saliency", out)


def _check_kind(model: str | None, of_model: dict[str, Any], of_superpixels: dict[str, Any]) -> None:
    """Options of the other kind of saliency are an error, not ignored."""
    wrong = of_model if model is None else of_superpixels
    name = next((name for name, value in wrong.items() if value is not None), None)
    if name is not None:
        raise InputError(f"--{name} {'needs' if model is None else 'is not for'} --model")
