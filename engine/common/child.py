"""A function in a process of its own, which may die without taking this one along: what a native library does to a
process (SIGFPE, SIGSEGV, the kernel's out-of-memory killer) is not to be caught otherwise.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from infercam.engine.common.errors import InfercamError


class ChildDied(InfercamError):
    """The process ended before it answered; `how` says by what."""

    def __init__(self, code: int) -> None:
        self.how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        super().__init__(f"the process ended by {self.how}")


class Child:
    """`ask(x)` is `function(x)` in a process that lives from question to question; dead, the next one starts another.

    function: `module:name` of what answers; questions and answers are pickled. It shares nothing with this process
    but the environment, and is made by exec, not by fork: threads here cannot make it hang.
    """

    def __init__(self, function: str) -> None:
        self.function = function
        self._one = threading.Lock()  # a question and its answer belong together
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, *question: Any) -> Any:
        """The answer; raises what the function raises, ChildDied where its process does. One at a time."""
        with self._one:
            return self._asked(question)

    def _asked(self, question: tuple[Any, ...]) -> Any:
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            pickle.dump(question, process.stdin)
            process.stdin.flush()
            answer, error = pickle.load(process.stdout)  # our own child's
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            self._process = None
            process.kill()
            raise ChildDied(process.wait()) from None
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """End the process; a later question starts another."""
        if self._process is not None:
            process, self._process = self._process, None
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
            process.stdout.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(p for p in sys.path if p)  # it finds what this process has found
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infercam.engine.common.child", self.function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        return self._process


def _serve(function: Callable[..., Any]) -> None:
    """Answer the questions on stdin until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while True:
        try:
            question = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply: tuple[Any, BaseException | None] = (function(*question), None)
        except Exception as e:
            reply = (None, _portable(e))
        pickle.dump(reply, answers)
        answers.flush()


def _portable(error: Exception) -> Exception:
    """The error, or one that says the same, where it cannot be made again from its arguments."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return InfercamError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to act on; then stdin ends
    module, _, name = sys.argv[1].partition(":")
    _serve(getattr(import_module(module), name))
