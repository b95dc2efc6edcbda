"""The settings of a pipeline: one TOML file, a table for each step. A step without its table is left out.

    [data]      voc, split (or images, or list and root), labels, classes, limit; val_split
    [classify]  weights, random, validate, and the settings of `infercam classify`   (or [maps] bundle = …)
    [maps]      bundle, recipe, mode, backend, threads, set = {constant = value}
    [labels]    the settings of `infercam labels`: kind, crf, …
    [affinity]  weights, random, and the settings of `infercam affinity`
    [walk]      the settings of `infercam walk`, whose CRF is on unless crf = false; device, threads, workers
    [saliency]  weights, arch, and the settings of `infercam saliency`   (or [segment] saliency = a folder)
    [segment]   weights, random, saliency, and the settings of `infercam segment`
    [test]      the settings of `infercam segment-test`; needs data.val_split

Paths are relative to the file. `weights = "classify"` takes those of the classifier that the pipeline trained.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from infercam.engine.common.errors import InputError
from infercam.engine.common.validation import first_problem
from infercam.engine.inputs import SourceSettings
from infercam.engine.method.recipe import MODES, recipe


def _from_file(value: Any, info: ValidationInfo) -> Any:
    """A path as written in the file, relative to it."""
    base = (info.context or {}).get("base")
    return base / value if base is not None and isinstance(value, str) else value


File = Annotated[Path, BeforeValidator(_from_file)]
CLASSIFY = "classify"


def _weights(value: Any, info: ValidationInfo) -> Any:
    return value if value == CLASSIFY else _from_file(value, info)


Weights = Annotated[Literal["classify"] | Path, BeforeValidator(_weights)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Open(_Table):
    """A table whose other names are settings of the step, checked by the step's own model."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DataTable(_Table):
    """Which photos; see `infercam run` for the sources."""

    voc: File | None = None
    split: str | None = None
    images: File | None = None
    list: File | None = None
    root: File | None = None
    labels: Annotated[
        Path | Literal["voc-xml"], BeforeValidator(lambda v, i: v if v == "voc-xml" else _from_file(v, i))
    ]
    classes: File | None = None
    limit: int | None = Field(default=None, ge=1)
    val_split: str | None = Field(default=None, description="of the VOC tree: what [test] scores")

    def source(self) -> SourceSettings:
        """Where the photos are."""
        return SourceSettings(
            images=self.images,
            voc=self.voc,
            split=self.split,
            list_file=self.list,
            root=self.root,
            limit=self.limit,
        )

    def folders(self) -> tuple[Path, ...]:
        """Where the photos lie: what nothing may be written to."""
        return tuple(folder for folder in (self.voc, self.images, self.root) if folder is not None)


class ClassifyTable(_Open):
    weights: File | None = None
    random: bool = False
    validate_: bool = Field(default=False, alias="validate", description="mAP on data.val_split each epoch")


class MapsTable(_Table):
    bundle: File | None = Field(default=None, description="None: of [classify]")
    recipe: str = "released"
    mode: str = "both"
    backend: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    set: dict[str, Any] = Field(default_factory=dict, description="constants of the recipe, changed")


class LabelsTable(_Open):
    workers: int | None = Field(default=None, ge=0, description="processes; None: one a core with a CRF")


class AffinityTable(_Open):
    weights: Weights | None = None
    random: bool = False


class _Inference(_Open):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    workers: int | None = Field(default=None, ge=0, description="processes; None: one a core with a CRF")


class WalkTable(_Inference):
    crf: bool | dict[str, Any] = Field(default=True, description="refine by a dense CRF; a table changes it")


class TestTable(_Inference):
    """Everything else is of SegmentTestConfig."""


class SaliencyTable(_Open):
    weights: Weights | None = None
    arch: str = "mobilenetv2"
    workers: int = Field(default=0, ge=0)


class SegmentTable(_Open):
    weights: Weights | None = None
    random: bool = False
    saliency: File | None = Field(default=None, description="folder of PNGs (None: of [saliency], if any)")


class PipelineConfig(_Table):
    """See the module."""

    data: DataTable
    classify: ClassifyTable | None = None
    maps: MapsTable = Field(default_factory=MapsTable)
    labels: LabelsTable | None = None
    affinity: AffinityTable | None = None
    walk: WalkTable | None = None
    saliency: SaliencyTable | None = None
    segment: SegmentTable | None = None
    test: TestTable | None = None


NEEDS = (
    ("affinity", "labels", "AffinityNet is trained on labels"),
    ("walk", "affinity", "the random walk needs an AffinityNet"),
    ("segment", "labels", "DeepLab is trained on labels"),
    ("test", "segment", "there is no network to test"),
)


def read_pipeline(file: Path) -> PipelineConfig:
    """The settings of a TOML file; raises InputError, one line, naming the table and the name."""
    try:
        raw = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(f"{file}: cannot be read as TOML: {e}") from None
    try:
        config = PipelineConfig.model_validate(raw, context={"base": Path(file).parent})
    except ValidationError as e:
        problem = first_problem(e, "settings", hide=("Path", "function-before"))
        raise InputError(f"{file}: {problem}") from None
    _check(config, file)
    return config


def _check(config: PipelineConfig, file: Path) -> None:
    """What concerns several tables."""
    for table, needed, why in NEEDS:
        if getattr(config, table) is not None and getattr(config, needed) is None:
            raise InputError(f"{file}: [{table}] without [{needed}]: {why}")
    if (config.classify is None) == (config.maps.bundle is None):
        raise InputError(f"{file}: give [classify], or [maps] bundle = a folder, and not both")
    held_out = config.data.voc is not None and config.data.val_split is not None
    if config.test is not None and not held_out:
        raise InputError(f"{file}: [test] needs data.voc and data.val_split")
    if config.classify is not None and config.classify.validate_ and not held_out:
        raise InputError(f"{file}: classify.validate needs data.voc and data.val_split")
    if config.maps.mode not in MODES:
        raise InputError(f"{file}: maps.mode: no mode {config.maps.mode!r}; there are: {', '.join(MODES)}")
    recipe(config.maps.recipe, **config.maps.set)
    for name in ("affinity", "saliency", "segment"):
        table = getattr(config, name)
        if table is not None and table.weights == CLASSIFY and config.classify is None:
            raise InputError(f'{file}: {name}.weights = "classify", but there is no [classify]')
