"""TensorRT plans on disk: what one was made of, whether it fits here, and where it lies.

    BUNDLE/plans/KEY/          or CACHE/KEY/: `--cache`, or the folder that INFERCAM_PLANS names
      plan.engine              what TensorRT wrote
      plan.json                PlanRecord: validated and hash-checked before the plan is touched
      report.json              how it compares with ONNX Runtime (export/compare.py)
    BUNDLE/plans/rejected/KEY/ a plan that missed the tolerance: never loaded

A plan is code for one version of one runtime, made from one graph: TensorRT's for one GPU, TensorRT-RTX's for cards
of some compute capabilities, compiled to the end where it is loaded. Where any of these differs, or the file is not
the one that was recorded, it is not loaded. Several plans stand side by side.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from infercam.engine.bundle import Bundle, FileEntry, sha256_file
from infercam.engine.common.errors import BackendError
from infercam.engine.common.paths import os_reason, regular_bytes
from infercam.engine.common.validation import first_problem
from infercam.engine.device.runner import InputType

PLANS = "plans"
ENVIRONMENT_FOLDER = "INFERCAM_PLANS"
REJECTED = "rejected"
PLAN_FILE = "plan.engine"
RECORD_FILE = "plan.json"
REPORT_FILE = "report.json"
SCHEMA_VERSION = 2  # 2: runtime, targets; what 1 lacks has defaults
RECORD_BYTES = 16 << 20  # far more than any; a record is read whole

RuntimeKind = Literal["tensorrt", "tensorrt-rtx"]
RUNTIMES: dict[RuntimeKind, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""How messages call them."""
Target = Annotated[str, Field(pattern=r"^sm[1-9][0-9]{1,2}$")]
"""A compute capability as TensorRT-RTX names it: sm86 is 8.6."""
Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Side = Annotated[int, Field(gt=0)]
Shape = tuple[Side, Side, Side]
"""Views in the batch, network height, network width."""


class PlanError(BackendError):
    """No plan that fits, or one that cannot be trusted; the text says why and what to do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Profile(_Strict):
    """Shapes that a plan takes: any between `smallest` and `largest`, fastest at `best`."""

    smallest: Shape
    best: Shape
    largest: Shape

    @model_validator(mode="after")
    def _check(self) -> Profile:
        for low, best, high in zip(self.smallest, self.best, self.largest, strict=True):
            if not low <= best <= high:
                raise ValueError(f"{self.smallest} <= {self.best} <= {self.largest} does not hold")
        return self

    def takes(self, shape: Shape) -> bool:
        bounds = zip(self.smallest, shape, self.largest, strict=True)
        return all(low <= side <= high for low, side, high in bounds)

    def __str__(self) -> str:
        return (
            f"{self.smallest[0]}-{self.largest[0]} views of {_size(self.smallest)} to {_size(self.largest)}"
        )


def _size(shape: Shape) -> str:
    return f"{shape[1]}x{shape[2]}"


def pixels(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def pick_profile(profiles: Sequence[Profile], shape: Shape) -> int | None:
    """Position of the profile to run a shape in: of those that take it, the one tuned nearest to its number of
    pixels; None where none takes it."""
    fitting = [i for i, p in enumerate(profiles) if p.takes(shape)]
    return min(fitting, key=lambda i: abs(log(pixels(shape) / pixels(profiles[i].best))), default=None)


class PlanOptions(_Strict):
    """How a plan is built, beside its precision and profiles."""

    version_compatible: bool = False
    """Runs on later TensorRT versions of the same major one, with the lean runtime."""
    hardware_compatible: bool = False
    """Runs on every GPU of compute capability 8.0 or later."""
    stripped: bool = False
    """Holds no weights; they come from the bundle's graph when the plan is loaded."""
    refittable: bool = False
    """Other weights of the same graph can be put in (a classifier trained again) without building anew."""
    workspace_mb: int | None = Field(default=None, gt=0)
    """Most scratch memory of one layer; None: all there is."""

    @property
    def portable(self) -> bool:
        """Made for more than this machine, so slower on it."""
        return self.version_compatible or self.hardware_compatible

    @model_validator(mode="after")
    def _check(self) -> PlanOptions:
        if self.stripped and self.version_compatible:
            raise ValueError(
                "a stripped plan needs the full TensorRT to get its weights, a version-compatible one "
                "runs on the lean runtime: take one of the two"
            )
        return self


class Maker(NamedTuple):
    """What builds a plan, and for which cards."""

    runtime: RuntimeKind
    version: str
    gpu: str = ""
    """Of TensorRT, which builds on the GPU that the plan is for."""
    compute_capability: tuple[int, int] = (0, 0)
    targets: tuple[str, ...] = ()
    """Of TensorRT-RTX; none: every card that it supports from compute 8.0 on, later ones too."""

    @property
    def cards(self) -> str:
        """What the plan is for, in words."""
        if self.runtime == "tensorrt":
            return f"{self.gpu} (compute {_dotted(self.compute_capability)})"
        return f"compute {', '.join(map(_dotted, map(_capability, self.targets))) or '8.0, 8.6, 8.9, 12.0 and later'}"

    def made_for(self, capability: tuple[int, int]) -> bool:
        """Whether a TensorRT-RTX plan runs on cards of that compute capability (9.0 to 11.x: never)."""
        if not self.targets:
            return capability in ((8, 0), (8, 6), (8, 9)) or capability >= (12, 0)
        return capability in map(_capability, self.targets)


def _capability(target: str) -> tuple[int, int]:
    """sm120 is 12.0."""
    number = int(target.removeprefix("sm"))
    return number // 10, number % 10


class Environment(NamedTuple):
    """What a plan must fit: the GPU, and the version of each TensorRT package (None: not installed)."""

    gpu: str
    compute_capability: tuple[int, int]
    tensorrt: str | None
    lean: str | None = None
    """Of `tensorrt_lean`, the small runtime that runs version-compatible plans."""
    rtx: str | None = None
    """Of `tensorrt_rtx`."""


class PlanRecord(_Strict):
    """plan.json."""

    schema_version: int = SCHEMA_VERSION
    created: str = Field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"))
    runtime: RuntimeKind = "tensorrt"
    precision: Precision
    input_type: InputType
    bundle: str = Field(description="name of the bundle it was made from")
    bundle_hash: Hash
    onnx_sha256: Hash
    structure: Hash | None = Field(default=None, description="hash of the graph without its weights")
    profiles: list[Profile] = Field(min_length=1)
    options: PlanOptions = Field(default_factory=PlanOptions)
    tensorrt: str = Field(description="version of the runtime's package")
    gpu: str = Field(default="", description="that TensorRT built it on and for; empty for TensorRT-RTX")
    compute_capability: tuple[int, int] = Field(default=(0, 0), description="of that GPU")
    targets: tuple[Target, ...] = Field(
        default=(), description="cards that TensorRT-RTX built it for; none: all from compute 8.0 on"
    )
    plan: FileEntry

    @model_validator(mode="after")
    def _check(self) -> PlanRecord:
        if self.runtime == "tensorrt" and (self.targets or not self.gpu):
            raise ValueError("a TensorRT plan is for one GPU, not for targets")
        if self.runtime == "tensorrt-rtx" and self.gpu:
            raise ValueError("a TensorRT-RTX plan is for targets, not for one GPU")
        return self

    @property
    def maker(self) -> Maker:
        return Maker(self.runtime, self.tensorrt, self.gpu, self.compute_capability, self.targets)

    @property
    def key(self) -> str:
        return plan_key(self.onnx_sha256, self.precision, self.profiles, self.options, self.maker)


def plan_key(
    onnx_sha256: str, precision: str, profiles: list[Profile], options: PlanOptions, maker: Maker
) -> str:
    """Identity of a build: 32 hexadecimal digits; anything that could change the plan changes it."""
    made_of = {
        "schema": 1,  # of this dictionary
        "onnx": onnx_sha256,
        "precision": precision,
        "profiles": [p.model_dump() for p in profiles],
        "options": options.model_dump(),
        "tensorrt": maker.version,
    }
    if maker.runtime == "tensorrt":
        made_of |= {"gpu": maker.gpu, "compute_capability": maker.compute_capability}
    else:
        made_of |= {"runtime": maker.runtime, "targets": maker.targets}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Plan:
    """A plan's folder and its record, which has been validated; the plan itself is checked by `read`."""

    folder: Path
    record: PlanRecord

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read and validate plan.json; raises PlanError naming the file."""
        return cls(folder, _read_record(folder / RECORD_FILE))

    def read(self) -> bytes:
        """The serialised plan, after its size and SHA-256 have been compared with the record's."""
        file = self.folder / PLAN_FILE
        entry = self.record.plan
        try:
            data = regular_bytes(file, max(entry.size, 1 << 30))
        except OSError as e:
            raise PlanError(f"{file}: cannot be read: {os_reason(e)}; build it again") from None
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise PlanError(f"{file}: damaged (SHA-256 differs from {RECORD_FILE}); build it again")
        return data

    def intact(self) -> bool:
        """Whether the plan's file is the one that was recorded; reads it once."""
        file = self.folder / PLAN_FILE
        entry = self.record.plan
        try:
            return file.stat().st_size == entry.size and sha256_file(file) == entry.sha256
        except OSError:
            return False


def _read_record(file: Path) -> PlanRecord:
    try:
        raw = json.loads(regular_bytes(file, RECORD_BYTES))
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise PlanError(f"{file}: made by a newer infercam; build the plan again")
        return PlanRecord.model_validate(raw)
    except OSError as e:
        raise PlanError(f"{file}: cannot be read: {os_reason(e)}") from None
    except ValidationError as e:
        raise PlanError(f"{file}: {first_problem(e, 'record')}; build the plan again") from None
    except (ValueError, RecursionError) as e:
        raise PlanError(f"{file}: not a plan's record ({e}); build the plan again") from None


def misfit(record: PlanRecord, bundle: Bundle, environment: Environment) -> str | None:
    """Why a plan must not be used for this bundle here, in a few words; None if it may."""
    return (
        graph_misfit(record, bundle) or runtime_misfit(record, environment) or gpu_misfit(record, environment)
    )


def graph_misfit(record: PlanRecord, bundle: Bundle) -> str | None:
    """Why a plan is not this bundle's, wherever it is to run; None if it is."""
    if graph_of(record.precision) not in bundle.manifest.graphs:
        return f"made from a {graph_of(record.precision)} graph, which the bundle has not"
    if graph_hash(bundle, record.precision) != record.onnx_sha256:
        return f"made from another {graph_of(record.precision)} graph (of bundle {record.bundle!r})"
    if record.bundle_hash != bundle.hash:
        return f"made for another bundle ({record.bundle!r}): its classes or its preprocessing differ"
    return None


def runtime_misfit(record: PlanRecord, environment: Environment) -> str | None:
    """Why no installed TensorRT can run the plan; None if one can."""
    if record.runtime == "tensorrt-rtx":
        if environment.rtx is None:
            return "needs TensorRT-RTX, which is not installed: pip install 'infercam[rtx]'"
        same = record.tensorrt == environment.rtx
        return None if same else f"made by TensorRT-RTX {record.tensorrt}, here is {environment.rtx}"
    if not record.options.version_compatible:
        if environment.tensorrt is None:
            return "needs TensorRT, which is not installed: pip install 'infercam[gpu]'"
        same = record.tensorrt == environment.tensorrt
        return None if same else f"made by TensorRT {record.tensorrt}, here is {environment.tensorrt}"
    if environment.lean is None:
        return "needs TensorRT's lean runtime, which is not installed: pip install 'infercam[lean]'"
    made, here = _version(record.tensorrt), _version(environment.lean)
    if made[0] != here[0] or made > here:
        return f"runs on TensorRT {record.tensorrt} to the last {made[0]}.x, the lean runtime is {environment.lean}"
    return None


def gpu_misfit(record: PlanRecord, environment: Environment) -> str | None:
    """Why this GPU cannot run the plan; None if it can."""
    here = f"{environment.gpu} (compute {_dotted(environment.compute_capability)})"
    maker = record.maker
    if record.runtime == "tensorrt-rtx":
        fits = maker.made_for(environment.compute_capability)
        return None if fits else f"made for {maker.cards}, here is {here}"
    if record.options.hardware_compatible:
        return (
            None
            if environment.compute_capability >= (8, 0)
            else f"made for compute 8.0 or later, here is {here}"
        )
    if (record.gpu, record.compute_capability) != (environment.gpu, environment.compute_capability):
        return f"made for {maker.cards}, here is {here}"
    return None


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _version(text: str) -> tuple[int, int]:
    """Major and minor; zeros for what is no number, so that an odd version fits nothing."""
    parts = [int(p) if p.isdigit() else 0 for p in text.split(".")]
    return (parts[0], parts[1]) if len(parts) > 1 else (parts[0], 0)


def graph_of(precision: str) -> str:
    """Which of the bundle's graphs a precision is made from: TF32 is a way to compute the fp32 graph."""
    return "fp32" if precision == "tf32" else precision


def graph_hash(bundle: Bundle, precision: str) -> str:
    """SHA-256 of the graph that a precision is made from, weights in a file beside it included."""
    m = bundle.manifest
    name = m.graphs[graph_of(precision)]
    beside = sorted(f for f in m.files if f.startswith(f"{name}."))
    if not beside:
        return m.files[name].sha256
    return hashlib.sha256("".join(m.files[f].sha256 for f in [name, *beside]).encode()).hexdigest()


def plans_folder(bundle: Bundle, cache: str | os.PathLike[str] | None = None) -> Path:
    """Where the bundle's plans lie: `cache`, else where the environment says, else in the bundle."""
    elsewhere = cache or os.environ.get(ENVIRONMENT_FOLDER)
    return Path(elsewhere) if elsewhere else bundle.path / PLANS


class Found(NamedTuple):
    """A plan's folder as `list_plans` sees it: the plan, and why it cannot be used (None: it can)."""

    folder: Path
    plan: Plan | None
    problem: str | None


def list_plans(
    bundle: Bundle, environment: Environment, cache: str | os.PathLike[str] | None = None
) -> list[Found]:
    """Every plan beside the bundle (or in `cache`), newest first, those that cannot be read last."""
    found = [_examine(folder, bundle, environment) for folder in _folders(plans_folder(bundle, cache))]
    return sorted(
        found, key=lambda f: (f.plan is not None, f.plan.record.created if f.plan else ""), reverse=True
    )


def _folders(root: Path) -> Iterator[Path]:
    """Folders of plans; unfinished ones have hidden names."""
    try:
        names = sorted(p for p in root.iterdir() if not p.name.startswith(".") and p.name != REJECTED)
    except OSError:
        return
    yield from (p for p in names if p.is_dir())


def _examine(folder: Path, bundle: Bundle, environment: Environment) -> Found:
    try:
        plan = Plan.load(folder)
    except PlanError as e:
        return Found(folder, None, str(e))
    return Found(folder, plan, misfit(plan.record, bundle, environment))


def find_plan(
    bundle: Bundle,
    precision: str | None,
    environment: Environment,
    cache: str | os.PathLike[str] | None = None,
    runtime: RuntimeKind = "tensorrt",
) -> Plan:
    """The runtime's newest plan of that precision (None: of any) that fits; one made for this very GPU goes first.

    Raises PlanError saying why none does: there is none, or what is wrong with those there are.
    """
    root = plans_folder(bundle, cache)
    build = build_command(bundle, precision, runtime, environment.compute_capability)
    found = list_plans(bundle, environment, cache)
    every = [f for f in found if f.plan is None or f.plan.record.runtime == runtime]
    if not every:
        raise PlanError(f"{root}: no {RUNTIMES[runtime]} plan; make one with: {build}")
    wanted = [f for f in every if f.plan is None or precision in (None, f.plan.record.precision)]
    fitting = [f.plan for f in wanted if f.plan is not None and f.problem is None]
    if fitting:
        return min(fitting, key=lambda p: p.record.options.portable)  # the newest of those
    if not wanted:
        have = ", ".join(sorted({f.plan.record.precision for f in every if f.plan is not None}))
        raise PlanError(f"{root}: no {precision} plan (there are: {have}); make one with: {build}")
    first, more = wanted[0], len(wanted) - 1
    others = f" (and {more} more that do not fit)" if more else ""
    raise PlanError(f"{first.folder}: {first.problem}{others}; make one with: {build}")


def build_command(
    bundle: Bundle,
    precision: str | None = None,
    runtime: RuntimeKind = "tensorrt",
    capability: tuple[int, int] | None = None,
) -> str:
    """What makes such a plan, for a card of that compute capability. Without a precision the command takes fp16, of
    which the bundle may have no graph; without targets TensorRT-RTX leaves 7.5 out."""
    if precision is None and "fp16" not in bundle.manifest.graphs:
        precision = "fp32"
    options = f" --precision {precision}" if precision else ""
    options += "" if runtime == "tensorrt" else f" --runtime {runtime}"
    options += " --targets sm75" if runtime == "tensorrt-rtx" and capability == (7, 5) else ""
    return f"infercam build {bundle.path}{options}"


def describe_plan(plan: Plan) -> dict[str, Any]:
    """What results record of a plan."""
    r = plan.record
    cards: dict[str, Any] = {"gpu": r.gpu, "compute_capability": _dotted(r.compute_capability)}
    if r.runtime == "tensorrt-rtx":
        cards = {"targets": list(r.targets)}
    return {
        "plan": r.key,
        "runtime": r.runtime,
        "precision": r.precision,
        "tensorrt": r.tensorrt,
        **cards,
        "options": r.options.model_dump(),
        "profiles": [str(p) for p in r.profiles],
    }
