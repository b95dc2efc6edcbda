"""A process that opens one hostile file after another, so that the proofs survive what it does not.

The parent (`Victim`) sends one JSON line per file and waits for one line of verdict, no longer than a limit:

    accepted    it was read, and what came out is valid
    refused     one InfercamError of one line
    fault       any other exception, a message of several lines, or content that is not valid
    crash, hang (the parent's own words) the process died, or did not answer in time
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ADDRESS_SPACE = 8 << 30
"""More than that is refused by the system: a bomb that goes off must not take the machine with it."""


class Verdict(NamedTuple):
    kind: str
    text: str
    seconds: float
    peak_mb: float
    """How much the process's memory rose while it had the file."""


# -- the parent's side ---------------------------------------------------------------------------------------


class Victim:
    """Starts the process when first asked, and again after it died or was killed for hanging."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._child: subprocess.Popen[bytes] | None = None

    def ask(self, probe: str, limit: float = 60.0, **request: Any) -> Verdict:
        child = self._child if self._child is not None and self._child.poll() is None else self._start()
        assert child.stdin is not None and child.stdout is not None
        began = time.monotonic()
        child.stdin.write(json.dumps({"probe": probe, **request}).encode() + b"\n")
        child.stdin.flush()
        ready, _, _ = select.select([child.stdout], [], [], limit)
        line = child.stdout.readline() if ready else b""
        seconds = time.monotonic() - began
        if line:
            return Verdict(**{**json.loads(line), "seconds": seconds})
        if not ready:
            self.close()
            return Verdict("hang", f"no answer in {limit:.0f} s", seconds, 0.0)
        code = child.wait(30)
        self.close()
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return Verdict("crash", f"{name}: {self._log.read_text(errors='replace')[-300:]}", seconds, 0.0)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.robustness.victim"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._child

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait(30)
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._child = None

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -- the process ---------------------------------------------------------------------------------------------


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do not get between the answers
    for line in sys.stdin:
        request = json.loads(line)
        probe = _PROBES[request.pop("probe")]
        before = _begin_peak()
        kind, text = _judge(lambda probe=probe, request=request: probe(**request))  # type: ignore[misc]
        peak = max(0.0, (_status("VmHWM:") - before) / 1024)
        answers.write(json.dumps({"kind": kind, "text": text[-600:], "seconds": 0, "peak_mb": peak}) + "\n")
        answers.flush()


def _judge(action: Callable[[], None]) -> tuple[str, str]:
    from infercam.engine.common.errors import InfercamError

    try:
        action()
    except InfercamError as e:
        text = str(e)
        return ("refused" if text and "\n" not in text else "fault"), text
    except Exception:
        return "fault", traceback.format_exc()
    return "accepted", ""


def _begin_peak() -> float:
    """Forget the highest memory so far; what there is now, in KB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS:")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key))


def _image(path: str) -> None:
    from infercam.engine.data.images import image_size, read_image

    pixels = read_image(path)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    assert pixels.shape[:2] == image_size(path) or path.endswith(".gif")  # a frame may overhang its screen


def _bundle(path: str) -> None:
    """Load it and refine the maps of a made-up picture: refused in one line, or maps that are maps."""
    from infercam.engine.api import Engine

    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    with Engine.load(path, "cpu", threads=1) as engine:
        maps = engine.maps(picture, [0], "fast")
        assert maps.shape == (1, 40, 56) and np.isfinite(maps).all() and maps.min() >= 0 and maps.max() <= 1
        assert all(0 <= c < len(engine.manifest.classes) for c in engine.predict(picture))


def _store(path: str, fmt: str | None = None) -> None:
    """Open a store and read every image that it says is there; the first refusal counts."""
    from infercam.engine.store.mapstore import MapStore

    store = MapStore.open(path, fmt)
    for id in store.ids():
        assert store.file(id).resolve().is_relative_to(Path(path).resolve())
        record = store.read(id)
        assert record.maps.ndim == 3 and record.maps.dtype == np.float32 and np.isfinite(record.maps).all()
        assert fmt or not record.maps.size or (record.maps.min() >= 0 and record.maps.max() <= 1)
        assert all(0 <= c < len(store.info.classes) for c in record.classes)
        assert store.done(id, "x") in (True, False)


def _labels(path: str, classes: list[str], ids: list[str]) -> None:
    """Load labels and look ids up; a label that cannot be used is refused at the look-up."""
    from infercam.engine.common.errors import InputError
    from infercam.engine.data.labels import load_labels

    labels = load_labels(path, classes)
    refused: InputError | None = None
    for id in ids:
        try:
            found = labels.lookup(id)
        except InputError as e:
            refused = e
        else:
            assert found and all(0 <= c < len(classes) for c in found)
    if refused is not None:
        raise refused


def _mask(path: str) -> None:
    from infercam.engine.evaluation.label_png import read_label

    label = read_label(Path(path), classes=8)
    assert label.dtype == np.uint8 and label.ndim == 2 and label.size


def _plan(path: str, bundle: str) -> None:
    """One plan's folder: its record and its bytes; and the listing of all plans, which never raises."""
    from infercam.engine.bundle import Bundle
    from infercam.engine.runners.plan import Environment, Plan, list_plans

    list_plans(Bundle.load(bundle), Environment("GPU", (8, 0), "10.16"), Path(path).parent)
    plan = Plan.load(Path(path))
    assert plan.record.key and plan.record.profiles
    plan.read()


def _export(path: str, out: str) -> None:
    from infercam.export.writing.onnx_source import export_onnx

    export_onnx(path, out, overwrite=True)


def _list(path: str, root: str) -> None:
    from infercam.engine.data.sources import list_source

    for item in list_source(path, root):
        assert ".." not in item.id.split("/") and not item.id.startswith("/")


_PROBES: dict[str, Callable[..., None]] = {
    "image": _image,
    "bundle": _bundle,
    "store": _store,
    "labels": _labels,
    "mask": _mask,
    "plan": _plan,
    "export": _export,
    "list": _list,
}

if __name__ == "__main__":
    main()
