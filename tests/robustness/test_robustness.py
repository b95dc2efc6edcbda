"""The proofs, small: a few rounds of each. The whole is `python -m tests.robustness`."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest

from tests.robustness import soak as soaking
from tests.robustness.attacks import attack_server
from tests.robustness.bad_files import _KINDS, corrupt_files
from tests.robustness.clocks import clock_jumps
from tests.robustness.disks import closed_folders, full_disk
from tests.robustness.kill_server import kill_server
from tests.robustness.kills import kill_run, kill_shard, kill_worker
from tests.robustness.outcome import Outcome, Size, Skipped
from tests.robustness.pictures import corrupt_pictures
from tests.robustness.rig import Rig, differences
from tests.robustness.soak import Sample
from tests.robustness.starts import starts
from tests.robustness.victim import Victim

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="breaks things in Linux's ways")


def quiet(line: str) -> None:
    """Progress that nobody reads."""


def _or_skip(section, rig: Rig, size: Size):
    try:
        return section(rig, size, quiet)
    except Skipped as e:
        pytest.skip(str(e))


@pytest.mark.parametrize(
    "section", [kill_run, full_disk, closed_folders, clock_jumps, corrupt_pictures, starts]
)
def test_nothing_is_lost(section, rig: Rig, size: Size, nothing_lost) -> None:
    nothing_lost(_or_skip(section, rig, size))


def test_corrupt_files(rig: Rig, size: Size, nothing_lost) -> None:
    pytest.importorskip("onnx", reason="the sources of an export need onnx (extra export)")
    outcomes = corrupt_files(rig, size, quiet)
    assert len(outcomes) == len(_KINDS)
    for outcome in outcomes:
        assert outcome.inputs > 8, outcome.name
        nothing_lost(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("section", [kill_shard, kill_server])
def test_nothing_is_lost_of_shards_and_servers(section, rig: Rig, size: Size, nothing_lost) -> None:
    if section is kill_server:
        pytest.importorskip("fastapi", reason="the server is the extra serve")
    nothing_lost(_or_skip(section, rig, size))


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(rig: Rig, size: Size, nothing_lost) -> None:
    pytest.importorskip("ray", reason="the cluster is the extra cluster")
    nothing_lost(_or_skip(kill_worker, rig, dataclasses.replace(size, rounds=1)))


@pytest.mark.slow
def test_attacks_on_the_server(rig: Rig, size: Size, nothing_lost) -> None:
    pytest.importorskip("fastapi", reason="the server is the extra serve")
    for outcome in _or_skip(attack_server, rig, size):
        nothing_lost(outcome)


def test_a_short_soak(rig: Rig, size: Size, nothing_lost) -> None:
    nothing_lost(soaking.soak(rig, size, quiet, judge_rate=False))


# -- the proofs themselves can fail


def test_differences_are_found(rig: Rig, tmp_path: Path) -> None:
    reference, _ = rig.reference
    store = tmp_path / "store"
    shutil.copytree(reference, store)
    assert differences(reference, store) == []
    first, second = sorted(store.glob("*.npz"))[:2]
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    (store / "more.npz").write_bytes(b"")
    (store / "index.jsonl").write_bytes(b"")
    (store / "failures.jsonl").write_text("")
    assert set(differences(reference, store)) == {
        f"{first.name}: other bytes",
        f"{second.name}: missing",
        "more.npz: not in the undisturbed run's store",
        "the index differs",
        "failures.jsonl differs",
    }


def _samples(rss=lambda i: 100e6, handles=lambda i: 9, rate=lambda i: 10) -> list[Sample]:
    done, out = 0, []
    for i in range(100):
        done += rate(i)
        out.append(Sample(i * 0.5, done, int(rss(i)), handles(i), 7))
    return out


@pytest.mark.parametrize(
    ("samples", "word"),
    [
        (_samples(), ""),
        (_samples(rss=lambda i: 100e6 + i * 1e6), "memory grew"),
        (_samples(handles=lambda i: 9 + i // 10), "file handles grew"),
        (_samples(rate=lambda i: 10 if i < 50 else 5), "the rate fell"),
    ],
)
def test_a_soak_that_grows_is_judged(samples: list[Sample], word: str) -> None:
    outcome = Outcome("soak")
    soaking._judge(outcome, samples, judge_rate=True)
    assert [word in loss for loss in outcome.losses] == ([True] if word else [])


def test_a_victim_says_what_became_of_it(tmp_path: Path) -> None:
    with Victim(tmp_path / "log") as victim:
        assert victim.ask("image", path=str(tmp_path / "none.jpg")).kind == "refused"
        assert victim.ask("mask", path=5).kind == "fault"
        assert victim.ask("no such probe").kind == "crash"
        assert victim.ask("image", limit=0.0, path=str(tmp_path / "none.jpg")).kind == "hang"
        assert victim.ask("image", path=str(tmp_path / "none.jpg")).kind == "refused"
