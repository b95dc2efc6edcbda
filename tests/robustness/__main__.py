"""It holds: things are really broken, and what was lost is counted.

    python -m tests.robustness            everything, as the README's figures (about 20 minutes on 2 cores)
    python -m tests.robustness --quick    a few rounds of each
    python -m tests.robustness --only kill-run,full-disk
    python -m tests.robustness --backend openvino --precision bf16      runs and servers on another engine

Prints rounds, inputs tried and losses, and writes results/robustness.json (robustness_BACKEND.json), where `--only`
replaces its own sections.
Exit code 1 if anything was lost.
"""

from __future__ import annotations

import datetime as dt
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from infercam.benchmarks.common import RESULTS, write_result
from tests.robustness.attacks import attack_server
from tests.robustness.audit import audit_dependencies
from tests.robustness.bad_files import corrupt_files
from tests.robustness.clocks import clock_jumps
from tests.robustness.disks import closed_folders, full_disk
from tests.robustness.kill_server import kill_server
from tests.robustness.kills import kill_run, kill_shard, kill_worker
from tests.robustness.outcome import FULL, QUICK, Outcome, Say, Size, Skipped
from tests.robustness.pictures import corrupt_pictures
from tests.robustness.rig import Rig
from tests.robustness.soak import soak
from tests.robustness.starts import starts

Section = Callable[[Rig, Size, Say], "Outcome | list[Outcome]"]

SECTIONS: dict[str, Section] = {
    "kill-run": kill_run,
    "kill-shard": kill_shard,
    "kill-worker": kill_worker,
    "kill-server": kill_server,
    "full-disk": full_disk,
    "closed-folders": closed_folders,
    "clock-jumps": clock_jumps,
    "corrupt-pictures": corrupt_pictures,
    "corrupt-files": corrupt_files,
    "attacks": attack_server,
    "soak": soak,
    "starts": starts,
    "audit": audit_dependencies,
}
IMAGES = 200
"""Of the run that is killed, filled up and resumed; it takes some seconds."""

console = Console(stderr=True, highlight=False)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="A few rounds of each.")] = False,
    only: Annotated[str, typer.Option(help=f"Of {', '.join(SECTIONS)}; separated by commas.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of every random choice but the machine's timing.")] = 0,
    backend: Annotated[str, typer.Option(help="Of runs, servers and starts.")] = "auto",
    precision: Annotated[str, typer.Option(help="Of that backend.")] = "",
    results: Annotated[Path, typer.Option(help="Folder to write robustness.json to.")] = RESULTS,
    work: Annotated[Path | None, typer.Option(help="Scratch folder (default: a temporary one).")] = None,
) -> None:
    """Break things, count what is lost."""
    names = [name.strip() for name in only.split(",") if name.strip()] or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise typer.BadParameter(f"no section {unknown[0]!r}; there are: {', '.join(SECTIONS)}")
    size = Size(**{**asdict(QUICK if quick else FULL), "seed": seed})
    with tempfile.TemporaryDirectory(prefix="infercam-robustness-", dir=work) as scratch:
        outcomes = [o for name in names for o in prove(name, Path(scratch), size, (backend, precision))]
    Console().print(table(outcomes))
    file = "robustness" if backend == "auto" else f"robustness_{backend}"
    kept = _others(results / f"{file}.json", names) if only else []
    engine = {"backend": backend, "precision": precision}
    content = {"size": asdict(size), "engine": engine, "sections": kept + [o.to_json() for o in outcomes]}
    console.print(f"-> {write_result(file, content, results)}", soft_wrap=True)
    if any(outcome.losses for outcome in outcomes):
        raise typer.Exit(1)


def _others(file: Path, names: list[str]) -> list[dict[str, Any]]:
    """What an earlier run found of the other sections; each says when."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["sections"]
    except FileNotFoundError:
        return []
    return [section for section in before if section["section"] not in names]


def prove(name: str, folder: Path, size: Size, engine: tuple[str, str]) -> list[Outcome]:
    """One section, timed, on images of its own seed; one that cannot be tried here says why."""
    began = time.monotonic()
    with console.status(name) as status:
        try:
            count = IMAGES if size.rounds > QUICK.rounds else IMAGES // 2
            backend, precision = engine
            rig = Rig(folder / name, count, size.seed, backend=backend, precision=precision)
            found = SECTIONS[name](rig, size, lambda line: status.update(line))
        except Skipped as e:
            found = Outcome(name.replace("-", " "), skipped=str(e))
    outcomes = found if isinstance(found, list) else [found]
    for outcome in outcomes:
        outcome.section, outcome.date = name, dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        outcome.seconds = round((time.monotonic() - began) / len(outcomes), 1)
        lost = f"{len(outcome.losses)} lost" if outcome.losses else outcome.skipped or "nothing lost"
        console.print(f"{outcome.name}: {lost}", style="red" if outcome.losses else "", soft_wrap=True)
        for loss in outcome.losses[:10]:
            console.print(f"  {loss}", style="red", markup=False, soft_wrap=True)
    return outcomes


def table(outcomes: list[Outcome]) -> Table:
    out = Table(title="It holds: what was broken, and what was lost")
    for column in ("what", "rounds", "inputs", "lost", "s"):
        out.add_column(column, justify="left" if column == "what" else "right")
    for o in outcomes:
        if o.skipped:
            out.add_row(o.name, "skipped", "", "", "")
        else:
            out.add_row(
                o.name, str(o.rounds or ""), str(o.inputs or ""), str(len(o.losses)), f"{o.seconds:.0f}"
            )
    return out


if __name__ == "__main__":
    typer.run(main)
