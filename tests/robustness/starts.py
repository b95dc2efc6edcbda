"""Many starts: a fresh process each, an engine, and first inferences of several sizes from its own threads.

OpenVINO hung in 3 of 102 of them (engine/runners/openvino.py: import_openvino says why it does not any more).
"""

from __future__ import annotations

import sys

from tests.robustness.outcome import Outcome, Say, Size
from tests.robustness.rig import BUNDLE, Rig, finish

START = """
import sys
import numpy as np
from infercam.engine import Engine

bundle, backend, precision = sys.argv[1:]
rng = np.random.default_rng(0)
with Engine.load(bundle, backend, threads=2, precision=precision or None) as engine:
    pictures = [rng.integers(0, 256, (48 + 16 * i, 96 - 8 * i, 3), np.uint8) for i in range(4)]
    results = list(engine.stream(((str(i), p, [i]) for i, p in enumerate(pictures)), "fast"))
    assert len(results) == 4 and all(r.error is None and np.isfinite(r.maps).all() for r in results), results
"""


def starts(rig: Rig, size: Size, say: Say) -> Outcome:
    """`size.starts` of them, one after the other."""
    outcome = Outcome("first inferences of fresh starts", rounds=size.starts)
    command = [sys.executable, "-c", START, str(BUNDLE), rig.backend, rig.precision]
    for number in range(size.starts):
        done = finish(command, limit=120)
        if done.code:
            outcome.lose(f"start {number}: ended with {done.code}: {done.err[-300:]}")
        say(f"starts: {number + 1} of {size.starts}")
    return outcome
