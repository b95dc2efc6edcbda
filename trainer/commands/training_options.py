"""The options that every training command takes beside its own, under the names that StageConfig has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML or JSON of settings (a config.json of an earlier run too)."),
]
EpochsOption = Annotated[int | None, typer.Option(min=1, help="Passes over the photos.")]
BatchOption = Annotated[int | None, typer.Option(min=1, help="Photos a step, on each device.")]
RateOption = Annotated[float | None, typer.Option(help="Learning rate of the pre-trained layers.")]
CropOption = Annotated[int | None, typer.Option(help="Side of the training crops, pixels.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Of everything random.")]
PrecisionOption = Annotated[
    str | None, typer.Option(help="auto (16-mixed on CUDA, else 32), 32, 16-mixed, bf16-mixed.")
]
AcceleratorOption = Annotated[str | None, typer.Option(help="auto, cpu, cuda.")]
DevicesOption = Annotated[
    int | None, typer.Option(min=1, help="Devices of this machine (under torchrun: what it started).")
]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Processes that load photos.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads of the network.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", help="Pre-trained classifier: .safetensors, .pth, or a run's best.ckpt."),
]
RandomOption = Annotated[bool, typer.Option("--random", help="Start from random weights.")]
