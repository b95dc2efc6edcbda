"""The index in parts: which line of an id counts, whatever the order of the parts and wherever a line is torn."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.store.image_index import INDEX, Entry, ImageIndex, merge, parse_lines, part_name

ENTRIES = st.builds(Entry, st.sampled_from("AB"), st.integers(1, 3), st.integers(0, 3))
PART = st.lists(st.tuples(st.sampled_from("abc"), ENTRIES), max_size=5)


def text(part: list[tuple[str, Entry]]) -> bytes:
    lines = [json.dumps({"id": id, **entry._asdict()}) + "\n" for id, entry in part]
    return "".join(lines).encode()


def merged(parts: list[dict[str, Entry]]) -> dict[str, Entry]:
    out: dict[str, Entry] = {}
    for part in parts:
        merge(out, part)
    return out


def share(value: str, _: str) -> str:
    return value


@given(st.lists(PART, max_size=4), st.data())
def test_any_order_of_parts_and_any_torn_end_give_the_same_entries(
    parts: list[list[tuple[str, Entry]]], data: st.DataObject
) -> None:
    files = []
    for part in parts:
        whole = text(part)
        torn = data.draw(st.integers(0, 30)) if part else 0
        files.append(whole + text(part[:1])[:-1][:torn])  # a line that was never ended says nothing
    parsed = [parse_lines(file.splitlines(keepends=True), share) for file in files]
    assert parsed == [dict(part) for part in parts], "in a file the last line counts"
    want = merged(parsed)
    for order in permutations(parsed):
        assert merged(list(order)) == want
    for id, entry in want.items():
        said = [part[id] for part in parsed if id in part]
        latest = {e for e in said if e.turn == max(e.turn for e in said)}
        assert entry in latest if len(latest) == 1 else entry.bytes == -1, "who disagree vouch for nothing"


@given(st.binary(max_size=200))
def test_no_bytes_are_an_error(junk: bytes) -> None:
    good = b'{"id":"x","fingerprint":"f","bytes":7,"turn":2}\n'
    found = parse_lines((junk + b"\n" + good).splitlines(keepends=True), share)
    assert found["x"] == Entry("f", 7, 2)


def test_a_later_writer_takes_a_higher_turn_than_all_parts_it_finds(tmp_path: Path) -> None:
    first = ImageIndex(tmp_path / INDEX, parts=True)
    first.append("a", "old", 1)
    shard = ImageIndex(tmp_path / part_name("2-of-2"), parts=True)
    assert shard.get("a") == Entry("old", 1, 1)
    shard.append("a", "new", 2)
    first.append("b", "old", 3)  # a writer that goes on knows no better
    again = ImageIndex(tmp_path / part_name("1-of-4"), parts=True)
    assert again.get("a") == Entry("new", 2, 2) and again.get("b") == Entry("old", 3, 1)
    again.append("a", "old", 1)
    assert ImageIndex(tmp_path / INDEX, parts=True).get("a") == Entry("old", 1, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "index-1-of-4.jsonl",
        "index-2-of-2.jsonl",
        "index.jsonl",
    ]


def test_an_index_of_before_there_were_parts(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text('{"id":"a","fingerprint":"f","bytes":5}\n')
    index = ImageIndex(tmp_path / part_name("1-of-2"), parts=True)
    assert index.get("a") == Entry("f", 5, 0)
    index.append("b", "f", 6)
    assert ImageIndex(tmp_path / INDEX, parts=True).ids() == ["a", "b"]


def test_an_index_without_parts_writes_what_it_always_wrote(tmp_path: Path) -> None:
    ImageIndex(tmp_path / INDEX).append("a", "f", 5)
    assert (tmp_path / INDEX).read_text() == '{"id":"a","fingerprint":"f","bytes":5}\n'
