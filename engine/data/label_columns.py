"""What the columns of a label table are, by their names: the one that names the image, labels, classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from infercam.engine.common.suggest import folded

_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_]+")


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILE = _set(
    "file files filename filenames fname path paths filepath imagepath imgpath imagefile basename stem"
)
_PICTURE = _set("image images img imgs photo photos picture pic frame imageid imagename imgid imgname fileid")
_KEY = _set("id ids name names index idx key uid uuid")
_LABEL = _set(
    "label labels class classes category categories tag tags target targets species finding findings diagnosis "
    "breed classname classnames classid labelname labelid categoryname categoryid classlabel"
)
_NAMES = _set("name names text classname classnames labelname categoryname")
_NUMBERS = _set("id ids index idx no number num code classid labelid categoryid")
_BESIDE = _NAMES | _NUMBERS | _PICTURE | _set("object main primary true ground truth")


def words(name: str) -> list[str]:
    """The words of a column's name, small: LabelName, label_name and "Label Name" are alike."""
    return [word.casefold() for word in _WORDS.findall(name)]


def id_rank(name: str) -> int:
    """How surely a column names the image: 3 by its file, 2, 1 (`id`, no name) or by a row's number, 0 not."""
    found = words(name)
    if not found or found[0] == "unnamed":  # pandas's index
        return 1 if found or name in ("", "#") else 0
    if not _FILE.union(_PICTURE, _KEY).issuperset(found):
        return 0
    return 3 if _FILE.intersection(found) else 2 if _PICTURE.intersection(found) else 1


def label_rank(name: str) -> int:
    """How good a column's labels are: 3 names (class_name), 2 (label), 1 numbers (category_id), 0 no labels."""
    found = _unnumbered(name)
    if not _LABEL.intersection(found) or not (_LABEL | _BESIDE).issuperset(found):
        return 0
    return 3 if found[-1] in _NAMES else 1 if found[-1] in _NUMBERS else 2


def stem(name: str) -> str:
    """Alike for columns of one kind: label_1, label_2."""
    return " ".join(word.removesuffix("s") for word in _unnumbered(name))


def _unnumbered(name: str) -> list[str]:
    found = words(name)
    while found and found[-1].isdigit():
        found.pop()
    return found


@dataclass(frozen=True)
class Columns:
    """The columns of a table with a header.

    labels: those that may hold labels, in groups of one kind, better kinds first. classes: (column, class) pairs.
    others: names of those that are neither, nor the id.
    """

    header: Sequence[str]
    id: int
    labels: list[list[int]]
    classes: list[tuple[int, str]]
    others: list[str]

    @classmethod
    def of(cls, header: Sequence[str], classes: Sequence[str]) -> Columns:
        """By their names, for a bundle of some classes."""
        own = _class_columns(header, classes)
        ranks = [0 if i in own else label_rank(name) for i, name in enumerate(header)]
        key = _id_column(header, [i for i in range(len(header)) if i not in own and not ranks[i]])
        groups: dict[tuple[int, str], list[int]] = {}
        for i, rank in enumerate(ranks):
            if rank and i != key:
                groups.setdefault((-rank, stem(header[i])), []).append(i)
        taken = {key, *own, *(i for group in groups.values() for i in group)}
        others = [name for i, name in enumerate(header) if name and i not in taken]
        pairs = [(i, name) for i, name in own.items() if i != key]
        return cls(header, key, [groups[g] for g in sorted(groups, key=lambda g: g[0])], pairs, others)

    @property
    def names(self) -> str:
        """The columns, for a message."""
        some = ", ".join(name[:40] or "(no name)" for name in self.header[:8])
        return some + (", …" if len(self.header) > 8 else "")


def _id_column(header: Sequence[str], free: list[int]) -> int:
    """The column that names the image, out of those that hold no labels."""
    best = max(free, key=lambda i: id_rank(header[i]), default=0)  # the first of the best
    if id_rank(header[best]) >= 2 or 0 not in free:
        return best
    return 0


def _class_columns(header: Sequence[str], classes: Sequence[str]) -> dict[int, str]:
    """Column -> class, by its name; of classes without such a column, by its name as people vary it."""
    exact = set(classes)
    found = {i: name for i, name in enumerate(header) if name in exact}
    alike: dict[str, list[str]] = {}
    for name in exact.difference(found.values()):
        alike.setdefault(folded(name), []).append(name)
    for i, name in enumerate(header):
        near = alike.get(folded(name), []) if name and i not in found else []
        if len(near) == 1:
            found[i] = near[0]
    return dict(sorted(found.items()))


def is_header(first: Sequence[str], second: Sequence[str] | None, classes: Sequence[str]) -> bool:
    """Whether a table's first row names its columns."""
    if id_rank(first[0]):
        return True
    ids = max(map(id_rank, first))
    labels = any(map(label_rank, first))
    if (ids >= 2 and (labels or _class_columns(first, classes))) or (ids and label_rank(first[0])):
        return True
    return _over_marks(first, second)


def _over_marks(first: Sequence[str], second: Sequence[str] | None) -> bool:
    if second is None or len(second) != len(first) or len(first) < 2:
        return False
    marks = [cell for cell in second[1:] if cell]
    plain = not any(cell[:1].isdigit() or mark(cell) is not None for cell in first[1:])
    plain = plain and not re.search(r"[/\\]|\.\w{3,4}$", first[0])  # the path of a picture
    return plain and bool(marks) and all(mark(cell) is not None for cell in marks)


_YES = frozenset(["1", "1.0", "true", "yes"])
_NO = frozenset(["0", "0.0", "false", "no"])
MINUS = frozenset(["-1", "-1.0"])
"""No where there is no 0 (CelebA); else something else (CheXpert: uncertain)."""


def mark(cell: str) -> bool | None:
    """What a cell of a class's column says: True, False (also where it is blank or -1), None: neither."""
    text = cell.casefold()
    if text in _YES:
        return True
    return False if text in _NO or text in MINUS or text in ("", "nan") else None


def is_zero(cell: str) -> bool:
    """Whether a cell says no in words, rather than by -1 or nothing."""
    return cell.casefold() in _NO
