"""What scripts may call stays: commands and options as in public_surface.txt, and what engine/README.md lists.

After a change that is meant: `python -m tests.test_public_surface > tests/public_surface.txt`. Nothing may leave that
file without a word in the README; what is new may come.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import PurePath
from typing import Any

import pytest

from infercam.engine import cli
from tests.shared import ROOT

LIST = ROOT / "tests" / "public_surface.txt"
SECTION = "## What scripts may call"


def surface() -> list[str]:
    """Every command, followed by its arguments and options (indented), sorted, with defaults."""
    return list(_lines(cli.command(), ""))


def _lines(command: Any, name: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for key, below in sorted(command.commands.items()):
            yield from _lines(below, f"{name} {key}".strip())
        return
    yield name
    yield from (f"    {line}" for line in sorted(map(_parameter, command.params)))


def _parameter(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    names = [*parameter.opts, *parameter.secondary_opts]
    name = f"argument {parameter.name}" if argument else ", ".join(names)
    if parameter.required:
        return f"{name} (required)"
    default = parameter.default() if callable(parameter.default) else parameter.default
    written = isinstance(default, str | int | float | PurePath) and default is not False
    return f"{name} = {default}" if written else name


def _section() -> str:
    text = (ROOT / "engine" / "README.md").read_text(encoding="utf-8")
    return text.split(f"{SECTION}\n", 1)[1].split("\n## ", 1)[0]


def _listed(title: str) -> set[str]:
    """The names in backticks of the section's point that begins with `title`."""
    found = re.search(rf"^- \*\*{re.escape(title)}\*\*(.*?)(?=^- |\Z)", _section(), re.MULTILINE | re.DOTALL)
    assert found, f"engine/README.md: {SECTION} has no point {title!r}"
    return set(re.findall(r"`([^`]+)`", found[1]))


def test_commands_and_options_are_those_listed() -> None:
    assert surface() == LIST.read_text(encoding="utf-8").splitlines()


def test_the_readme_lists_every_command() -> None:
    assert _listed("Commands") == {line for line in surface() if not line.startswith(" ")}


@pytest.mark.parametrize("room", ["infercam.engine", "infercam.export"])
def test_the_readme_lists_what_a_room_offers_by_name(room: str) -> None:
    offered = import_module(room).__all__
    assert _listed(room) == set(offered)


def test_the_settings_of_a_run_can_be_imported_as_the_readme_says() -> None:
    for dotted in _listed("Settings"):
        module, _, name = dotted.rpartition(".")
        assert hasattr(import_module(module), name), dotted


if __name__ == "__main__":
    print("\n".join(surface()))
