"""A function in a process of its own: its answers, its errors, its death."""

from __future__ import annotations

import os
import signal

import pytest

from infercam.engine.common.child import Child, ChildDied
from infercam.engine.common.errors import InputError, MissingExtra


def answer(what: str, value: object = None) -> object:
    """What the child answers with."""
    print("what a library prints is no answer")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGFPE)
    if what == "exit":
        os._exit(3)
    if what == "refuse":
        raise InputError("no such thing")
    if what == "lack":
        raise MissingExtra("onnx", "export", "that")
    return value


def test_answers_errors_and_deaths() -> None:
    with Child(f"{__name__}:answer") as child:
        assert child.ask("same", [1, {"a": b"\n"}]) == [1, {"a": b"\n"}]
        with pytest.raises(InputError, match="no such thing"):
            child.ask("refuse")
        with pytest.raises(Exception, match=r"infercam\[export\]"):
            child.ask("lack")
        with pytest.raises(ChildDied, match="SIGFPE"):
            child.ask("kill")
        with pytest.raises(ChildDied, match="exit code 3"):
            child.ask("exit")
        assert child.ask("same", 2) == 2, "another one was started"
    assert child.ask("same", 3) == 3, "closed, it starts anew"
    child.close()
    child.close()


def test_a_function_that_is_not_there_is_a_death() -> None:
    with Child(f"{__name__}:none") as child, pytest.raises(ChildDied, match="exit code 1"):
        child.ask("same")
