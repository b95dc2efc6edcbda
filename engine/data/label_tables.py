"""Label tables (CSV, TSV): the forms that can be told apart without asking.

    image,label         image,labels         image,cat,dog,horse      2007_000032,cat
    a.jpg,cat           a.jpg,"cat dog"      a,1,0,0                  2007_000039,dog,horse
    a.jpg,dog           b.jpg,cat;dog        b,0,1,1                  2007_000063,3

- With a header whose first column is an id (id, image, image_id, file, filename, name, path, …): the
  columns called label(s), class(es), category, tag(s), numbered or not, hold labels, others are ignored;
  if there is none of these, every other column is a class and holds 0 or 1.
- Without: the id, then labels. A first row of names over rows of 0 and 1 is a header all the same.
- A cell that is no class name as it is may hold several, between ';', '|' or ',', else between spaces.
- Rows of one id add up. Columns are separated by what the first line has: tab, ';' or ','.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infercam.engine.common.errors import InputError, shown

_ID_COLUMN = re.compile(r"(image|img|file)?[ _-]?(id|name|path|file|image|index)?s?", re.IGNORECASE)
_LABEL_COLUMN = re.compile(r"(label|class|classes|category|categories|tag|target)s?[ _-]?\d*", re.IGNORECASE)
_BINARY = frozenset(["0", "1", "0.0", "1.0"])


@dataclass(frozen=True, eq=False)
class OneHot:
    """One row: a value per class, 0 or 1 unless the file is wrong; the columns' names where it has them."""

    values: np.ndarray
    columns: Sequence[str] | None = None


class Cell(str):
    """The text of one or several labels, cut up only when looked at: names may hold spaces."""

    __slots__ = ()


def parse_table(text: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Labels by id as written: lists of `Cell`, or `OneHot` rows; raises InputError for what is no table."""
    rows = _rows(text, path)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{shown(path)}: holds no labels")
    second = next(rows, None)
    header = first if _is_header(first, second) else None
    body = _chain(first if header is None else None, second, rows)
    if header is None:
        return _label_rows(body, None)
    wanted = [i for i, name in enumerate(header) if i and _LABEL_COLUMN.fullmatch(name)]
    return _label_rows(body, wanted) if wanted else _one_hot_rows(body, header[1:], path)


def split_labels(cell: str, known: Container[str]) -> list[str]:
    """The labels of one cell; a cell that is a whole class name (with spaces, say) stays whole."""
    if cell in known:
        return [cell]
    parts = re.split(r"[;|,]", cell) if re.search(r"[;|,]", cell) else cell.split()
    return [label for part in parts if (label := part.strip())]


def _rows(text: str, path: str | os.PathLike[str]) -> Iterator[list[str]]:
    """Rows with something in them, cells stripped."""
    line = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = next((d for d in "\t;," if d in line), ",")
    if delimiter == ";" and "," in line.split(";")[0]:  # id,"cat;dog"
        delimiter = ","
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True):
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield cells
    except csv.Error as e:
        raise InputError(f"{shown(path)}: not a table: {e}") from None


def _chain(
    first: list[str] | None, second: list[str] | None, rest: Iterator[list[str]]
) -> Iterator[list[str]]:
    yield from (row for row in (first, second) if row is not None)
    yield from rest


def _is_header(first: list[str], second: list[str] | None) -> bool:
    if _ID_COLUMN.fullmatch(first[0]):
        return True
    over_binary = second is not None and len(second) == len(first) > 1 and set(second[1:]) <= _BINARY
    return over_binary and not any(cell[:1].isdigit() or not cell for cell in first[1:])


def _label_rows(rows: Iterator[list[str]], wanted: list[int] | None) -> dict[str, Any]:
    """Labels from the columns `wanted` (all but the first if None); rows of one id add up."""
    table: dict[str, list[Cell]] = {}
    for row in rows:
        cells = row[1:] if wanted is None else [row[i] for i in wanted if i < len(row)]
        table.setdefault(row[0], []).extend(Cell(cell) for cell in cells if cell)
    return table


def _one_hot_rows(
    rows: Iterator[list[str]], names: list[str], path: str | os.PathLike[str]
) -> dict[str, Any]:
    if not names:
        raise InputError(f"{shown(path)}: has one column only; a label table needs an id and labels")
    if len(set(names)) != len(names):
        raise InputError(f"{shown(path)}: two columns of one name")
    columns = tuple(names)
    table: dict[str, Any] = {}
    for row in rows:
        values = np.array([_number(cell) for cell in row[1:]], np.float32)
        if len(values) != len(columns):
            values = np.full(len(columns), np.nan, np.float32)  # refused when looked up, like any other value
        one_hot = OneHot(values, columns)
        known = table.get(row[0])
        table[row[0]] = one_hot if known is None else OneHot(np.maximum(known.values, values), columns)
    return table


def _number(cell: str) -> float:
    return float(cell) if cell in _BINARY else float("nan")
