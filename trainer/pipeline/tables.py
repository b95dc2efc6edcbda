"""A table of the settings file as a step's own settings, and what a job's failures are to the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from infercam.engine.common.errors import InputError
from infercam.engine.common.validation import first_problem
from infercam.trainer.photos.job import JobSummary
from infercam.trainer.pipeline.pipeline import Figures

Model = TypeVar("Model", bound=BaseModel)


def checked(cls: type[Model], given: Mapping[str, Any], table: str) -> Model:
    """A table of settings as its model; raises InputError naming the table and the setting."""
    try:
        return cls.model_validate(given)
    except ValidationError as e:
        raise InputError(f"{table}.{first_problem(e)}") from None


def settings_of(make: Callable[..., Any], given: Mapping[str, Any], table: str) -> Any:
    """A stage's settings by its own function; raises InputError naming the table and the setting."""
    try:
        settings = make(None, **given)
    except InputError as e:
        raise InputError(f"{table}.{str(e).partition(': ')[2]}") from None
    if settings.devices > 1:  # Fabric would start this whole command once for each device
        raise InputError(
            f"{table}.devices: a pipeline trains on one; use torchrun with infercam {table} for more"
        )
    return settings


def with_crf_table(settings: dict[str, Any]) -> dict[str, Any]:
    """`crf = true` is the usual dense CRF, `crf = false` none, a table one with other constants."""
    if isinstance(settings.get("crf"), bool):
        return {**settings, "crf": {} if settings["crf"] else None}
    return settings


def failures(job: JobSummary) -> Figures:
    """`failed`, where photos failed; raises SystemExit for a job that a signal stopped."""
    if job.stopped:
        raise SystemExit(128 + job.stopped)
    return {"failed": float(len(job.failures))} if job.failures else {}
