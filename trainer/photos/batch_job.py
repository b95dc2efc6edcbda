"""A file for every photo, made in batches: photos are read ahead on threads, a network sees several at once, and a
photo that fails fails alone. What job.py is for work that has no batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from infercam.engine.common.prefetch import prefetch
from infercam.engine.common.progress import JobProgress
from infercam.engine.common.signals import caught_signals
from infercam.engine.store.failures import Failures
from infercam.engine.store.image_index import DiskFullError
from infercam.trainer.photos.job import JobSummary

Read = TypeVar("Read")
Made = TypeVar("Made")
READERS = 2


def run_batches(
    what: str,
    ids: Sequence[str],
    out: Path,
    *,
    made: Callable[[str], bool],
    read: Callable[[str], Read],
    infer: Callable[[list[Read]], list[Made]],
    write: Callable[[str, Made], None],
    batch: int,
) -> JobSummary:
    """`read`, `infer`, `write` for every id that is not `made` yet; at most three batches are held.

    Where a batch fails, its photos are tried one by one. SIGTERM and SIGINT end it between two batches. Raises
    StoreError where the disk is full or failures.jsonl cannot be written.
    """
    started = time.monotonic()
    left = [item_id for item_id in ids if not made(item_id)]
    failures: list[str] = []
    listed = Failures(out)
    done = 0

    def failed(item_id: str, error: Exception) -> None:
        failures.append(item_id)
        listed.add(item_id, error)

    def finish(item_id: str, result: Made) -> None:
        nonlocal done
        try:
            write(item_id, result)
            done += 1
        except DiskFullError:  # the rest would fail as well
            raise
        except Exception as e:
            failed(item_id, e)

    def together(names: list[str], photos: list[Read]) -> None:
        try:
            results = infer(photos)
        except Exception as e:
            if len(photos) == 1:
                failed(names[0], e)
            else:
                for one in zip(names, photos, strict=True):
                    together([one[0]], [one[1]])
            return
        for item_id, result in zip(names, results, strict=True):
            finish(item_id, result)

    with caught_signals() as caught, JobProgress(what, len(ids)) as bar:
        bar.skip(len(ids) - len(left))
        for group in _groups(_read_ahead(read, left, batch), batch):
            good = [(item_id, photo) for item_id, photo in group if not isinstance(photo, Exception)]
            for item_id, photo in group:
                if isinstance(photo, Exception):
                    failed(item_id, photo)
            if good:
                together([item_id for item_id, _ in good], [photo for _, photo in good])
            bar.advance(len(group), f"{len(failures)} failed" if failures else "")
            if caught:
                break
        stopped = caught[0] if caught else 0
    seconds = round(time.monotonic() - started, 1)
    kept = len(ids) - len(left)
    return JobSummary(done, kept, failures, seconds, stopped, listed.groups.lines())


def _read_ahead(
    read: Callable[[str], Read], ids: Sequence[str], batch: int
) -> Iterator[tuple[str, Read | Exception]]:
    """Every photo in order, or what kept it from being read."""

    def attempt(item_id: str) -> tuple[str, Read | Exception]:
        try:
            return item_id, read(item_id)
        except Exception as e:  # whatever it is, it fails this photo and not the job
            return item_id, e

    yield from prefetch(attempt, ids, threads=READERS, depth=max(READERS, 2 * batch))


def _groups(items: Iterator[Read], size: int) -> Iterator[list[Read]]:
    while group := list(islice(items, size)):
        yield group
