"""The chain of steps: what is kept, what is done again, what a stop leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from infercam.engine.common.errors import InputError, StoreError
from infercam.trainer.pipeline.pipeline import Pipeline, PipelineStep, fingerprints


class Log:
    """Steps a, b (on a), c (on b), d (on a), which write files and note when they work."""

    def __init__(self, **settings: object) -> None:
        self.ran: list[str] = []
        self.settings = settings
        self.fail = ""

    def steps(self) -> list[PipelineStep]:
        needs = {"a": (), "b": ("a",), "c": ("b",), "d": ("a",)}
        return [
            PipelineStep(name, self.work(name), {"x": self.settings.get(name, 0)}, {"file": "h"}, on)
            for name, on in needs.items()
        ]

    def work(self, name: str):
        def run(folder: Path) -> dict[str, float]:
            self.ran.append(name)
            found = len(list(folder.iterdir()))
            (folder / f"part{found}").write_text("half")
            if self.fail == name:
                raise InputError(f"{name} fails")
            (folder / "whole").write_text(str(self.settings.get(name, 0)))
            return {"figure": 0.5}

        return run


def go(out: Path, log: Log, **options: str) -> list[str]:
    """Run, and tell the status of each step."""
    return [o.status for o in Pipeline(out, log.steps()).run(**options)]


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    log = Log()
    assert go(tmp_path, log) == ["done"] * 4 and log.ran == ["a", "b", "c", "d"]
    assert go(tmp_path, log) == ["kept"] * 4 and log.ran == ["a", "b", "c", "d"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [s["step"] for s in summary] == ["a", "b", "c", "d"]
    assert summary[0]["figures"] == {"figure": 0.5} and summary[0]["status"] == "kept"


def test_a_change_redoes_what_builds_on_it_and_keeps_the_earlier(tmp_path: Path) -> None:
    go(tmp_path, Log())
    log = Log(b=1)
    assert Pipeline(tmp_path, log.steps()).plan() == {
        "a": "keep",
        "b": "do again",
        "c": "do again",
        "d": "keep",
    }
    assert go(tmp_path, log) == ["kept", "done", "done", "kept"] and log.ran == ["b", "c"]
    assert (tmp_path / "b" / "whole").read_text() == "1"
    assert (tmp_path / "b.old" / "whole").read_text() == "0"
    back = Log()
    assert go(tmp_path, back) == ["kept", "done", "done", "kept"]
    assert (tmp_path / "b.old" / "whole").read_text() == "1"


def test_an_unfinished_result_does_not_replace_a_finished_one(tmp_path: Path) -> None:
    go(tmp_path, Log())
    log = Log(b=1)
    log.fail = "b"
    with pytest.raises(InputError):
        go(tmp_path, log)
    assert go(tmp_path, Log(b=2)) == ["kept", "done", "done", "kept"]
    assert (tmp_path / "b.old" / "whole").read_text() == "0"


def test_a_failed_step_goes_on_in_its_folder(tmp_path: Path) -> None:
    log = Log()
    log.fail = "b"
    with pytest.raises(InputError, match="b fails"):
        go(tmp_path, log)
    assert (tmp_path / "b" / "part0").exists()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [s["status"] for s in summary] == ["done", "left", "left", "left"]
    log.fail = ""
    assert Pipeline(tmp_path, log.steps()).plan()["b"] == "go on"
    assert go(tmp_path, log) == ["kept", "done", "done", "done"]
    assert (tmp_path / "b" / "part0").exists() and (tmp_path / "b" / "part1").exists()
    assert not (tmp_path / "b.old").exists()


def test_a_stop_while_redoing_leaves_nothing_stale(tmp_path: Path) -> None:
    """b is done again with the same settings and stopped after it: c, made from the earlier b, is not kept."""
    go(tmp_path, Log())
    log = Log()
    assert go(tmp_path, log, redo="b", until="b") == ["kept", "done", "left", "left"]
    assert Pipeline(tmp_path, log.steps()).plan() == {"a": "keep", "b": "keep", "c": "do again", "d": "keep"}
    log.fail = "b"
    with pytest.raises(InputError):
        go(tmp_path, log, redo="b")
    log.fail = ""
    assert Pipeline(tmp_path, log.steps()).plan() == {
        "a": "keep",
        "b": "go on",
        "c": "do again",
        "d": "keep",
    }


def test_until_and_redo(tmp_path: Path) -> None:
    log = Log()
    assert go(tmp_path, log, until="b") == ["done", "done", "left", "left"]
    assert go(tmp_path, log) == ["kept", "kept", "done", "done"]
    log.ran.clear()
    assert go(tmp_path, log, redo="b") == ["kept", "done", "done", "kept"] and log.ran == ["b", "c"]
    with pytest.raises(InputError, match=r"no step 'e'.*a, b, c, d"):
        go(tmp_path, log, until="e")
    with pytest.raises(InputError, match="no step 'e'"):
        go(tmp_path, log, redo="e")


def test_a_deleted_folder_is_made_again_and_what_builds_on_it(tmp_path: Path) -> None:
    import shutil

    log = Log()
    go(tmp_path, log)
    shutil.rmtree(tmp_path / "b")
    assert go(tmp_path, log) == ["kept", "done", "done", "kept"]


def test_seconds_add_up_over_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    # The module's own clock: time.monotonic itself is also that of event loops in other threads, which would wait for
    # hours when it is put back (a server's fixture once did).
    mocked = SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr("infercam.trainer.pipeline.pipeline.time", mocked)
    log = Log()
    log.fail = "a"
    with pytest.raises(InputError):
        go(tmp_path, log)
    log.fail = ""
    assert Pipeline(tmp_path, log.steps()).run()[0].seconds == 20.0


def test_fingerprints_cover_settings_inputs_and_what_comes_before() -> None:
    def chain(x: int, file: str) -> dict[str, str]:
        first = PipelineStep("a", lambda _: {}, {"x": x}, {"file": file})
        return fingerprints([first, PipelineStep("b", lambda _: {}, needs=("a",))])

    base = chain(0, "h")
    assert chain(0, "h") == base
    for other in (chain(1, "h"), chain(0, "g")):
        assert other["a"] != base["a"] and other["b"] != base["b"]
    with pytest.raises(ValueError, match="before"):
        fingerprints([PipelineStep("b", lambda _: {}, needs=("a",))])


def test_damaged_state_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json: damaged"):
        Pipeline(tmp_path, Log().steps())
    (tmp_path / "state.json").unlink()
    (tmp_path / "a").write_text("a file in the way")
    with pytest.raises(StoreError, match="a: cannot be made"):
        go(tmp_path, Log())
