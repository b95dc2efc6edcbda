"""Writing a Triton model repository: up to three models of one bundle, in place all at once or not at all.

    REPOSITORY/
      NAME_onnx/       config.pbtxt  labels.txt  infercam.json  1/model.onnx
      NAME_tensorrt/   config.pbtxt  labels.txt  infercam.json  1/model.plan
      NAME_maps/       config.pbtxt  labels.txt  infercam.json  1/model.py  1/bundle/…

`infercam.json` says what a model was made from, and that it is ours to replace; Triton does not look at it.
"""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from infercam.engine.bundle import MANIFEST, Bundle, FileEntry, file_entry, sha256_file
from infercam.engine.common.atomic import TEMP_PREFIX
from infercam.engine.common.errors import ExportError
from infercam.engine.method.recipe import recipe
from infercam.engine.onnx_files import external_locations
from infercam.engine.runners.ort_cpu import GPU_ONLY
from infercam.engine.runners.plan import PLAN_FILE, PLANS, RECORD_FILE, Plan, graph_of
from infercam.export.triton.config import (
    LABELS,
    Serving,
    config_text,
    maps_config,
    onnx_config,
    tensorrt_config,
)
from infercam.export.triton.plans import NoPlan, choose_plan, needs, rtx_plans
from infercam.export.triton.signature import read_signature
from infercam.export.triton.text_format import Message

Kind = Literal["onnx", "tensorrt", "maps"]
KINDS: tuple[Kind, ...] = get_args(Kind)

CONFIG = "config.pbtxt"
MARK = "infercam.json"
VERSION = "1"
_MAPS_MODEL = Path(__file__).with_name("maps_model.py")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Mark(BaseModel):
    """infercam.json: what a model of the repository was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    kind: Kind
    bundle: str
    bundle_hash: str
    manifest_sha256: str
    precision: str
    infercam: str
    created: str
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class PackageRequest:
    """What to package, and where to."""

    bundle: Bundle
    """Loaded, so its hashes have been checked."""
    repository: Path
    serving: Serving = field(default_factory=Serving)
    precision: str | None = None
    """Of the graphs and of the plan. None: the fp32 graph, the newest plan, and for the maps the engine's choice."""
    only: Sequence[Kind] | None = None
    """None: all; a plan that is not there is then left out, and not an error."""
    name: str | None = None
    """First part of the models' names; None: the bundle's."""
    plan_gpu: str | None = None
    """Part of the GPU's name, or its compute capability."""
    plans: Path | None = None
    """Folder of plans; None: the bundle's own."""
    force: bool = False
    """Replace models that an earlier call made."""


class Packaged(NamedTuple):
    """What was written: each model's folder with its size in bytes, and what was left out, with why."""

    models: dict[Path, int]
    left_out: dict[Kind, str]
    plan: Plan | None
    """TensorRT's, for its model and the maps."""
    rtx: list[Plan]
    """TensorRT-RTX's, for the maps."""

    @property
    def needs(self) -> list[str]:
        """What each plan needs of the server, in words."""
        full = [] if self.plan is None else [needs(self.plan)]
        return full + [f"{needs(plan)}, with infercam[gpu,rtx]: the maps only" for plan in self.rtx]


def package(request: PackageRequest) -> Packaged:
    """Write the models into the repository.

    Raises ExportError, before anything is written, for a model that is in the way, a graph that is not what the
    manifest says, or a plan asked for and not there; also where the folder cannot be written (nothing is left
    then). Raises BundleError for a precision that the bundle has no graph of, InputError for an unknown recipe.
    """
    job = _Job(request)
    try:
        return job.run()
    except OSError as e:
        raise ExportError(f"{request.repository}: cannot be written: {e.strerror or e}") from None


class _Job:
    def __init__(self, request: PackageRequest) -> None:
        self.request, self.bundle, self.serving = request, request.bundle, request.serving
        self.name = request.name or self.bundle.manifest.name
        if not _NAME.fullmatch(self.name):
            raise ExportError(
                f"'{self.name}' cannot begin a model's name (letters, digits, '.', '_' and '-'): pass --name"
            )
        self.manifest_sha256 = sha256_file(self.bundle.path / MANIFEST)
        self.kinds = list(dict.fromkeys(request.only or KINDS))
        self.left_out: dict[Kind, str] = {}
        self.rtx = self._rtx()
        self.plan = self._plan()
        self._check_labels()
        if "maps" in self.kinds:
            self._check_maps()

    def run(self) -> Packaged:
        write: dict[Kind, Callable[[Path], str]]
        write = {"onnx": self._onnx, "tensorrt": self._tensorrt, "maps": self._maps}
        names = {kind: f"{self.name}_{kind}" for kind in self.kinds}
        repository = self.request.repository
        check_target(repository, list(names.values()), self.request.force)
        work = _beside(repository)
        try:
            models = work / "models"
            for kind, name in names.items():
                folder = models / name
                (folder / VERSION).mkdir(parents=True)
                precision = write[kind](folder)
                _write(folder / LABELS, "".join(f"{c}\n" for c in self.bundle.manifest.classes))
                _write(folder / MARK, self._mark(kind, folder, precision).model_dump_json(indent=2) + "\n")
            _flush(models)
            check_target(repository, list(names.values()), self.request.force)  # again: copying took a while
            _put_in_place(models, repository, work / "replaced")
        finally:
            shutil.rmtree(work, ignore_errors=True)
        written = [repository / name for name in names.values()]
        return Packaged({f: _size(f) for f in written}, self.left_out, self.plan, self.rtx)

    # -- what is asked for ------------------------------------------------------------------------------------
    def _plan(self) -> Plan | None:
        """TensorRT's plan to serve, or None and why not in `left_out`; raises ExportError if it was asked for by name
        (a GPU may be one for TensorRT-RTX's)."""
        if "tensorrt" not in self.kinds and ("maps" not in self.kinds or self.serving.device == "cpu"):
            return None
        asked = self.request.only is not None and "tensorrt" in self.kinds
        try:
            if self.serving.device == "cpu":
                raise NoPlan("TensorRT needs a GPU, and --cpu was given")
            return choose_plan(self.bundle, self.request.precision, self.request.plan_gpu, self.request.plans)
        except NoPlan as e:
            if asked or (self.request.plan_gpu is not None and not self.rtx):
                raise ExportError(str(e)) from None
            if "tensorrt" in self.kinds:
                self.kinds.remove("tensorrt")
                self.left_out["tensorrt"] = str(e)
            return None

    def _rtx(self) -> list[Plan]:
        if "maps" not in self.kinds or self.serving.device == "cpu":
            return []
        return rtx_plans(self.bundle, self.request.precision, self.request.plan_gpu, self.request.plans)

    def _check_labels(self) -> None:
        """Triton's file of labels has one a line."""
        broken = [c for c in self.bundle.manifest.classes if len(c.splitlines()) != 1]
        if broken:
            raise ExportError(
                f"class name {broken[0]!r} is not one line of text; export the bundle with other names"
            )

    def _check_maps(self) -> None:
        recipe(self.serving.recipe)
        precision = self.request.precision
        if precision is not None:
            self.bundle.graph(graph_of(precision))
        if precision in GPU_ONLY and self.serving.device == "cpu":
            raise ExportError(f"the CPU has no {precision} arithmetic: leave out --cpu, or the precision")

    # -- the three models: each writes its folder and gives its precision -----------------------------------------
    def _onnx(self, folder: Path) -> str:
        precision = graph_of(self.request.precision or "fp32")
        signature = read_signature(self.bundle, precision)
        graph = self.bundle.graph(precision)
        _copy(graph, folder / VERSION / "model.onnx")
        for location in external_locations(graph):  # by the name that the graph calls it
            _copy(graph.parent / location, folder / VERSION / location)
        self._config(folder, onnx_config(folder.name, self.bundle, signature, self.serving))
        return precision

    def _tensorrt(self, folder: Path) -> str:
        assert self.plan is not None
        record = self.plan.record
        signature = read_signature(self.bundle, graph_of(record.precision))
        _copy(self.plan.folder / PLAN_FILE, folder / VERSION / "model.plan")
        self._config(folder, tensorrt_config(folder.name, self.bundle, signature, self.serving, record))
        return record.precision

    def _maps(self, folder: Path) -> str:
        _copy(_MAPS_MODEL, folder / VERSION / "model.py")
        bundle = folder / VERSION / "bundle"
        for name in [MANIFEST, *self.bundle.manifest.files]:
            _copy(self.bundle.path / name, bundle / name)
        for plan in [*([self.plan] if self.plan else []), *self.rtx]:
            for name in (PLAN_FILE, RECORD_FILE):
                _copy(plan.folder / name, bundle / PLANS / plan.folder.name / name)
        Bundle.load(bundle)  # the copy is what was checked
        self._config(folder, maps_config(folder.name, self.bundle, self.serving, self.request.precision))
        return self.request.precision or "any"

    @staticmethod
    def _config(folder: Path, config: Message) -> None:
        _write(folder / CONFIG, config_text(config))

    def _mark(self, kind: Kind, folder: Path, precision: str) -> Mark:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return Mark(
            kind=kind,
            bundle=self.bundle.manifest.name,
            bundle_hash=self.bundle.hash,
            manifest_sha256=self.manifest_sha256,
            precision=precision,
            infercam=version("infercam"),
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            files={p.relative_to(folder).as_posix(): file_entry(p) for p in files},
        )


# -- folders ---------------------------------------------------------------------------------------------------
def check_target(repository: Path, names: Sequence[str], force: bool) -> None:
    """Raise ExportError where a model of these names must not be written into the repository."""
    if (repository.exists() or repository.is_symlink()) and not repository.is_dir():
        raise ExportError(f"{repository}: is in the way and is not a folder; choose another path")
    for folder in (repository / name for name in names):
        if not (folder.exists() or folder.is_symlink()):
            continue
        if not is_ours(folder):
            raise ExportError(f"{folder}: is there already and not made by infercam; pass another --name")
        if not force:
            raise ExportError(f"{folder}: is there already; pass --force to replace it")


def is_ours(folder: Path) -> bool:
    """Whether a model's folder has the mark of this command."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        Mark.model_validate_json((folder / MARK).read_bytes())
    except (OSError, ValidationError):
        return False
    return True


def _beside(repository: Path) -> Path:
    """A fresh folder on the repository's own file system, outside of it if that can be: Triton may poll it."""
    beside = repository.absolute().parent
    beside.mkdir(parents=True, exist_ok=True)
    if repository.is_dir() and repository.stat().st_dev != beside.stat().st_dev:  # a mounted volume
        beside = repository
    work = beside / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
    work.mkdir()
    return work


def _put_in_place(models: Path, repository: Path, replaced: Path) -> None:
    """Rename the finished models into the repository; if one fails, all is as it was before."""
    if not repository.exists():
        models.rename(repository)
        return
    replaced.mkdir()
    undo: list[tuple[Path, Path]] = []
    try:
        for model in sorted(models.iterdir()):
            target = repository / model.name
            if target.exists():
                target.rename(replaced / model.name)
                undo.append((replaced / model.name, target))
            model.rename(target)
            undo.append((target, model))
    except BaseException:
        for now, before in reversed(undo):
            now.rename(before)
        raise


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _write(target: Path, text: str) -> None:
    target.write_text(text, encoding="utf-8", newline="\n")


def _flush(folder: Path) -> None:
    """To disk, so that a rename that lasts stands for files that are whole."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as f:
                os.fsync(f.fileno())


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
