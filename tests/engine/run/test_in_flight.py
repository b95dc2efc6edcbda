"""A picture that ends the process: the next run knows it, and does it in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from infercam.engine.bundle import Bundle
from infercam.engine.common.in_flight import InFlight
from infercam.engine.data.storage import open_storage
from infercam.engine.run.isolated import in_flight_file
from infercam.engine.store.failures import read_failures
from infercam.engine.store.mapstore import MapStore
from tests.engine import tiny


def test_the_list_of_a_run_that_ended_by_itself_is_gone(tmp_path: Path) -> None:
    run = InFlight(in_flight_file(open_storage(tmp_path)))
    assert run.suspects == set()
    run.begin("a\nb")
    run.end("a\nb")
    run.begin("c")  # failed with an exception, say
    run.close()
    assert not list(tmp_path.iterdir())


def test_what_was_begun_and_not_ended_is_suspect_and_killers_stay(tmp_path: Path) -> None:
    killed = InFlight(in_flight_file(open_storage(tmp_path), "1-of-2"))
    for id in ("a", "b", "c"):
        killed.begin(id)
    killed.end("b")
    with (tmp_path / "in-flight-1-of-2.txt").open("a") as f:
        f.write('["begun", "torn')
    following = InFlight(in_flight_file(open_storage(tmp_path), "1-of-2"))
    assert following.suspects == {"a", "c"}
    assert InFlight(in_flight_file(open_storage(tmp_path))).suspects == set(), "another shard's"
    following.killed("a")
    following.end("c")
    following.close()
    third = InFlight(in_flight_file(open_storage(tmp_path), "1-of-2"))
    assert third.suspects == {"a"}
    third.close()
    assert InFlight(in_flight_file(open_storage(tmp_path), "1-of-2")).suspects == {"a"}, (
        "not done: still not to be trusted"
    )
    fourth = InFlight(in_flight_file(open_storage(tmp_path), "1-of-2"))
    fourth.end("a")
    fourth.close()
    assert not (tmp_path / "in-flight-1-of-2.txt").exists()


KILLER = """
import os, signal
from infercam.engine.data import sources
read = sources.read_pixels
def read_pixels(place, path, most):
    if "p002" in str(path):
        os.kill(os.getpid(), signal.SIGSEGV)
    return read(place, path, most)
sources.read_pixels = read_pixels
"""


@pytest.fixture
def run(tmp_path: Path, tiny_bundle: Bundle):
    """`infercam run` as a process, which image p002 kills (the process, and every child that reads it)."""
    data = tiny.write_dataset(tmp_path / "data", 5)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(KILLER)

    def call(*, deadly: bool = True) -> subprocess.CompletedProcess[str]:
        arguments = ["run", tiny_bundle.path, "--images", data / "images", "--labels", data / "labels.json"]
        paths = [str(tmp_path / "site")] * deadly
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "infercam.engine.cli",
                *map(str, arguments),
                "-o",
                tmp_path / "out",
                "--threads",
                "1",
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return call


def test_a_picture_that_kills_the_process_is_left_out_by_the_next_run(run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run().returncode == -signal.SIGSEGV
    assert ["begun", "p002"] in [json.loads(x) for x in (out / "in-flight.txt").read_text().splitlines()]
    second = run()
    assert second.returncode == 1 and "1 failed of 5" in second.stderr, second.stderr
    failed = read_failures(out)
    assert list(failed) == ["p002"] and "SIGSEGV" in failed["p002"] and "left out" in failed["p002"]
    assert sorted(MapStore.open(out).ids()) == ["p000", "p001", "p003", "p004"]
    third = run()
    assert third.returncode == 1 and "4 kept, 1 failed" in third.stderr, "it is never among others again"
    last = run(deadly=False)
    assert last.returncode == 0 and "1 done, 4 kept" in last.stderr, last.stderr
    assert not (out / "in-flight.txt").exists() and not read_failures(out)
