"""`infercam build`: a bundle's graph as a plan: TensorRT's for this GPU, checked there on images before it counts;
TensorRT-RTX's for cards that need not be here.

Made aside and renamed into place when it has passed, so that a build that is killed leaves nothing that could be
mistaken for a plan. The layout on disk and what makes a plan stale are in engine/runners/plan.py.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from infercam.engine.bundle import Bundle, FileEntry
from infercam.engine.common.atomic import TEMP_PREFIX, atomic_write
from infercam.engine.common.errors import BackendError, BundleError, ExportError, MissingExtra, StoreError
from infercam.engine.device.driver import Driver
from infercam.engine.device.probe import probe
from infercam.engine.runners.host import HostNetwork
from infercam.engine.runners.plan import (
    PLAN_FILE,
    RECORD_FILE,
    REJECTED,
    REPORT_FILE,
    Environment,
    Maker,
    Plan,
    PlanError,
    PlanOptions,
    PlanRecord,
    Precision,
    Profile,
    graph_hash,
    graph_misfit,
    graph_of,
    list_plans,
    plan_key,
    plans_folder,
)
from infercam.engine.runners.tensorrt import TensorRTRunner, environment
from infercam.engine.runners.tensorrt_api import require_lean, require_tensorrt
from infercam.export.compare import (
    SCALES,
    TOLERANCES,
    FidelityReport,
    OnnxNetwork,
    Sample,
    Tolerance,
    compare,
)
from infercam.export.plan.builder import BuildCancelled, ParsedNetwork, PlanBuilder, timing_cache_file

How = Literal["built", "refitted", "kept"]


class Built(NamedTuple):
    """An installed plan, how it came about, its report, and the seconds that making it took (without the check)."""

    plan: Plan
    how: How
    report: FidelityReport | None
    """None: TensorRT-RTX built it, and it was not run."""
    seconds: float


@dataclass(frozen=True)
class BuildRequest:
    """What to build. `samples` is called once, when the check begins; pictures are drawn one at a time."""

    bundle: Bundle
    precision: Precision
    profiles: Sequence[Profile]
    samples: Callable[[], Iterable[Sample]]
    options: PlanOptions = field(default_factory=PlanOptions)
    tolerance: Tolerance | None = None
    """None: compare.TOLERANCES of the precision."""
    scales: Sequence[float] = SCALES
    """Of the views compared."""
    cache: Path | None = None
    """Folder of plans; None: `plans` in the bundle."""
    force: bool = False
    """Build even where a plan that fits is there."""
    rtx: Maker | None = None
    """TensorRT-RTX, and the cards to build for (rtx.py: rtx_maker); None: TensorRT, for the driver's GPU."""


class BuildWatch:
    """Where a build reports to, and is stopped from. Everything may be left as it is."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def building(self, phase: str, done: int, total: int) -> None:
        """A phase of TensorRT's builder: steps done, steps in all."""

    def checking(self, images: int) -> None:
        """So many more images have been compared."""


def build_plan(request: BuildRequest, driver: Driver | None, watch: BuildWatch | None = None) -> Built:
    """Build, check and install one plan, or keep the one there is.

    driver: of the GPU to build on; None with `rtx`, whose plans are installed unchecked.
    Raises ExportError where TensorRT does not take the graph, or the plan misses the tolerance (it is then kept
    aside, in `rejected`, with its report); BundleError for a precision that the bundle has no graph of;
    MissingExtra, DeviceError or BackendError where it cannot run here; StoreError where it cannot be written.
    """
    with nullcontext() if driver is None else driver.current():
        job = _Job(request, driver, watch or BuildWatch())
        kept = None if request.force else job.kept()
        return kept or _make(job)


def _make(job: _Job) -> Built:
    try:
        with _aside(job.root) as work:
            return job.make(work)
    except OSError as e:
        raise StoreError(f"{job.root}: cannot be written: {e.strerror or e}; see --cache DIR") from None


class _Job:
    def __init__(self, request: BuildRequest, driver: Driver | None, watch: BuildWatch) -> None:
        self.request, self.driver, self.watch = request, driver, watch
        self.bundle, self.options = request.bundle, request.options
        self.tolerance = request.tolerance or TOLERANCES[request.precision]
        self.graph = _graph(request.bundle, request.precision)
        self.maker = request.rtx or _tensorrt(driver, self.options)
        trt = require_tensorrt("infercam build", self.maker.runtime)
        self.builder = PlanBuilder(trt, self.bundle.manifest, self.maker, watch.building, watch.stopped)
        self.network = self.builder.parse(self.graph)
        self.profiles = _profiles(request.profiles, self.network, self.graph)
        self.onnx_sha256 = graph_hash(self.bundle, request.precision)
        self.root = plans_folder(self.bundle, request.cache)
        key = plan_key(self.onnx_sha256, request.precision, self.profiles, self.options, self.maker)
        self.folder = self.root / key

    def kept(self) -> Built | None:
        """The installed plan of this very key, if it is whole and within today's tolerance."""
        try:
            plan = Plan.load(self.folder)
            report = self._report()
        except (PlanError, OSError, ValidationError):
            return None
        if plan.record.key != self.folder.name or graph_misfit(plan.record, self.bundle):
            return None
        if not plan.intact() or (report is not None and report.fidelity.missed(self.tolerance)):
            return None
        return Built(plan, "kept", report, 0.0)

    def _report(self) -> FidelityReport | None:
        """Of the installed plan; raises OSError or ValidationError where there should be one and is none."""
        if self.request.rtx is not None:
            return None
        return FidelityReport.model_validate_json((self.folder / REPORT_FILE).read_bytes())

    def make(self, work: Path) -> Built:
        """Build into `work`, check, and rename into place."""
        started = time.monotonic()
        how, data = self._serialised()
        seconds = time.monotonic() - started
        plan = self._write(work, data)
        if self.request.rtx is not None:
            return Built(Plan(_install(work, self.folder), plan.record), how, None, seconds)
        report = self._check(plan)
        with atomic_write(work / REPORT_FILE, "w") as f:
            f.write(report.model_dump_json(indent=2) + "\n")
        if report.missed is not None:
            aside = _install(work, self.root / REJECTED / self.folder.name)
            raise ExportError(
                f"the {self.request.precision} plan is not installed: {report.missed}; it is in {aside}"
            )
        return Built(Plan(_install(work, self.folder), plan.record), how, report, seconds)

    def _serialised(self) -> tuple[How, bytes]:
        """The plan's bytes: a refittable one of the same structure with new weights, else built."""
        refitted = self._refitted() if self.options.refittable else None
        if refitted is not None:
            return "refitted", refitted
        timings = None  # TensorRT-RTX times nothing
        if self.request.rtx is None:
            timings = timing_cache_file(self.maker.version, self.maker.gpu)
        plan = self.builder.build(self.network, self.request.precision, self.profiles, self.options, timings)
        return "built", bytes(plan)

    def _refitted(self) -> bytes | None:
        """From a plan that differs in nothing but its weights; None where there is none, or it cannot be done:
        building anew takes longer and is always right."""
        anywhere = Environment("", (0, 0), None)  # _can_be_refitted says which
        for found in list_plans(self.bundle, anywhere, self.request.cache):
            if found.plan is None or not self._can_be_refitted(found.plan.record):
                continue
            try:
                data = found.plan.read()
                # a stripped plan gets its weights whenever it is loaded
                return data if self.options.stripped else bytes(self.builder.refit(data, self.graph))
            except BackendError:
                return None
        return None

    def _can_be_refitted(self, record: PlanRecord) -> bool:
        wanted = (
            self.maker,
            self.structure,
            self.request.precision,
            self.profiles,
            self.options,
            self.network.input_type,
        )
        have = (
            record.maker,
            record.structure,
            record.precision,
            record.profiles,
            record.options,
            record.input_type,
        )
        return wanted == have

    @cached_property
    def structure(self) -> str | None:
        return structure_hash(self.graph) if self.options.refittable else None

    def _write(self, work: Path, data: bytes) -> Plan:
        record = PlanRecord(
            precision=self.request.precision,
            input_type=self.network.input_type,
            bundle=self.bundle.manifest.name,
            bundle_hash=self.bundle.hash,
            onnx_sha256=self.onnx_sha256,
            structure=self.structure,
            profiles=self.profiles,
            options=self.options,
            runtime=self.maker.runtime,
            tensorrt=self.maker.version,
            gpu=self.maker.gpu,
            compute_capability=self.maker.compute_capability,
            targets=self.maker.targets,
            plan=FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data)),
        )
        with atomic_write(work / PLAN_FILE) as f:
            f.write(data)
        with atomic_write(work / RECORD_FILE, "w") as f:
            f.write(record.model_dump_json(indent=2) + "\n")
        return Plan(work, record)

    def _check(self, plan: Plan) -> FidelityReport:
        assert self.driver is not None
        reference = OnnxNetwork(self.bundle.graph("fp32"), self.bundle.manifest)
        runner = TensorRTRunner(plan, self.bundle, self.driver)
        try:
            fidelity = compare(
                reference,
                HostNetwork(runner, self.driver),
                self.request.samples(),
                self.bundle.manifest,
                scales=self.request.scales,
                watch=self._checked,
                scores=reference.scores,
            )
        finally:
            runner.close()
        return FidelityReport.of(fidelity, self.tolerance)

    def _checked(self, images: int) -> None:
        self.watch.checking(images)
        if self.watch.stopped.is_set():
            raise BuildCancelled("stopped before the plan was checked; nothing was installed")


def _tensorrt(driver: Driver | None, options: PlanOptions) -> Maker:
    """TensorRT on the driver's GPU; raises MissingExtra or DeviceError."""
    require_tensorrt("infercam build")
    if options.version_compatible:
        require_lean("a version-compatible plan")  # what runs it, and so what checks it
    probe()
    assert driver is not None
    here = environment(driver.info())
    return Maker("tensorrt", str(here.tensorrt), here.gpu, here.compute_capability)


# -- the graph -------------------------------------------------------------------------------------------------
def _graph(bundle: Bundle, precision: Precision) -> Path:
    name = graph_of(precision)
    if name not in bundle.manifest.graphs:
        raise BundleError(
            f"{bundle.path}: no {name} graph; make it with: infercam precision {bundle.path} --to {name} "
            f"(there are: {', '.join(bundle.manifest.graphs)}; --precision says which to build)"
        )
    return bundle.graph(name)


def _profiles(wanted: Sequence[Profile], network: ParsedNetwork, graph: Path) -> list[Profile]:
    """The profiles asked for, where the graph takes their shapes; that of its only shape where it has but one."""
    if not network.dynamic:
        return [Profile(smallest=network.fixed, best=network.fixed, largest=network.fixed)]
    for profile in wanted:
        bounds = zip(network.fixed, profile.smallest, profile.largest, strict=True)
        if any(side > 0 and (low != side or high != side) for side, low, high in bounds):
            raise ExportError(f"{graph}: takes only {network.fixed} (-1: any), not a profile of {profile}")
    return list(wanted)


def structure_hash(graph: Path) -> str:
    """SHA-256 of an ONNX graph without its floating-point weights: equal for a classifier trained again.

    Raises MissingExtra without onnx.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "export", "a refittable plan") from None
    model = onnx.load(str(graph), load_external_data=False)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    for tensor in model.graph.initializer:
        if tensor.data_type in floats:  # others are shapes and axes: they are structure
            for values in ("raw_data", "float_data", "int32_data", "external_data"):
                tensor.ClearField(values)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


# -- folders ---------------------------------------------------------------------------------------------------
@contextmanager
def _aside(root: Path) -> Iterator[Path]:
    """A folder of this process beside the plans, removed in the end; those of dead builds go first."""
    root.mkdir(parents=True, exist_ok=True)
    mine = f"{TEMP_PREFIX}{platform.node()}-"
    for left in root.glob(f"{mine}*"):
        owner = left.name.removeprefix(mine).split("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    work = root / f"{mine}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _alive(process: int) -> bool:
    if os.name == "nt":  # there, os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's, but there
        return True
    return True


def _install(work: Path, folder: Path) -> Path:
    """Rename a finished folder into place; what was there of the same name is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        old = work.with_name(f"{work.name}-old")
        folder.rename(old)
        work.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(folder)
    return folder
