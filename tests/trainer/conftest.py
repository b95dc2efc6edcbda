"""Shared by the trainer's tests: helpers beside them can be imported, and the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest


@pytest.fixture
def infercam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable:
    """The command line with the trainer's commands, in this process: `infercam(*arguments)` gives code and err."""
    from infercam.engine import cli

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["infercam", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = int(e.code or 0)
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, err=captured.err, out=captured.out)

    return run
