"""Entries of the cache folder: there and back, and nothing that is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.common.cache import cache_file, read_entry, write_entry


def test_there_and_back(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a"
    assert read_entry(file) is None
    assert write_entry(file, b"kernels") and read_entry(file) == b"kernels"
    assert write_entry(file, b"others") and read_entry(file) == b"others"
    assert [p.name for p in file.parent.iterdir()] == ["a"]


@given(data=st.binary(max_size=64), at=st.integers(0, 95), bit=st.integers(0, 7), cut=st.integers(0, 96))
def test_what_is_damaged_counts_as_missing(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, bit: int, cut: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "entry"
    write_entry(file, data)
    whole = bytearray(file.read_bytes())
    assert read_entry(file) == (data or None)
    file.write_bytes(whole[:cut])
    assert cut >= len(whole) or read_entry(file) is None
    whole[at % len(whole)] ^= 1 << bit
    file.write_bytes(whole)
    assert read_entry(file) is None


def test_what_cannot_be_read_or_written_is_no_error(tmp_path: Path) -> None:
    assert read_entry(tmp_path) is None
    (tmp_path / "file").write_text("")
    assert not write_entry(tmp_path / "file" / "a", b"x")


def test_a_file_for_each_thing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = {cache_file("k", what, ".x") for what in (b"a", b"b", b"a")}
    assert len(names) == 2 and {n.parent for n in names} == {tmp_path / "infercam" / "k"}
