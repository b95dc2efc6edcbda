"""A command line that cannot be read, as one line: whose option it is, or what was meant.

    infercam eval: no option --images; it is one of `infercam run`, `infercam report`, …; see `infercam eval --help`
    infercam run: no option --lables; did you mean '--labels'? See `infercam run --help`

Works on the errors and commands of typer by their attributes: its own click, or the one that is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from infercam.engine.common.errors import shown
from infercam.engine.common.suggest import did_you_mean

SOME = 3  # commands that are named


def usage_line(error: Any, root: Any) -> str:
    """What is wrong with the command line, for a command tree `root`; empty where the help is shown instead."""
    message = " ".join(error.format_message().split())
    if not message:
        return ""
    context = getattr(error, "ctx", None)
    name = " ".join(["infercam", *_names(context)])
    option = getattr(error, "option_name", None)
    if option and message.startswith("No such option") and context is not None:
        what = f"no option {option}{_whose(option, context.command, root)}"
    else:
        what = message.removesuffix(".")
        what = what[0].lower() + what[1:]
    return shown(f"{name}: {what}{' See' if what.endswith('?') else '; see'} `{name} --help`")


def _names(context: Any) -> list[str]:
    """The command's name, below `infercam`."""
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, str(context.info_name))
        context = context.parent
    return names


def _whose(option: str, command: Any, root: Any) -> str:
    """Which commands have the option; if none has, which of the command's own is like it."""
    owners = [name for name, other in _commands(root) if option in _options(other)]
    if not owners:
        return did_you_mean(option, _options(command))
    more = ", …" if len(owners) > SOME else ""
    return f"; it is one of {', '.join(f'`infercam {name}`' for name in owners[:SOME])}{more}"


def _commands(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for key, one in below.items():
        yield from _commands(one, f"{name} {key}".strip())


def _options(command: Any) -> list[str]:
    """As they are written, long ones first: what is like one is more likely a long one."""
    own = [name for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")]
    return sorted({*own, "--help"}, key=lambda name: (not name.startswith("--"), name))
