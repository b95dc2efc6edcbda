"""bench.json: what a benchmark found, as it is written and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infercam.engine.common.errors import InputError
from infercam.engine.common.paths import read_bytes
from infercam.engine.common.validation import first_problem

FILE = "bench.json"


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Spread(_Model):
    """A figure over the rounds."""

    median: float
    low: float
    high: float
    all: list[float]


class ResultRow(_Model):
    """One contestant. What was not measured, or cannot be known here, is null."""

    name: str
    not_measured: str | None = Field(default=None, description="why there are no figures")
    images: int = 0
    rounds: int = 0
    seconds_per_image: Spread | None = None
    images_per_second: float | None = None
    over_baseline: Spread | None = Field(
        default=None, description="over the engine's baseline CAM on the same pictures, round by round"
    )
    cpu_cores: float | None = Field(default=None, description="cores kept busy")
    gpu_busy: float | None = None
    gpu_mb: float | None = None
    peak_mb: float | None = Field(default=None, description="resident memory, most of all rounds")
    network_pixels_per_image: float | None = None
    flop_per_image: float | None = Field(
        default=None, description="counted in the graph; forward passes only"
    )
    rate_share: float | None = Field(default=None, description="of the measured matrix rate")
    miou: float | None = Field(default=None, description="best mIoU over all classes present, 0..1")
    miou_images: int = 0
    backend: str | None = None
    details: dict[str, Any] = {}


class WaterfallStep(_Model):
    """A step of the waterfall."""

    name: str
    not_measured: str | None = None
    seconds_per_image: Spread | None = None
    times_faster: float | None = Field(default=None, description="than the measured step before it")
    times_faster_in_all: float | None = Field(default=None, description="than the first measured step")


class Point(_Model):
    x: float
    seconds: Spread = Field(description="of the whole list")
    peak_mb: float


class Growth(_Model):
    """Time against one thing that grows; seconds ~ x ** exponent."""

    name: Literal["images", "area", "classes", "iterations"]
    what: str
    points: list[Point] = []
    exponent: float | None = None
    error: float | None = Field(default=None, description="standard error of the exponent")
    not_measured: str | None = None


class Subject(_Model):
    """What was measured on: comparisons are between like and like."""

    bundle: str
    bundle_hash: str
    pictures: str
    pictures_digest: str
    images: int
    few: int = Field(description="images for what takes one at a time, and for the waterfall")
    mean_pixels: float
    mean_classes: float


class BenchResult(_Model):
    schema_version: Literal[1] = 1
    date: str
    command: str
    machine: dict[str, Any]
    subject: Subject
    rounds: int
    matrix_rate: dict[str, float] = Field(description="floating-point operations a second, by device")
    rows: list[ResultRow] = []
    waterfall: list[WaterfallStep] = []
    growth: list[Growth] = []
    agreement: dict[str, Any] = Field(default={}, description="the engine's maps against the PyTorch loop's")
    profile: dict[str, dict[str, float]] = Field(
        default={}, description="shares of CPU time by recipe and stage"
    )
    notes: list[str] = []


def read_result(file: Path) -> BenchResult:
    """Raises InputError, one line, where the file is no result of `infercam bench`."""
    try:
        return BenchResult.model_validate_json(read_bytes(file, 64 << 20))
    except ValidationError as e:
        raise InputError(f"{file}: not a result of `infercam bench`: {first_problem(e, 'file')}") from None
