"""OpenVINO's first use by several threads, which hung; and that it sends nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("openvino", reason="needs the extra openvino")

BOTH_AT_ONCE = """
import sys, threading
from functools import partial
from operator import call

{how}

sys.setswitchinterval(1e-6)
ready, go = threading.Semaphore(0), threading.Lock()
go.acquire()
table = partial(openvino.Type.to_dtype, openvino.Type.f32)
# No byte code runs between these calls, and so nothing in which Python's lock would change hands by itself.
first = [ready.acquire, go.release, partial(sum, range(1_000_000)), table]
second = [ready.release, go.acquire, table]
threads = [threading.Thread(target=list, args=(map(call, calls),), daemon=True) for calls in (first, second)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join({limit})
    print("hangs" if thread.is_alive() else "ends", flush=True)
import os
os._exit(0)
"""
"""One thread makes the table of types; the other comes to it as soon as the first gives Python's lock away, and holds
that lock while it waits. How it goes is printed by a third: it needs the lock as well, so that a hang ends only here,
by the limit of the whole."""


def at_once(how: str, limit: float) -> str:
    command = [sys.executable, "-c", BOTH_AT_ONCE.format(how=how, limit=limit)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return "hangs"
    return done.stdout + done.stderr


def test_two_threads_may_use_it_first() -> None:
    how = "from infercam.engine.runners.openvino import import_openvino; openvino = import_openvino()"
    assert at_once(how, 120) == "ends\nends\n"


@pytest.mark.slow
def test_without_care_they_hang() -> None:
    """Fails once OpenVINO has mended it: then import_openvino can be simpler."""
    how = "sys.modules['openvino_telemetry'] = None; import openvino"
    assert at_once(how, 20) == "hangs"


def test_no_usage_reports_are_sent() -> None:
    code = """
import sys, threading
from infercam.engine.demo.ablation import BUNDLE
from infercam.engine import Engine
with Engine.load(BUNDLE, "openvino", threads=1):
    print(sys.modules["openvino_telemetry"], [t.name for t in threading.enumerate() if "infercam" not in t.name])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "None ['MainThread']\n", done.stderr


STACK = """
import ctypes, os, signal, sys
from pathlib import Path
import numpy as np
from infercam.engine.bundle import Bundle
from infercam.engine.runners.openvino import OpenvinoNetwork, cpu_name

def stack():
    found = (ctypes.c_size_t * 3)()  # start, flags, size
    ctypes.CDLL(None).sigaltstack(None, found)
    return list(found)[0], found[1] & 0xFFFFFFFF, found[2]

before = stack()
cpu_name()
bundle = Bundle.load(Path(sys.argv[1]))
for _ in range(2):
    network = OpenvinoNetwork(bundle, 1)
    network.run(["response"], np.zeros((1, 3, 48, 48), np.float32))
assert stack() == before, (before, stack())
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("how", [[], ["-X", "faulthandler"]])
def test_signals_keep_their_stack(tiny_bundle, how):
    """The plugin would put in one that is too small for AMX's registers."""
    command = [sys.executable, *how, "-c", STACK, str(tiny_bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
