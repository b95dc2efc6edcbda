"""What every section stands on: a folder of small drawn scenes, the command, and the store of an undisturbed run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from infercam.engine.demo.ablation import BUNDLE
from infercam.engine.demo.scenes import CLASS_NAMES, scene
from infercam.engine.store.failures import FAILURES
from infercam.engine.store.mapstore import INDEX, INFO

__all__ = ["BUNDLE", "CLASS_NAMES", "Finished", "Rig", "differences", "one_error", "running"]

COMMAND = [sys.executable, "-m", "infercam.engine.cli"]
LIMIT = 300.0
"""Seconds after which a command that should take a few is said to hang."""
_POOL = 24  # scenes that are drawn; the images are crops of them


class Finished:
    """A command that has ended, and what it said."""

    def __init__(self, code: int, err: str, seconds: float) -> None:
        self.code = code
        self.err = err
        self.seconds = seconds


class Rig:
    """A scratch folder with `count` images; the recipe `fast`, so that a run takes seconds.

    backend, precision: of runs and servers; "": what the bundle's default is.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        seed: int = 0,
        size: tuple[int, int] = (96, 120),
        backend: str = "auto",
        precision: str = "",
    ) -> None:
        self.folder = folder
        self.backend = backend
        self.precision = precision
        self.rng = np.random.default_rng(seed)
        self.images = folder / "images"
        self.labels = folder / "labels.json"
        self.count = count
        draw(self.images, self.labels, count, seed, size)

    @property
    def engine(self) -> list[str]:
        """The options that say which engine."""
        return ["--backend", self.backend, *(["--precision", self.precision] if self.precision else [])]

    def command(self, out: Path, *more: object, images: Path | None = None) -> list[str]:
        """`infercam run` over the rig's images into `out`."""
        source = ["--images", str(images or self.images), "--labels", str(self.labels)]
        engine = [*self.engine, "--recipe", "fast"]
        return [*COMMAND, "run", str(BUNDLE), *source, "-o", str(out), *engine, *map(str, more)]

    def run(self, out: Path, *more: object, images: Path | None = None, **options: object) -> Finished:
        """The same, to its end."""
        return finish(self.command(out, *more, images=images), **options)  # type: ignore[arg-type]

    @cached_property
    def reference(self) -> tuple[Path, float]:
        """The store of an undisturbed run, and how many seconds its process took."""
        out = self.folder / "reference"
        done = self.run(out)
        if done.code:
            raise RuntimeError(f"the undisturbed run failed: {done.err}")
        return out, done.seconds


def draw(images: Path, labels: Path, count: int, seed: int, size: tuple[int, int]) -> None:
    """`count` PNGs of about `size` (height, width): crops of drawn scenes, no two alike; labels.json beside."""
    images.mkdir(parents=True, exist_ok=True)
    pool = [scene((seed, i), (size[0] + 16, size[1] + 16)) for i in range(_POOL)]
    table = {}
    for i in range(count):
        drawn, (y, x) = pool[i % _POOL], divmod(i // _POOL % 256, 16)
        crop = drawn.image[y : y + size[0] - i % 3, x : x + size[1] - i % 2]
        Image.fromarray(crop).save(images / f"{i:05d}.png", compress_level=1)
        table[f"{i:05d}"] = [CLASS_NAMES[c] for c in drawn.classes]
    labels.write_text(json.dumps(table))


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "400", **(more or {})}


def finish(command: list[str], env: Mapping[str, str] | None = None, limit: float = LIMIT) -> Finished:
    """Run a command to its end; one that exceeds `limit` is killed and has code -9 and says so."""
    began = time.monotonic()
    child = start(command, env)
    try:
        _, err = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        kill(child)
        return Finished(-9, f"hung: killed after {limit:.0f} s", limit)
    return Finished(child.returncode, err, time.monotonic() - began)


def start(command: list[str], env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment(env),
        start_new_session=True,
    )


def kill(child: subprocess.Popen[str]) -> None:
    """kill -9 of a process started here and of what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait(30)
    if child.stderr is not None:
        child.stderr.close()


@contextlib.contextmanager
def running(command: list[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A command that is killed when the block ends, if it has not ended by itself."""
    child = start(command, env)
    try:
        yield child
    finally:
        if child.poll() is None:
            kill(child)


def one_error(err: str) -> str | None:
    """What is wrong with what a command said on failing: None if that was exactly one line 'error: …'."""
    if "Traceback" in err:
        return f"a traceback: {err[-300:]}"
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    return None if len(lines) == 1 else f"{len(lines)} error lines: {err[-300:]}"


def digests(store: Path) -> dict[str, str]:
    """SHA-256 of every map file of a store, by its name."""
    return {
        file.relative_to(store).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in store.rglob("*.npz")
    }


def index_lines(store: Path) -> set[tuple[str, str, int]]:
    """What the index says, as a set: a line may be there twice, or torn by a kill and made again."""
    found: set[tuple[str, str, int]] = set()
    if not (store / INDEX).exists():
        return found
    for line in (store / INDEX).read_bytes().splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            found.add((entry["id"], entry["fingerprint"], entry["bytes"]))
    return found


def differences(reference: Path, store: Path) -> list[str]:
    """What a store lacks of, or has besides, an undisturbed run's: names, bytes, index, settings, failures."""
    expected, found = digests(reference), digests(store)
    lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    lines += [
        f"{name}: not in the undisturbed run's store" for name in sorted(found.keys() - expected.keys())
    ]
    lines += [f"{n}: other bytes" for n in sorted(expected.keys() & found.keys()) if expected[n] != found[n]]
    if index_lines(reference) != index_lines(store):
        lines.append("the index differs")
    if _info(reference) != _info(store):
        lines.append(f"{INFO} differs")
    if (store / FAILURES).exists() != (reference / FAILURES).exists():
        lines.append(f"{FAILURES} differs")
    return lines


def _info(store: Path) -> dict[str, object]:
    if not (store / INFO).exists():
        return {}
    content = json.loads((store / INFO).read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != "created"}
