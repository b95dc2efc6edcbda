"""Which of a bundle's plans go into the repository: chosen by the GPU's name, no GPU needed here.

Triton's TensorRT backend takes a plan of TensorRT. TensorRT-RTX's go with the maps model, whose engine runs them.
"""

from __future__ import annotations

from pathlib import Path

from infercam.engine.bundle import Bundle
from infercam.engine.runners.plan import (
    RUNTIMES,
    Environment,
    Plan,
    PlanRecord,
    build_command,
    graph_misfit,
    list_plans,
    plans_folder,
)


class NoPlan(Exception):
    """No plan can be served; the text says why and what to do."""


def choose_plan(
    bundle: Bundle, precision: str | None = None, gpu: str | None = None, cache: Path | None = None
) -> Plan:
    """TensorRT's newest plan made from this bundle, of that precision and for that GPU where they are given.

    gpu: part of the GPU's name, in any case, or its compute capability (`9.0`). Where it is not given and plans
    for several GPUs are there, none is chosen. A plan for one very GPU goes before a portable one. Its SHA-256
    is checked. Raises NoPlan.
    """
    build = f"build one on the server's GPU with: {build_command(bundle, precision)}"
    every = _loaded(bundle, cache)
    loaded = [plan for plan in every if plan.record.runtime == "tensorrt"]
    if not loaded:
        others = " but TensorRT-RTX's, which Triton's TensorRT backend does not take" if every else ""
        raise NoPlan(f"there is no plan in {plans_folder(bundle, cache)}{others}; {build}")
    problems = [_problem(plan.record, bundle) for plan in loaded]
    fitting = [
        plan
        for plan, problem in zip(loaded, problems, strict=True)
        if problem is None
        and precision in (None, plan.record.precision)
        and (gpu is None or _is_for(plan.record, gpu))
    ]
    have = "; ".join(
        f"{plan.record.precision} for {plan.record.gpu}" + (f" ({problem})" if problem else "")
        for plan, problem in zip(loaded, problems, strict=True)
    )
    if not fitting:
        wanted = " ".join(filter(None, (precision, "plan", f"for '{gpu}'" if gpu else "that can be served")))
        raise NoPlan(f"there is no {wanted} (there are: {have}); {build}")
    if len({plan.record.gpu for plan in fitting}) > 1:
        raise NoPlan(f"there are plans for several GPUs ({have}): name one with --plan-gpu")
    chosen = min(fitting, key=lambda plan: plan.record.options.portable)  # stable: the newest of those
    if not chosen.intact():
        raise NoPlan(
            f"the plan in {chosen.folder} is damaged (SHA-256 differs from its record); {build} --force"
        )
    return chosen


def rtx_plans(
    bundle: Bundle, precision: str | None = None, gpu: str | None = None, cache: Path | None = None
) -> list[Plan]:
    """TensorRT-RTX's plans made from this bundle, of that precision where it is given: of those for the same cards
    the newest that is intact. gpu: only those that run on it, where it is a compute capability (`8.9`)."""
    wanted = [
        plan
        for plan in _loaded(bundle, cache)
        if plan.record.runtime == "tensorrt-rtx"
        and precision in (None, plan.record.precision)
        and _runs_on(plan.record, gpu)
        and graph_misfit(plan.record, bundle) is None
        and plan.intact()
    ]
    newest = {(plan.record.precision, plan.record.targets): plan for plan in reversed(wanted)}
    return list(reversed(newest.values()))


def needs(plan: Plan) -> str:
    """Where a plan runs, in words."""
    record = plan.record
    return f"the {record.precision} plan is for {record.maker.cards} and {RUNTIMES[record.runtime]} {record.tensorrt}"


def _loaded(bundle: Bundle, cache: Path | None) -> list[Plan]:
    """Every plan whose record can be read, newest first."""
    anywhere = Environment("", (0, 0), None)
    return [f.plan for f in list_plans(bundle, anywhere, cache) if f.plan is not None]


def _runs_on(record: PlanRecord, gpu: str | None) -> bool:
    parts = (gpu or "").split(".")
    if len(parts) != 2 or not all(p.isdigit() for p in parts):
        return True  # a name, which a plan for targets does not know
    return record.maker.made_for((int(parts[0]), int(parts[1])))


def _is_for(record: PlanRecord, gpu: str) -> bool:
    dotted = ".".join(map(str, record.compute_capability))
    return gpu.lower() in record.gpu.lower() or gpu == dotted


def _problem(record: PlanRecord, bundle: Bundle) -> str | None:
    """Why Triton cannot serve the plan; None if it can, on a server with the plan's own GPU and TensorRT."""
    if record.options.stripped:
        return "it holds no weights, and Triton cannot put them in: build it without --strip-weights"
    if any(profile.smallest[0] > 1 for profile in record.profiles):
        return "it takes no single picture"
    return graph_misfit(record, bundle)


def largest_batch(record: PlanRecord) -> int:
    """Pictures that every profile of the plan takes at once: Triton's batches are one size for all shapes."""
    return min(profile.largest[0] for profile in record.profiles)
