"""One benchmark from its settings to its result: who takes part, the rounds, the figures."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infercam.benchmarks.bench import contestants, figures, growth, matrix_rate
from infercam.benchmarks.bench import maps as looks
from infercam.benchmarks.bench.contestants import Contestant, Field, Part
from infercam.benchmarks.bench.flops import Counter
from infercam.benchmarks.bench.growth import Axis
from infercam.benchmarks.bench.pictures import Pictures
from infercam.benchmarks.bench.result import FILE, BenchResult, Subject
from infercam.benchmarks.bench.session import MAPS, SCORE, BenchSession, BenchTask, Say
from infercam.benchmarks.common import command, machine
from infercam.engine.bundle import Bundle
from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InfercamError

PARTS: tuple[Part, ...] = ("rows", "waterfall", "growth", "agreement", "profile")


@dataclass
class BenchPlan:
    """What is to be measured."""

    bundle: Bundle
    field: Field
    pictures: Pictures
    rounds: int
    parts: Sequence[Part] = PARTS
    quick: bool = False
    counts: Sequence[int] = ()
    """Lengths of lists for the growth in the number of images; default: four about the number of pictures."""

    @property
    def subject(self) -> Subject:
        s = self.pictures.pictures
        return Subject(
            bundle=self.bundle.manifest.name,
            bundle_hash=self.bundle.hash,
            pictures=self.pictures.kind,
            pictures_digest=self.pictures.digest,
            images=self.field.count,
            few=self.field.few,
            mean_pixels=sum(p.height * p.width for p in s) / len(s),
            mean_classes=sum(len(p.classes) for p in s) / len(s),
        )

    def lengths(self) -> list[int]:
        if self.counts:
            return list(self.counts)
        n = self.field.count
        return sorted({max(2, round(n * f)) for f in ((0.5, 1, 2) if self.quick else (0.25, 0.5, 1, 2))})


@dataclass
class Members:
    """Everyone who takes part, by part."""

    rows: list[Contestant] = field(default_factory=list)
    waterfall: list[Contestant] = field(default_factory=list)
    axes: list[Axis] = field(default_factory=list)
    agreement: Contestant | None = None
    profiles: list[Contestant] = field(default_factory=list)


def members(plan: BenchPlan, folder: Path) -> Members:
    """Prepares the lists for the growth under `folder`."""
    f, parts = plan.field, plan.parts
    out = Members()
    if "rows" in parts:
        out.rows = contestants.rows(f)
    if "waterfall" in parts:
        out.waterfall = contestants.waterfall(f)
    if "growth" in parts:
        out.axes = growth.axes(f, plan.pictures, folder / "growth", plan.lengths(), plan.quick)
    if "agreement" in parts and f.model is not None:
        out.agreement = contestants.agreement(f)
    if "profile" in parts:
        out.profiles = contestants.profiles(f)
    return out


def run(plan: BenchPlan, session: BenchSession) -> BenchResult:
    """Measure all that is not measured yet, by turns, and make the result."""
    who = members(plan, session.folder)
    rates = session.recall_rates()
    notes: list[str] = list(plan.pictures.notes)
    session.run(_tasks(plan, who, session), lambda number: session.keep_rates(_rate(plan, rates, notes)))
    operations = _counter(plan.bundle, notes)
    return BenchResult(
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        command=command(),
        machine=machine(),
        subject=plan.subject,
        rounds=plan.rounds,
        matrix_rate=rates,
        rows=[figures.row(one, session, operations, rates) for one in who.rows],
        waterfall=figures.steps(who.waterfall, session),
        growth=[figures.growth(axis, session) for axis in who.axes],
        agreement=_agreement(plan.field, who, session),
        profile=_profile(who, session),
        notes=list(dict.fromkeys(notes)),
    )


def _tasks(plan: BenchPlan, who: Members, session: BenchSession) -> list[BenchTask]:
    truth = {n: plan.pictures.truth(n) for n in (plan.field.count, plan.field.few)}
    out = []
    for one in (*who.rows, *who.waterfall):
        if one.job is not None:
            masks = truth[one.job.count] if one.scored else None
            found = {SCORE: looks.scorer(one.job, masks, plan.bundle.manifest.classes)} if masks else {}
            if one.yardstick is not None:
                name = f"engine: {contestants.BASELINE}, of {one.yardstick.count}"
                out.append(BenchTask(name, one.yardstick, plan.rounds))
            out.append(BenchTask(one.name, one.job, plan.rounds, found))
    for axis in who.axes:
        out += [BenchTask(f"growth, {axis.name} {x:g}", job, plan.rounds) for x, job in axis.jobs.items()]
    if who.agreement is not None:
        for name, job in _compared(plan.field, who.agreement).items():
            out.append(
                BenchTask(name, job, 1, {MAPS: looks.keeper(job, session.folder / MAPS / session.key(job))})
            )
    out += [BenchTask(f"profile of {one.name}", one.job, 1) for one in who.profiles if one.job is not None]
    return out


def _compared(f: Field, engine: Contestant) -> dict[str, Any]:
    return {
        "engine": engine.job,
        "over PyTorch's network": f.other("loop", f.few),
        "over the same network": f.other("loop", f.few, network="onnx"),
    }


def _agreement(f: Field, who: Members, session: BenchSession) -> dict[str, Any]:
    """How far the engine's float32 maps are from the loop's: over PyTorch's own convolutions, which differ in the
    sixth digit and so now and then tip a pixel over the erasing threshold, and over the engine's own graph."""
    if who.agreement is None:
        return {}
    jobs = _compared(f, who.agreement)
    places = {
        name: session.folder / MAPS / found[MAPS]["name"]
        for name, job in jobs.items()
        if MAPS in (found := session.found.get(session.key(job), {}))
    }
    engine = places.pop("engine", None)
    if engine is None or not places:
        return {}
    return {
        "recipe": contestants.WHOLE,
        "images": f.few,
        **{n: looks.apart(engine, p) for n, p in places.items()},
    }


def _profile(who: Members, session: BenchSession) -> dict[str, dict[str, float]]:
    """Shares of the CPU time by stage; what no stage holds is reading, writing, scheduling and Python."""
    out = {}
    for one in who.profiles:
        for measured in session.measured(one.job)[:1]:
            stages = dict(measured.details["stages"])
            stages["read, write, schedule"] = max(0.0, measured.cpu_seconds - sum(stages.values()))
            total = sum(stages.values())
            out[one.name] = {k: round(v / total, 4) for k, v in sorted(stages.items(), key=lambda kv: -kv[1])}
    return out


def _rate(plan: BenchPlan, rates: dict[str, float], notes: list[str]) -> dict[str, float]:
    """Update the matrix rates, in every round anew: the best counts."""
    usable, _ = plan.field.usable()
    ways: dict[str, Callable[[], float]] = {"cpu": lambda: matrix_rate.cpu_rate(plan.field.threads)}
    if any(name not in ("cpu", "openvino") for name in usable):
        ways["gpu"] = lambda: matrix_rate.gpu_rate(plan.field.precision or "fp32")
    for device, measure in ways.items():
        try:
            rates[device] = max(rates.get(device, 0.0), measure())
        except InfercamError as e:
            notes.append(f"no matrix rate of the {device}: {e}")
    return rates


def _counter(bundle: Bundle, notes: list[str]) -> Counter | None:
    try:
        counter = Counter.load(bundle.graph(), bundle.manifest.input.name)
        counter.at(bundle.manifest.input.height or 224, bundle.manifest.input.width or 224)
    except InfercamError as e:
        notes.append(f"no operations counted: {e}")
        return None
    return counter


def measured(plan: BenchPlan, out: Path, again: bool, say: Say) -> BenchResult:
    """Run the plan and write bench.json; again: forget what an earlier run in `out` measured."""

    session = BenchSession(out, plan.bundle.hash, say)
    if again:
        session.forget()
    result = run(plan, session)
    with atomic_write(out / FILE, "w") as f:
        f.write(result.model_dump_json(indent=1) + "\n")
    return result
