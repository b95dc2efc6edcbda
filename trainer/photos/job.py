"""A file for every photo: resumable, several processes, one bad photo never stops the rest.

A photo's work has two halves. `prepare` runs here (a network, say) and gives the arguments of `finish`, which
runs in a pool of spawned processes and writes the file. Only a few photos are under way at any time.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infercam.engine.common.cores import available_cores
from infercam.engine.common.errors import StoreError, shown
from infercam.engine.common.progress import JobProgress
from infercam.engine.common.signals import caught_signals
from infercam.engine.store.failures import FAILURES, Failures
from infercam.engine.store.image_index import DiskFullError

Finish = Callable[..., None]
"""(id, *what prepare gave): writes the photo's file; picklable; what it raises fails this photo alone."""


@dataclass(frozen=True)
class JobSummary:
    """What a job did."""

    done: int
    kept: int
    """There already."""
    failures: list[str]
    """Ids; the reasons are in OUT/failures.jsonl."""
    seconds: float
    stopped: int = 0
    """The signal that stopped it before the end, or 0."""
    reasons: Sequence[str] = ()
    """Why photos failed, counted, the commonest first."""

    def line(self, what: str, out: Path) -> str:
        rate = f", {self.done / self.seconds:.2f} photos/s" if self.done and self.seconds else ""
        failed = f", {len(self.failures)} failed (see {out / FAILURES})" if self.failures else ""
        stopped = "; stopped, run the same command again to go on" if self.stopped else ""
        return f"{what}: {self.done} made, {self.kept} kept{failed}{rate} -> {out}{stopped}"

    def exit_code(self) -> int:
        return 128 + self.stopped if self.stopped else int(bool(self.failures))


def run_job(
    what: str,
    ids: Sequence[str],
    file: Callable[[str], Path],
    finish: Finish,
    out: Path,
    *,
    prepare: Callable[[str], tuple[Any, ...]] | None = None,
    workers: int = 0,
    made: Callable[[str], bool] | None = None,
) -> JobSummary:
    """Make `file(id)` for every id that has none yet.

    made: tells the photos that are kept, where more is asked than that the file exists.
    workers: processes for `finish`; 0: in this one. SIGTERM and SIGINT end it between two photos.
    Raises StoreError where a process died or failures.jsonl cannot be written.
    """
    started = time.monotonic()
    made = made or (lambda item_id: file(item_id).exists())
    left = [item_id for item_id in ids if not made(item_id)]
    failures: list[str] = []
    listed = Failures(out)
    done = 0
    with caught_signals() as caught, JobProgress(what, len(ids)) as bar, _Pool(finish, workers) as pool:
        bar.skip(len(ids) - len(left))

        def ended(item_id: str, future: Future[None]) -> None:
            nonlocal done
            try:
                future.result()
                done += 1
            except BrokenProcessPool:
                raise StoreError(f"{what}: a process died at {shown(item_id)} (out of memory?)") from None
            except DiskFullError:  # the rest would fail as well
                raise
            except Exception as e:  # whatever it is, it fails this photo and not the job
                failures.append(item_id)
                listed.add(item_id, e)
            bar.advance(1, f"{len(failures)} failed" if failures else "")

        waiting: deque[tuple[str, Future[None]]] = deque()
        for item_id in left:
            if caught:
                break
            waiting.append((item_id, pool.start(item_id, prepare)))
            if len(waiting) > 2 * workers:
                ended(*waiting.popleft())
        while waiting:
            ended(*waiting.popleft())
        stopped = caught[0] if caught else 0
    kept = len(ids) - len(left)
    return JobSummary(
        done, kept, failures, round(time.monotonic() - started, 1), stopped, listed.groups.lines()
    )


class _Pool:
    """Spawned processes that hold `finish`, or this one."""

    def __init__(self, finish: Finish, workers: int) -> None:
        self._finish = finish
        self._pool = None
        if workers:  # spawned: a fork of a process with threads may hang
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, initializer=_hold, initargs=(finish,))

    def start(self, item_id: str, prepare: Callable[[str], tuple[Any, ...]] | None) -> Future[None]:
        """The result, or the error, of both halves."""
        failed: Future[None] = Future()
        try:
            given = prepare(item_id) if prepare else ()
            if self._pool is not None:
                return self._pool.submit(_held, item_id, *given)
            self._finish(item_id, *given)
            failed.set_result(None)
        except Exception as e:
            failed.set_exception(e)
        return failed

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_FINISH: list[Finish] = []


def _hold(finish: Finish) -> None:
    """In a new process: keep `finish` and what it loads; Ctrl-C is for the parent to act on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _FINISH[:] = [finish]


def _held(item_id: str, *given: Any) -> None:
    _FINISH[0](item_id, *given)


def pool_size(asked: int | None, crf: object) -> int:
    """Processes: as asked, else one a core where there is a CRF to compute."""
    if asked is not None:
        return asked
    return available_cores() if crf is not None else 0
