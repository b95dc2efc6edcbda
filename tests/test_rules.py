"""The rules of the house (layout in the rooms' READMEs): who may import whom, what stands where, names used once."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator

import grimp
import pytest

from tests.shared import ROOT

ROOMS = ("engine", "export", "trainer", "benchmarks")
OF_EXPORT = ("infercam.export", "infercam.export.archs", "infercam.export.checkpoints")
"""What the trainer may import of export: what the package offers by name, the networks, their checkpoints."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import of the four rooms: in functions and for type checkers, too."""
    packages = [f"infercam.{room}" for room in ROOMS]
    return grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)


def arrows(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    for module in sorted(graph.modules):
        if module.startswith("infercam."):
            for imported in sorted(graph.find_modules_directly_imported_by(module)):
                yield module, imported


def room_of(module: str) -> str:
    """`infercam.engine.store.mapstore` lies in `infercam.engine`."""
    return ".".join(module.split(".")[:2])


def folder_of(module: str) -> str:
    """`infercam.engine.store.mapstore` lies in `infercam.engine.store`; a loose file is a folder of its own."""
    return ".".join(module.split(".")[:3])


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_rooms_import_one_way(graph: grimp.ImportGraph) -> None:
    allowed = {
        "infercam.engine": {"infercam.engine"},
        "infercam.export": {"infercam.engine", "infercam.export"},
        "infercam.trainer": {"infercam.engine", "infercam.export", "infercam.trainer"},
        "infercam.benchmarks": {f"infercam.{room}" for room in ROOMS},
    }
    wrong = [
        (a, b)
        for a, b in arrows(graph)
        if b.startswith("infercam.") and room_of(b) not in allowed[room_of(a)]
    ]
    assert wrong == []


def test_the_engine_never_imports_torch(graph: grimp.ImportGraph) -> None:
    assert [a for a, b in arrows(graph) if inside(a, "infercam.engine") and inside(b, "torch")] == []


def test_the_trainer_takes_of_export_what_it_offers(graph: grimp.ImportGraph) -> None:
    wrong = [
        (a, b)
        for a, b in arrows(graph)
        if inside(a, "infercam.trainer") and inside(b, "infercam.export")
        if b != "infercam.export" and not any(inside(b, offered) for offered in OF_EXPORT[1:])
    ]
    assert wrong == []


def ring(edges: dict[str, set[str]]) -> list[str]:
    """Some circle, or an empty list."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as e:
        return list(e.args[1])
    return []


def test_no_circles_between_modules(graph: grimp.ImportGraph) -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    for a, b in arrows(graph):
        if b.startswith("infercam."):
            edges[a].add(b)
    assert ring(edges) == []


def test_no_circles_between_folders(graph: grimp.ImportGraph) -> None:
    """A room's own `__init__` stands above its folders: it offers them by name."""
    rooms = {f"infercam.{room}" for room in ROOMS}
    edges: dict[str, set[str]] = defaultdict(set)
    for a, b in arrows(graph):
        if b.startswith("infercam.") and folder_of(a) != folder_of(b) and not {a, b} & rooms:
            edges[folder_of(a)].add(folder_of(b))
    assert ring(edges) == []


def test_commands_are_on_the_top_floor(graph: grimp.ImportGraph) -> None:
    """Nobody imports a command line but `infercam` itself, and command lines each other's options."""
    wrong = [
        (a, b)
        for a, b in arrows(graph)
        for room in ROOMS
        if inside(b, f"infercam.{room}.commands") and not inside(a, f"infercam.{room}.commands")
        if a != "infercam.engine.cli"
    ]
    assert wrong == []


def test_command_lines_are_short() -> None:
    """They parse, call and print; the work is a function that Python users can call too."""
    files = [file for room in ROOMS for file in (ROOT / room / "commands").glob("*.py")]
    assert files
    assert {f.name: n for f in files if (n := len(f.read_text().splitlines())) >= 150} == {}


def test_every_class_has_a_name_of_its_own() -> None:
    where = defaultdict(list)
    for room in ROOMS:
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    where[node.name].append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in where.items() if len(files) > 1} == {}


FOREIGN = {"step/make_cam.py", "model.py", "1/model.py", "infercam_kernels.cu"}
"""Files of other projects, and of what we write, that the texts name."""


def test_files_that_the_texts_name_exist() -> None:
    """Docstrings, comments and READMEs: a file that moved is named where it is now."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    there = {name for name in listed if (ROOT / name).is_file()}
    wrong = []
    for name in sorted(there):
        if not name.endswith((".py", ".md", ".cu", ".cuh")) or name.startswith("tests/"):
            continue
        for found in re.finditer(
            r"(?<![\w./{%-])(?:[a-z_0-9]+/)*[a-z_0-9]+\.(?:py|cuh?|md)\b", (ROOT / name).read_text()
        ):
            file = found.group(0)
            if file not in FOREIGN and not any(t == file or t.endswith(f"/{file}") for t in there):
                wrong.append((name, file))
    assert wrong == []
