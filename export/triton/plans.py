"""Which of a bundle's TensorRT plans goes into the repository: chosen by the GPU's name, no GPU needed here."""

from __future__ import annotations

from pathlib import Path

from infercam.engine.bundle import Bundle
from infercam.engine.runners.plan import Environment, Plan, PlanRecord, list_plans, misfit, plans_folder


class NoPlan(Exception):
    """No plan can be served; the text says why and what to do."""


def choose_plan(
    bundle: Bundle, precision: str | None = None, gpu: str | None = None, cache: Path | None = None
) -> Plan:
    """The newest plan made from this bundle, of that precision and for that GPU where they are given.

    gpu: part of the GPU's name, in any case, or its compute capability (`9.0`). Where it is not given and plans
    for several GPUs are there, none is chosen. A plan for one very GPU goes before a portable one. Its SHA-256
    is checked. Raises NoPlan.
    """
    build = f"build one on the server's GPU with: infercam build {bundle.path}" + (
        f" --precision {precision}" if precision else ""
    )
    anywhere = Environment("", (0, 0), None)
    loaded = [f.plan for f in list_plans(bundle, anywhere, cache) if f.plan is not None]
    if not loaded:
        raise NoPlan(f"there is no plan in {plans_folder(bundle, cache)}; {build}")
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


def _is_for(record: PlanRecord, gpu: str) -> bool:
    dotted = ".".join(map(str, record.compute_capability))
    return gpu.lower() in record.gpu.lower() or gpu == dotted


def _problem(record: PlanRecord, bundle: Bundle) -> str | None:
    """Why Triton cannot serve the plan; None if it can, on a server with the plan's own GPU and TensorRT."""
    if record.options.stripped:
        return "it holds no weights, and Triton cannot put them in: build it without --strip-weights"
    if any(profile.smallest[0] > 1 for profile in record.profiles):
        return "it takes no single picture"
    at_home = Environment(record.gpu, record.compute_capability, record.tensorrt, record.tensorrt)
    return misfit(record, bundle, at_home)


def largest_batch(record: PlanRecord) -> int:
    """Pictures that every profile of the plan takes at once: Triton's batches are one size for all shapes."""
    return min(profile.largest[0] for profile in record.profiles)
