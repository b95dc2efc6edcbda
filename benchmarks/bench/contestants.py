"""Who takes part: every recipe on every backend, the plain loop, the other libraries, the waterfall's steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from infercam.benchmarks.bench.job import NO_MODEL, BenchJob, BenchSwitches
from infercam.engine.backends.choice import BACKENDS, PREFERENCE, objection, obstacle
from infercam.engine.bundle import Bundle

Part = Literal["rows", "waterfall", "growth", "agreement", "profile"]
WHOLE = "released"
"""The recipe of the whole method in the waterfall: the loop and the engine both have it, to the same maps."""
BASELINE = "CAM, 8 views"


@dataclass(frozen=True)
class Contestant:
    """A row: its name and either its job or the reason why there is none."""

    name: str
    job: BenchJob | None
    reason: str | None = None
    yardstick: BenchJob | None = None
    """The engine's baseline CAM over the same pictures: what overheads are over."""
    scored: bool = False
    """Its maps are scored against the masks, where there are any."""


@dataclass(frozen=True)
class Field:
    """What contestants are made of."""

    bundle: Bundle
    pictures: Path
    digest: str
    count: int
    few: int
    """Pictures for those that take one at a time and for the waterfall."""
    recipes: Sequence[str]
    model: Path | None = None
    arch: str = "mobilenetv2"
    precision: str | None = None
    threads: int | None = None
    backends: Sequence[str] = field(default=BACKENDS)

    def engine(self, count: int, backend: str | None = None, **options: Any) -> BenchJob:
        """On that backend, or on the one that `auto` takes of them."""
        backend = backend or self.best() or "auto"
        return self._job("engine", count, backend=backend, precision=self.precision, **options)

    def other(self, kind: str, count: int, **options: Any) -> BenchJob:
        """The plain loop or a library, over the module."""
        return self._job(kind, count, model=self.model, arch=self.arch, **options)

    def _job(self, kind: str, count: int, **options: Any) -> BenchJob:
        listed = {"pictures": self.pictures, "digest": self.digest, "count": count}
        given = {"kind": kind, "bundle": self.bundle.path, "threads": self.threads}
        return BenchJob.model_validate({**given, **listed, **options})

    def best(self, exact: bool = False) -> str | None:
        """The one of the backends that `auto` takes; exact: of those that compute in fp32."""
        order = [n for n in PREFERENCE if n in self.backends and not (exact and n == "openvino")]
        return next((n for n in order if objection(n, self.bundle, self.precision) is None), None)

    def usable(self) -> tuple[list[str], dict[str, str]]:
        """Backends that have all they need here, and of the others why not; asked before anything is loaded."""
        reasons = {name: obstacle(name, self.bundle, self.precision) for name in self.backends}
        return [n for n, why in reasons.items() if why is None], {n: str(w) for n, w in reasons.items() if w}


def rows(f: Field) -> list[Contestant]:
    """The table's rows, the yardsticks first."""
    out: list[Contestant] = []
    usable, lacking = f.usable()
    for backend in usable:
        base = f.engine(f.count, backend, mode="baseline")
        one = f.engine(
            f.count, backend, mode="baseline", changes={"views": {"scales": [1.0], "mirror": False}}
        )
        out.append(Contestant(f"engine {backend}: {BASELINE}", base, yardstick=base, scored=True))
        out.append(Contestant(f"engine {backend}: CAM, 1 view", one, yardstick=base, scored=True))
        for recipe in f.recipes:
            job = f.engine(f.count, backend, recipe=recipe)
            out.append(Contestant(f"engine {backend}: {recipe}", job, yardstick=base, scored=True))
    out += [Contestant(f"engine {backend}", None, reason=why) for backend, why in lacking.items()]
    return out + _others(f)


def _others(f: Field) -> list[Contestant]:
    """What is not the engine. Those with 8 views take one picture after another, and get few."""
    few, all_of = f.few, f.count
    jobs: dict[str, BenchJob] = {}
    for suffix, bf16 in (("", False), (", bf16 autocast", True)):
        jobs |= {
            f"PyTorch loop{suffix}: {BASELINE}": f.other("loop", few, mode="baseline", autocast=bf16),
            f"PyTorch loop{suffix}: {WHOLE}": f.other("loop", few, autocast=bf16),
            f"pytorch-grad-cam{suffix}: CAM, 1 view": f.other("grad-cam", all_of, views=1, autocast=bf16),
            f"pytorch-grad-cam{suffix}: CAM, 8 views": f.other("grad-cam", few, autocast=bf16),
            f"torch-cam{suffix}: CAM, 1 view": f.other("torch-cam", all_of, views=1, autocast=bf16),
            f"torch-cam{suffix}: CAM, 8 views": f.other("torch-cam", few, autocast=bf16),
        }
    out = []
    for name, job in jobs.items():
        if f.model is None:
            out.append(Contestant(name, None, reason=NO_MODEL))
            continue
        base = f.engine(job.count, mode="baseline")
        out.append(Contestant(name, job, yardstick=base, scored=job.count == all_of))
    return out


def waterfall(f: Field) -> list[Contestant]:
    """From the plain loop to the recipe `fast`, each step with one saving more than the one above it."""
    few = f.few
    serial = BenchSwitches(images_in_flight=1, batch_views=1, overlap=False)
    many = serial.model_copy(update={"images_in_flight": None})
    batched = many.model_copy(update={"batch_views": None})
    loop = f.other("loop", few)
    steps = [Contestant("plain PyTorch loop", loop if f.model else None, reason=NO_MODEL)]
    steps.append(
        Contestant(
            "the same loop over the exported graph in ONNX Runtime", f.other("loop", few, network="onnx")
        )
    )
    engine = {
        "the engine, one image and one view at a time": serial,
        "+ many images in flight": many,
        "+ views of equal size in one batch": batched,
        "+ reading and writing beside the inference": BenchSwitches(),
    }
    steps += [Contestant(name, f.engine(few, switches=s)) for name, s in engine.items()]
    steps.append(Contestant("recipe `fast` in place of `released`", f.engine(few, recipe="fast")))
    return steps


def agreement(f: Field) -> Contestant:
    """The engine's maps as float32, to be held against the loop's."""
    return Contestant("engine's maps, float32", f.engine(f.few, f.best(exact=True), format="psa"))


def profiles(f: Field) -> list[Contestant]:
    """Where the CPU engine's time goes."""
    named = [r for r in (WHOLE, "fast") if r in f.recipes]
    on = [n for n in ("cpu", "openvino") if n in f.usable()[0]]
    jobs = {
        f"{r}, {n}": f._job("profile", f.few, recipe=r, precision=f.precision, backend=n)
        for n in on
        for r in named
    }
    return [Contestant(name, job) for name, job in jobs.items()]
