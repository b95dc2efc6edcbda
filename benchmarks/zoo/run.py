"""The zoo, one network after the other, each in a process of its own; the table is printed and kept.

A row is written when it is done, and the same command goes on where it was: `--again` tries those anew that were not
exported.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from infercam.benchmarks.common import RESULTS, write_result
from infercam.benchmarks.zoo.attempt import attempt
from infercam.benchmarks.zoo.families import LIBRARIES, Member, members
from infercam.engine.common.errors import InputError
from infercam.export.graph import trials

WAYS = ("module", "dynamo", "traced", "file")
EXPORTED = ("free", "fixed")
LIMIT_SECONDS = 600
"""CPU seconds after which a process is ended: a network built and exported takes far less."""
_ROW, _ERRORS = "row.json", "errors.txt"


def main(
    library: Annotated[
        list[str] | None, typer.Option(help="torchvision, timm, keras; default: those installed.")
    ] = None,
    way: Annotated[
        str, typer.Option(help="module, dynamo or traced (PyTorch); file (Keras, always).")
    ] = "module",
    only: Annotated[str, typer.Option(help="Networks whose name has this in it.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Try those anew that were not exported.")] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of zoo.json.")] = RESULTS,
) -> None:
    """Export one small network of each family, compare it with its library's own logits, print the table."""
    if way not in WAYS:
        raise InputError(f"--way is one of {', '.join(WAYS)}, not '{way}'")
    libraries = library or [name for name in LIBRARIES if find_spec(name)]
    if not libraries or not set(libraries) <= set(LIBRARIES):
        raise InputError(f"--library is one of {', '.join(LIBRARIES)}, and installed")
    for name in set(libraries) - {"keras"}:  # TensorFlow is not to be loaded before a fork
        import_module(name)
    rows = _kept(out)
    for member in [m for name in libraries for m in members(name) if only in m.name]:
        how = "file" if member.library == "keras" else way
        key = f"{member.key} {how}"
        if key in rows and not (again and rows[key]["outcome"] not in EXPORTED):
            continue
        rows[key] = tried(member, how)
        typer.echo(_line(key, rows[key]))
        write_result("zoo", {"summary": summary(rows), "rows": rows}, out)
    typer.echo(json.dumps(summary(rows), indent=1))


def _kept(folder: Path) -> dict[str, dict[str, Any]]:
    file = folder / "zoo.json"
    return dict(json.loads(file.read_text())["rows"]) if file.is_file() else {}


def tried(member: Member, way: str) -> dict[str, Any]:
    """The row of one network: what its process says, and the CPU seconds and peak memory that it took."""
    with tempfile.TemporaryDirectory(prefix="infercam-zoo-") as name:
        folder = Path(name)
        process = os.fork()  # with the libraries loaded, which takes as long as a small network
        if process == 0:
            _attempt(member, way, folder)
        _, status, used = os.wait4(process, 0)
        row = _answer(folder)
        if row is None:
            row = _ended(os.waitstatus_to_exitcode(status), (folder / _ERRORS).read_text(errors="replace"))
    seconds = used.ru_utime + used.ru_stime - row.pop("apart", 0.0)
    return {**row, "seconds": round(seconds, 1), "peak_gb": round(used.ru_maxrss / (1 << 20), 2)}


def _attempt(member: Member, way: str, folder: Path) -> NoReturn:
    """In the process of its own: the row goes to a file, what it prints to another."""
    errors = os.open(folder / _ERRORS, os.O_CREAT | os.O_WRONLY)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS))
    if "torch" in sys.modules:  # threads do not come along in a fork: OpenMP would wait for its own for ever
        sys.modules["torch"].set_num_threads(1)
    code = 1
    try:
        row = attempt(member, way, folder)
        trials.close()  # so that its time and memory are counted
        (folder / _ROW).write_text(json.dumps(row))
        code = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    os._exit(code)


def _ended(code: int, errors: str) -> dict[str, Any]:
    """The row of a process that gave no answer."""
    last = (errors.strip().splitlines() or [f"exit code {code}"])[-1][:200]
    return {"outcome": "not built" if ", in build\n" in errors and code > 0 else "died", "reason": last}


def _answer(folder: Path) -> dict[str, Any] | None:
    file = folder / _ROW
    return json.loads(file.read_text()) if file.is_file() else None


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How many of each outcome, the share of exported ones, and the worst figures of these; by way."""
    found: dict[str, Any] = {}
    for way in WAYS:
        of_way = [r for key, r in rows.items() if key.endswith(f" {way}") and r["outcome"] != "not built"]
        if not of_way:
            continue
        counts: dict[str, int] = {}
        for r in of_way:
            counts[r["outcome"]] = counts.get(r["outcome"], 0) + 1
        good = [r for r in of_way if r["outcome"] in EXPORTED]
        found[way] = {
            "networks": len(of_way),
            **dict(sorted(counts.items())),
            "share exported": round(len(good) / len(of_way), 3),
            "largest error": max((r["error"] for r in good), default=0.0),
            "most seconds": max(r.get("seconds", 0.0) for r in of_way),
            "most GB": max(r.get("peak_gb", 0.0) for r in of_way),
        }
    return found


def _line(key: str, row: dict[str, Any]) -> str:
    size = row.get("size")
    shape = (
        "x".join(map(str, size))
        if size
        else f"{row['smallest']}+ by {row['multiple']}"
        if "smallest" in row
        else ""
    )
    figures = f"{row.get('seconds', 0):6.1f} s {row.get('peak_gb', 0):5.2f} GB  {row.get('error', '')}"
    return f"{row['outcome']:9} {key:48} {shape:12} {figures}  {row['reason'][:150]}"
