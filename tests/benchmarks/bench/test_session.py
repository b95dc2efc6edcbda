"""Turns, going on, and failures, with a runner that measures nothing; worker processes that really fail."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from infercam.benchmarks.bench import matrix_rate, process, worker
from infercam.benchmarks.bench.contestants import Field, rows, waterfall
from infercam.benchmarks.bench.figures import row
from infercam.benchmarks.bench.job import BenchJob, BenchOutcome, BenchSwitches, Measured, NotMeasured
from infercam.benchmarks.bench.pictures import (
    BenchPicture,
    Pictures,
    collect,
    relabelled,
    repeated,
    resized,
    save,
)
from infercam.benchmarks.bench.session import MAPS, SCORE, BenchSession, BenchTask
from infercam.engine.common.errors import InputError
from infercam.engine.data.sources import folder_source
from infercam.engine.method.recipe import RECIPES
from tests.engine import tiny


def job(**options: object) -> BenchJob:
    return BenchJob.model_validate(
        {"kind": "engine", "bundle": "b", "pictures": "p.json", "digest": "d", "count": 2, **options}
    )


class Runner:
    """Notes what it is asked for; every call takes one more second."""

    def __init__(self, failing: str = "") -> None:
        self.asked: list[str] = []
        self.failing = failing

    def __call__(self, one: BenchJob, folder: Path) -> BenchOutcome:
        self.asked.append(one.recipe)
        if one.recipe == self.failing:
            return BenchOutcome(reason="no such thing here")
        (folder / "maps").mkdir(parents=True)
        (folder / "maps" / "a.npy").write_text(one.recipe)
        seconds = float(len(self.asked))
        return BenchOutcome(
            measured=Measured(images=2, seconds=seconds, cpu_seconds=1, began=0, ended=seconds, peak_mb=9)
        )


def tasks(*recipes: str, rounds: int = 2) -> list[BenchTask]:
    return [BenchTask(r, job(recipe=r), rounds) for r in recipes]


def test_contestants_take_turns(tmp_path) -> None:
    runner, rounds = Runner(), []
    session = BenchSession(tmp_path, "hash", runner=runner)
    session.run(tasks("fast", "best", "paper"), rounds.append)
    assert runner.asked == ["fast", "best", "paper"] * 2
    assert rounds == [0, 1]
    assert [m.seconds for m in session.measured(job(recipe="best"))] == [2, 5]


def test_a_job_of_two_parts_is_done_once_with_all_that_is_looked_up(tmp_path) -> None:
    runner = Runner()
    session = BenchSession(tmp_path, "hash", runner=runner)
    read = lambda folder: {"read": (folder / "a.npy").read_text()}  # noqa: E731
    session.run([BenchTask("a", job(recipe="fast"), 1), BenchTask("b", job(recipe="fast"), 3, {SCORE: read})])
    assert runner.asked == ["fast"] * 3
    assert session.found[session.key(job(recipe="fast"))] == {SCORE: {"read": "fast"}}
    assert not list((tmp_path / "scratch").iterdir())


def test_going_on_measures_only_what_is_missing(tmp_path) -> None:
    BenchSession(tmp_path, "hash", runner=Runner()).run(tasks("fast", "best", rounds=1))
    runner = Runner()
    session = BenchSession(tmp_path, "hash", runner=runner)
    session.run(tasks("fast", "best", "paper"))
    assert runner.asked == ["paper", "fast", "best", "paper"]
    assert len(session.measured(job(recipe="fast"))) == 2


def test_a_kill_in_mid_run_loses_one_measurement(tmp_path) -> None:
    class Killed(Runner):
        def __call__(self, one: BenchJob, folder: Path) -> BenchOutcome:
            if len(self.asked) == 2:
                raise SystemExit(143)
            return super().__call__(one, folder)

    with pytest.raises(SystemExit):
        BenchSession(tmp_path, "hash", runner=Killed()).run(tasks("fast", "best", "paper"))
    runner = Runner()
    BenchSession(tmp_path, "hash", runner=runner).run(tasks("fast", "best", "paper"))
    assert runner.asked == ["paper", "fast", "best", "paper"]


def test_what_was_measured_on_another_bundle_or_half_written_does_not_count(tmp_path) -> None:
    BenchSession(tmp_path, "hash", runner=Runner()).run(tasks("fast", rounds=1))
    runner = Runner()
    BenchSession(tmp_path, "other", runner=runner).run(tasks("fast", rounds=1))
    for file in (tmp_path / "measured").iterdir():
        file.write_text(file.read_text()[:40])
    BenchSession(tmp_path, "hash", runner=runner).run(tasks("fast", rounds=1))
    assert runner.asked == ["fast"] * 2


def test_again_forgets(tmp_path) -> None:
    BenchSession(tmp_path, "hash", runner=Runner()).run(tasks("fast"))
    runner = Runner()
    session = BenchSession(tmp_path, "hash", runner=runner)
    session.forget()
    session.run(tasks("fast"))
    assert runner.asked == ["fast"] * 2


def test_matrix_rates_are_kept_with_what_they_were_measured_beside(tmp_path) -> None:
    session = BenchSession(tmp_path, "hash", runner=Runner())
    assert session.recall_rates() == {}
    session.keep_rates({"cpu": 1e11})
    assert BenchSession(tmp_path, "hash").recall_rates() == {"cpu": 1e11}
    (tmp_path / "measured" / "matrix-rate.json").write_text("[1")
    assert session.recall_rates() == {}
    session.keep_rates({"cpu": 1e11})
    session.forget()
    assert session.recall_rates() == {}


def test_kept_maps_that_are_gone_are_made_again(tmp_path) -> None:
    def keep(folder: Path) -> dict[str, str]:
        (tmp_path / MAPS).mkdir(exist_ok=True)
        folder.rename(tmp_path / MAPS / "x")
        return {"name": "x"}

    one = [BenchTask("fast", job(recipe="fast"), 1, {MAPS: keep})]
    BenchSession(tmp_path, "hash", runner=Runner()).run(one)
    runner = Runner()
    BenchSession(tmp_path, "hash", runner=runner).run(one)
    assert runner.asked == []
    for file in (tmp_path / MAPS / "x").iterdir():
        file.unlink()
    (tmp_path / MAPS / "x").rmdir()
    BenchSession(tmp_path, "hash", runner=runner).run(one)
    assert runner.asked == ["fast"]


def test_what_fails_once_is_not_tried_again_and_the_rest_goes_on(tmp_path) -> None:
    runner = Runner(failing="best")
    session = BenchSession(tmp_path, "hash", runner=runner)
    session.run(tasks("fast", "best", "paper"))
    assert runner.asked == ["fast", "best", "paper", "fast", "paper"]
    assert session.reasons[session.key(job(recipe="best"))] == "no such thing here"


def test_the_time_left_is_told(tmp_path) -> None:
    told: list[float | None] = []
    session = BenchSession(tmp_path, "hash", say=lambda text, left: told.append(left), runner=Runner())
    session.run(tasks("fast", "best"))
    assert told[0] is None
    assert all(left is not None and left >= 0 for left in told[1:])


@pytest.mark.parametrize(
    "change",
    [{"recipe": "best"}, {"digest": "e"}, {"count": 3}, {"switches": BenchSwitches(overlap=False)},
     {"changes": {"a": 1}},     {"threads": 1}, {"backend": "cpu"}, {"mode": "baseline"}],
)  # fmt: skip
def test_what_can_change_a_time_changes_the_key(change) -> None:
    assert job().key("h") != job(**change).key("h")
    assert job().key("h") != job().key("i")
    assert job().key("h") == job(bundle="elsewhere", pictures="moved.json").key("h")


# -- processes -------------------------------------------------------------------------------------------------------
@pytest.fixture
def listed(tmp_path):
    """(bundle, pictures.json) of three tiny pictures."""
    bundle = tiny.build(tmp_path / "bundle")
    data = tiny.write_dataset(tmp_path / "data", 3)
    found = collect(list(folder_source(data / "images")), lambda id: [0, 1], "tiny", None)
    return bundle, save(found, tmp_path / "list"), found


def test_a_worker_measures_the_engine(listed, tmp_path) -> None:
    bundle, file, _ = listed
    given = {"bundle": bundle.path, "pictures": file, "count": 2, "mode": "baseline"}
    measured = process.measure(job(**given), tmp_path / "scratch").measured
    assert measured is not None
    assert measured.images == 2 * measured.passes
    assert measured.seconds >= worker.LEAST_SECONDS
    views = sum(measured.shapes.values()) / measured.passes
    assert views == 16  # 8 of each picture; none of the one that warms up
    pixels = sum(n * int(s.split("x")[0]) * int(s.split("x")[1]) for s, n in measured.shapes.items())
    assert measured.network_pixels == pixels
    assert 20 < measured.peak_mb < 4000
    assert 0 < measured.cores < 64
    assert measured.backend == "cpu fp32"
    assert len(list((tmp_path / "scratch" / "maps").glob("*.npz"))) == 2


def test_switches_change_how_and_not_what(listed, tmp_path) -> None:
    bundle, file, _ = listed
    given = {"bundle": bundle.path, "pictures": file, "recipe": "fast", "format": "psa"}
    serial = BenchSwitches(images_in_flight=1, batch_views=1, overlap=False)
    plain, slow = (
        worker.measure(job(**given, switches=s), tmp_path / name)
        for name, s in (("a", BenchSwitches()), ("b", serial))
    )
    assert {k: n / plain.passes for k, n in plain.shapes.items()} == {
        k: n / slow.passes for k, n in slow.shapes.items()
    }
    for one in (tmp_path / "a" / "maps").glob("*.npy"):
        assert one.read_bytes() == (tmp_path / "b" / "maps" / one.name).read_bytes()


def test_a_picture_that_fails_is_a_reason(listed, tmp_path) -> None:
    bundle, file, found = listed
    bad = found.pictures[1].file
    bad.write_bytes(b"no picture any more")
    outcome = process.measure(job(bundle=bundle.path, pictures=file), tmp_path / "scratch")
    assert outcome.measured is None
    assert "1 of 2 pictures failed" in (outcome.reason or "")
    assert bad.name in (outcome.reason or "")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"bundle": "nowhere"}, "not a bundle"), ({"pictures": "nowhere.json"}, "nowhere.json"),
     ({"recipe": "superb"}, "no recipe"), ({"backend": "abacus"}, "no backend")],
)  # fmt: skip
def test_bad_jobs_are_one_line(listed, tmp_path, change, said) -> None:
    bundle, file, _ = listed
    given = {"bundle": bundle.path, "pictures": file, **change}
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "job.json").write_text(job(**given).model_dump_json())
    assert worker.main(folder) == 1
    outcome = BenchOutcome.model_validate_json((folder / "outcome.json").read_bytes())
    assert said in (outcome.reason or "")
    assert "\n" not in (outcome.reason or "")


def test_a_worker_that_dies_is_a_reason(tmp_path, monkeypatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho some words >&2\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    outcome = process.measure(job(), tmp_path / "scratch")
    assert outcome.measured is None
    assert outcome.reason == "the process was ended by signal 9: some words"


def test_memory_of_children_counts(tmp_path) -> None:
    """A process of 20 MB that starts one of 200 MB: the tree's memory holds both."""
    hold = (
        "import time,sys; b = bytearray(200 << 20); sys.stdout.write('x'); sys.stdout.flush(); time.sleep(20)"
    )
    import subprocess

    outer = f"import subprocess,sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    child = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert child.stdout is not None
        child.stdout.read(1)
        if not Path(f"/proc/{child.pid}/task").is_dir():
            pytest.skip("needs /proc")
        assert process.tree_memory(child.pid) > 200 << 20
    finally:
        os.killpg(child.pid, 9)
        child.wait()
    assert process.tree_memory(child.pid) == 0


def test_gpu_use_is_read_while_the_clock_runs(tmp_path, monkeypatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nwhile :; do echo '80, 1000'; echo '[N/A], [N/A]'; sleep 0.05; done\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with process.GpuWatch() as watch:
        began = time.monotonic()
        inside = Measured(images=1, seconds=1, cpu_seconds=1, began=began, ended=began + 20)
        while not watch.seen(inside) and time.monotonic() < inside.ended:
            time.sleep(0.05)
    assert watch.seen(inside) == {"gpu_busy": pytest.approx(0.8), "gpu_mb": 1000}
    before = Measured(images=1, seconds=1, cpu_seconds=1, began=0, ended=0.1)
    assert watch.seen(before) == {}
    with process.GpuWatch("no-such-program") as none:
        pass
    assert none.seen(inside) == {}


def test_the_matrix_rate_is_a_rate() -> None:
    rate = matrix_rate.cpu_rate(threads=1, side=256, bursts=2)
    assert 1e8 < rate < 1e13
    with pytest.raises(NotMeasured, match="CUDA"):
        matrix_rate.gpu_rate(side=16, bursts=1)
    assert matrix_rate.gpu_rate("fp16", side=64, bursts=1, device="cpu") > 0  # the same way, on what there is


# -- who takes part --------------------------------------------------------------------------------------------------
def field(bundle, file, **options) -> Field:
    return Field(bundle=bundle, pictures=file, digest="d", count=3, few=2, recipes=list(RECIPES), **options)


def test_who_cannot_run_is_a_row_with_its_reason(listed, tmp_path) -> None:
    bundle, file, _ = listed
    session = BenchSession(tmp_path, "hash", runner=Runner())
    found = {r.name: r for r in (row(one, session, None, {}) for one in rows(field(bundle, file)))}
    assert all(r.not_measured for r in found.values())  # nothing was measured
    assert {f"engine cpu: {r}" for r in RECIPES} <= set(found)
    for name in ("PyTorch loop: released", "pytorch-grad-cam: CAM, 8 views", "torch-cam: CAM, 1 view"):
        assert "--model" in (found[name].not_measured or "")
    for name in ("tensorrt", "ort-cuda"):
        if f"engine {name}" in found:
            assert len(found[f"engine {name}"].not_measured or "") > 10


def test_overheads_are_over_the_same_pictures(listed) -> None:
    bundle, file, _ = listed
    for one in rows(field(bundle, file, model=Path(__file__))):
        if one.job is not None:
            assert one.yardstick is not None
            assert one.yardstick.count == one.job.count
            assert one.yardstick.mode == "baseline"
            assert one.job.kind == "engine" or one.scored == (one.job.count == 3)


def test_each_step_of_the_waterfall_differs_from_the_one_above(listed) -> None:
    bundle, file, _ = listed
    steps = waterfall(field(bundle, file, model=Path(__file__)))
    assert len(steps) == 7
    assert len({s.job.key("h") for s in steps if s.job}) == 7
    assert {s.job.count for s in steps if s.job} == {2}
    assert steps[-2].job is not None and steps[-2].job.switches == BenchSwitches()


# -- lists -----------------------------------------------------------------------------------------------------------
def test_lists_for_the_growth(listed, tmp_path) -> None:
    _, _, found = listed
    seven = repeated(found, 7)
    assert len({p.id for p in seven.pictures}) == 7
    assert [p.file for p in seven.pictures[:3]] == [p.file for p in seven.pictures[3:6]]
    small = resized(found, 2, 500, tmp_path)
    assert len(small) == 2
    for p in small.pictures:
        assert p.height * p.width == pytest.approx(500, rel=0.1)
        assert p.file.is_file()
    for number in (1, 2, 4, 5):
        for p in relabelled(found, 2, number, 5).pictures:
            assert len(p.classes) == number
            assert p.classes == sorted(set(p.classes))
    assert len({x.digest for x in (found, seven, small, relabelled(found, 2, 1, 5))}) == 4


def test_bad_pictures_are_passed_over_with_a_note(tmp_path) -> None:
    data = tiny.write_dataset(tmp_path, 3)
    (data / "images" / "p001.png").write_bytes(b"\x89PNG and no more")
    source = list(folder_source(data / "images"))
    found = collect(source, lambda id: [] if id == "p002" else [0], "tiny", None)
    assert [p.id for p in found.pictures] == ["p000"]
    assert len(found.notes) == 2
    with pytest.raises(InputError, match="none of 3 pictures"):
        collect(source, lambda id: [], "tiny", None)


def test_truth_needs_every_mask(tmp_path) -> None:
    one = BenchPicture(id="a", file=tmp_path / "a", classes=[0], height=1, width=1, mask=tmp_path / "m")
    both = Pictures(kind="x", digest="d", pictures=[one, one.model_copy(update={"id": "b", "mask": None})])
    assert both.truth(2) is None
    truth = both.truth(1)
    assert truth is not None and list(truth.pairs) == [("a", tmp_path / "m")]
