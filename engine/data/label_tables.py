"""Label tables (CSV, TSV, lists with labels): the forms that can be told apart without asking.

    image,label         image,labels         image,cat,dog,horse      2007_000032,cat       cats/1.jpg 0
    a.jpg,cat           a.jpg,"cat dog"      a,1,0,0                  2007_000039,dog,horse dogs/1.jpg 1
    a.jpg,dog           b.jpg,cat;dog        b,0,1,1                  2007_000063,3

- With a header: the image is named by the column called file, path, image, …, else by the first one. Columns called
  label, class_name, category_id, "Finding Labels", … (label_columns.py) hold labels: of several kinds, that which has
  labels of the bundle, names before numbers. If there are none, the columns called by classes of the bundle hold 1,
  0, True, False, -1 or nothing. Other columns are ignored; so are the labels of rows whose `confidence` is 0.
- Without: the id, then labels. A first row of names over rows of 0 and 1 is a header all the same.
- A cell that is no class name as it is may hold several, between ';', '|' or ',', else between spaces.
- Rows of one id add up. Columns are separated by what the first line has: tab, ';' or ','; in a .txt, and where the
  first line is like `img/x.jpg 3` or `"img/x" 3`, also by spaces; the id then is quoted, or ends with the suffix of a
  picture, if it has one. Lines like `# words` are comments; one over the first row may name the columns.

A table that does not fit the bundle at all is refused as a whole, with the names of its columns.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from infercam.engine.common.errors import InputError, shown
from infercam.engine.common.suggest import nearest
from infercam.engine.data.label_columns import MINUS, Columns, id_rank, is_header, is_zero, mark, words
from infercam.engine.data.list_lines import cells, is_comment, split_line, unquoted

_NUMBER = re.compile(r"(-?\d{1,9})(?:\.0)?")


@dataclass(frozen=True, eq=False)
class OneHot:
    """One row: a value per class, 0 or 1 unless the file is wrong; the columns' names where it has them."""

    values: np.ndarray
    columns: Sequence[str] | None = None


class Cell(str):
    """The text of one or several labels, cut up only when looked at: names may hold spaces."""

    __slots__ = ()


def parse_table(
    text: str, path: str | os.PathLike[str], classes: Sequence[str], *, spaces: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """(labels by id as written, lists of `Cell` or `OneHot` rows; notes) of a table for a bundle's `classes`.

    spaces: whether columns may be separated by spaces (a .txt). Raises InputError, naming the columns, for what is no
    table, or fits the classes in no row.
    """
    first = _first_line(text)
    spaced = not any(d in first for d in "\t;,") and (spaces or split_line(first.strip()) is not None)
    rows = list(_spaced_rows(text) if spaced else _rows(text, path))
    if not rows:
        raise InputError(f"{shown(path)}: holds no labels")
    second = rows[1] if len(rows) > 1 else None
    if not is_header(_stripped(rows[0]), second and _to(second, len(_stripped(rows[0]))), classes):
        table = _label_rows(rows, 0, None)
        _check_fit(table, path, classes, f"its first row is {','.join(rows[0])[:60]}")
        return table, []
    header = _stripped(rows[0])
    if len(header) < 2:
        raise InputError(f"{shown(path)}: has one column only; a label table needs an id and labels")
    columns = Columns.of(header, classes)
    labelled = _labelled(rows[1:], columns, path, classes) if columns.labels else None
    if labelled is not None:
        return labelled, []
    if columns.classes:
        return _one_hot_rows(rows[1:], columns, path), _notes(columns, path)
    raise InputError(
        f"{shown(path)}: none of its columns ({shown(columns.names)}) holds labels (label, class_name, category_id, "
        f"…) or is a class of the bundle ({_some(classes)}); rename the one with the labels to 'label'"
    )


def split_labels(cell: str, known: Container[str]) -> list[str]:
    """The labels of one cell; a cell that is a whole class name (with spaces, say) stays whole."""
    if cell in known:
        return [cell]
    parts = re.split(r"[;|,]", cell) if re.search(r"[;|,]", cell) else cell.split()
    return [label for part in parts if (label := part.strip())]


def as_number(label: str) -> int | None:
    """The whole number that a label of a table is (3.0 as pandas writes it), or None."""
    found = _NUMBER.fullmatch(label)
    return int(found[1]) if found and found[1].isascii() else None


def _first_line(text: str) -> str:
    """The first with something in it that is no comment."""
    lines = (line for line in text.split("\n") if line.strip())
    return next((line for line in lines if not is_comment(line)), "")


def _spaced_rows(text: str) -> Iterator[list[str]]:
    """The rows of a list: an id or a path, then labels; lines that start with # are skipped."""
    for raw in text.split("\n"):
        line = raw.strip()
        if line and not line.startswith("#"):
            pair = split_line(line)
            yield [pair.image, *cells(pair.rest)] if pair else line.split(None, 1)


def _rows(text: str, path: str | os.PathLike[str]) -> Iterator[list[str]]:
    """Rows with something in them, cells stripped; no comments, but for a first one that may name the columns."""
    line = _first_line(text)
    delimiter = next((d for d in "\t;," if d in line), ",")
    if delimiter == ";" and "," in line.split(";")[0]:  # id,"cat;dog"
        delimiter = ","
    rows = 0
    try:
        width = len(next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), []))
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True):
            found = [cell.strip() for cell in row]
            if not any(found):
                continue
            head = not rows and len(found) == width and id_rank(found[0]) > 0
            if head or not is_comment(found[0]):
                rows += 1
                yield [unquoted(found[0]), *found[1:]]
    except csv.Error as e:
        raise InputError(f"{shown(path)}: not a table: {e}") from None


def _stripped(row: Sequence[str]) -> list[str]:
    """Without the empty columns at its end that spreadsheets leave."""
    cells = list(row)
    while len(cells) > 1 and not cells[-1]:
        cells.pop()
    return cells


def _to(row: Sequence[str], length: int) -> list[str]:
    """A row without empty cells beyond those of its header."""
    return [*row[:length], *_stripped(["", *row[length:]])[1:]]


def _label_rows(rows: Iterable[list[str]], key: int, wanted: Sequence[int] | None) -> dict[str, list[Cell]]:
    """Labels from the columns `wanted` (all but the first if None); rows of one id add up."""
    table: dict[str, list[Cell]] = {}
    for row in rows:
        if key < len(row):
            cells = row[1:] if wanted is None else [row[i] for i in wanted if i < len(row)]
            table.setdefault(row[key], []).extend(Cell(cell) for cell in cells if cell)
    return table


def _labelled(
    rows: list[list[str]], columns: Columns, path: str | os.PathLike[str], classes: Sequence[str]
) -> dict[str, list[Cell]] | None:
    """Labels from the best group of columns that has some of the bundle's; None where class columns say them."""
    sure = [i for i, name in enumerate(columns.header) if words(name) == ["confidence"]]
    if sure:
        rows = [_without(row, columns.id) if _is_nought(row, sure) else row for row in rows]
    worth = {i: _worth(rows, group, classes) for i, group in enumerate(columns.labels)}
    best = max(worth, key=lambda i: worth[i])  # the first of the best
    if len(columns.classes) > worth[best] and worth[best] < 2:  # one class's name may be chance, two are none
        return None
    table = _label_rows(rows, columns.id, columns.labels[best])
    _check_fit(table, path, classes, f"its columns are {columns.names}")
    return table


def _worth(rows: list[list[str]], group: Sequence[int], classes: Sequence[str]) -> int:
    """Of some columns: 2 if they have a class's name, 1 if a class's number, else 0."""
    known = set(classes)
    found = {cell for row in rows for i in group if i < len(row) and (cell := row[i])}
    parts = {part for cell in found for part in split_labels(cell, known)}
    if parts & known:
        return 2
    return int(any((n := as_number(part)) is not None and 0 <= n < len(classes) for part in parts))


def _is_nought(row: Sequence[str], columns: Sequence[int]) -> bool:
    """Whether a confidence says that the label was looked for and is not there (Open Images)."""
    try:
        return any(float(row[i]) == 0 for i in columns if i < len(row))
    except ValueError:
        return False


def _without(row: Sequence[str], key: int) -> list[str]:
    """A row that names its image and nothing else."""
    return [cell if i == key else "" for i, cell in enumerate(row)]


def _check_fit(
    table: dict[str, list[Cell]], path: str | os.PathLike[str], classes: Sequence[str], what: str
) -> None:
    """Raise InputError where no label is one of the classes, or numbers cannot be counted from 0."""
    known = set(classes)
    found = {part: None for cells in table.values() for cell in cells for part in split_labels(cell, known)}
    numbers = [as_number(part) for part in found if part not in known]
    whole = [n for n in numbers if n is not None]
    count = len(classes)
    if whole and len(whole) == len(found):
        low, high = min(whole), max(whole)
        if low < 0 or (low >= 1 and high >= count):
            raise InputError(
                f"{shown(path)}: its labels are numbers from {low} to {high}, but numbers count the bundle's {count} "
                f"classes from 0 to {count - 1}; count from 0, or write names ({shown(what)})"
            )
    if not known.intersection(found) and not any(0 <= n < count for n in whole):
        labels = _some([repr(label)[:40] for label in found]) or "nothing"
        raise InputError(
            f"{shown(path)}: none of its labels ({shown(labels)}) is a class of the bundle ({_some(classes)}); "
            f"{shown(what)}{_meant(list(found), classes)}"
        )


def _meant(labels: Sequence[str], classes: Sequence[str]) -> str:
    """By the first labels: which class one of them may mean."""
    near = ((label, nearest(label, classes)) for label in labels[:20])
    return next((f"; did you mean {one!r} by {shown(label)!r}?" for label, one in near if one), "")


def _one_hot_rows(rows: list[list[str]], columns: Columns, path: str | os.PathLike[str]) -> dict[str, Any]:
    names = tuple(name for _, name in columns.classes)
    if len(set(names)) != len(names):
        raise InputError(f"{shown(path)}: two columns of one name")
    own = [i for i, _ in columns.classes]
    width = len(columns.header)
    rows = [_to(row, width) for row in rows]
    zeros = any(is_zero(row[i]) for row in rows for i in own if i < len(row))
    table: dict[str, Any] = {}
    for row in rows:
        fits = len(row) == width
        cells = [_value(row[i], zeros) for i in own] if fits else [float("nan")] * len(own)
        one_hot = OneHot(np.array(cells, np.float32), names)  # NaN is refused when looked up
        key = row[columns.id] if columns.id < len(row) else ""
        known = table.get(key)
        table[key] = one_hot if known is None else OneHot(np.maximum(known.values, one_hot.values), names)
    return table


def _value(cell: str, zeros: bool) -> float:
    said = None if zeros and cell in MINUS else mark(cell)
    return float("nan") if said is None else float(said)


def _notes(columns: Columns, path: str | os.PathLike[str]) -> list[str]:
    if not columns.others:
        return []
    count = len(columns.others)
    return [
        f"{shown(path)}: {count} columns that are no class of the bundle ignored ({shown(_some(columns.others))})"
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(name[:40] for name in names[:3]) + (", …" if len(names) > 3 else "")
