"""Shapes that are remembered from run to run: nothing but time may hang on the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infercam.engine.backends.shape_memory import FILE_BYTES, MOST, ShapeMemory


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_what_was_met_is_there_in_the_next_run() -> None:
    memory = ShapeMemory({"runner": "a"})
    assert not memory.read()
    memory.note({(4, 64, 64): 10, (1, 128, 64): 3})
    memory.note({(4, 64, 64): 20, (1, 128, 64): 3})  # the run's count so far, not what was added
    assert ShapeMemory({"runner": "a"}).read() == {(4, 64, 64): 20, (1, 128, 64): 3}
    assert not ShapeMemory({"runner": "b"}).read()
    assert str(memory.file).endswith(".json") and memory.file.parent.name == "shapes"


def test_what_does_not_come_again_is_forgotten() -> None:
    ShapeMemory({}).note({(1, 64, 64): 5})
    for _ in range(3):
        ShapeMemory({}).note({(2, 64, 64): 1})
    assert ShapeMemory({}).read() == {(2, 64, 64): 1}


def test_it_is_bounded_and_the_commonest_stay() -> None:
    ShapeMemory({}).note({(1, 64, 64 + n): n + 1 for n in range(2 * MOST)})
    found = ShapeMemory({}).read()
    assert len(found) == MOST and min(found.values()) == MOST + 1
    assert found.most_common(1) == [((1, 64, 63 + 2 * MOST), 2 * MOST)]
    assert ShapeMemory({}).file.stat().st_size < FILE_BYTES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"schema_version": 2, "shapes": []}',
        '{"shapes": [[1, 2, 3]]}',
        '{"shapes": [[0, 64, 64, 1]]}',
        '{"shapes": [[1, 64, 64, 1e30]]}',
        json.dumps({"shapes": [[1, 64, 64, 1]] * (MOST + 1)}),
        " " * (FILE_BYTES + 1),
    ],
)
def test_a_damaged_file_is_nothing_known_and_is_written_anew(text: str) -> None:
    memory = ShapeMemory({})
    memory.file.parent.mkdir(parents=True)
    memory.file.write_text(text)
    assert not memory.read()
    memory.note({(1, 64, 64): 1})
    assert ShapeMemory({}).read() == {(1, 64, 64): 1}


def test_a_folder_that_cannot_be_written_loses_no_run(own_cache: Path) -> None:
    (own_cache / "infercam").write_text("a file in the way")
    ShapeMemory({}).note({(1, 64, 64): 1})
    assert not ShapeMemory({}).read()
