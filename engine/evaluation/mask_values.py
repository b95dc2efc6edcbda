"""What the values of ground-truth masks stand for among the classes that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.errors import InputError, shown
from infercam.engine.evaluation.image_counts import IGNORE, MAX_CLASSES, values_in_words

OPTION = "--gt-values"


@dataclass(frozen=True)
class MaskValues:
    """Masks whose values are no class indices: `values[i]` is written where label i is meant (0 is background).

    A value that is None stands nowhere. Pixels of all other values are ignored, as those of 255 are where 255 is not
    listed itself.
    """

    values: tuple[int | None, ...]

    @classmethod
    def parse(cls, text: str) -> MaskValues:
        """`0,255`: 0 is background, 255 the first class; an empty place (`0,,255`): no value has that label.

        Raises InputError, naming the option, for what is no such list.
        """
        try:
            values = tuple(int(part) if part.strip() else None for part in text.split(","))
        except ValueError:
            raise _wrong(text, "write whole numbers separated by commas, that of background first") from None
        given = [value for value in values if value is not None]
        if any(not 0 <= value <= IGNORE for value in given):
            raise _wrong(text, "values of 8-bit masks are 0 to 255")
        if len(set(given)) < len(given):
            raise _wrong(text, "names a value twice")
        if not any(value is not None for value in values[1:]):
            raise _wrong(text, "names no class; after the value of background come those of the classes")
        if len(values) > MAX_CLASSES + 1:
            raise _wrong(text, f"names more than {MAX_CLASSES} classes")
        return cls(values)

    def __str__(self) -> str:
        return ",".join("" if value is None else str(value) for value in self.values)

    def table(self, classes: int) -> NDArray[np.uint8]:
        """(256,) the label of each value, 255 for what is ignored; raises InputError beyond `classes` classes."""
        if len(self.values) > classes + 1:
            raise _wrong(str(self), f"names {len(self.values) - 1} classes, but there are {classes}")
        found = np.full(IGNORE + 1, IGNORE, np.uint8)
        for label, value in enumerate(self.values):
            if value is not None:
                found[value] = label
        return found


def _wrong(text: str, why: str) -> InputError:
    return InputError(f"{OPTION} {shown(text)}: {why}")


@dataclass(frozen=True)
class ValueTable:
    """From a mask's values to labels. `refused`: values that stand for nothing; `unlisted`: ignored, and counted."""

    labels: NDArray[np.uint8]
    refused: NDArray[np.bool_]
    unlisted: NDArray[np.bool_]
    classes: int
    """How many classes the masks have."""

    def apply(self, mask: NDArray[np.uint8], id: str) -> tuple[NDArray[np.uint8], int]:
        """(labels, unlisted pixels) of a mask; raises InputError, naming `id`, where it has refused values."""
        sizes = np.bincount(mask.ravel(), minlength=IGNORE + 1)
        wrong = np.flatnonzero(self.refused & (sizes > 0))
        if len(wrong):
            raise InputError(f"{shown(id)}: {values_in_words(wrong, self.classes)}")
        return self.labels[mask], int(sizes[self.unlisted].sum())


def value_table(
    values: MaskValues | None, names: Sequence[str] | None, classes: Sequence[str]
) -> ValueTable | None:
    """What each mask value is among `classes`; None where it is that class's index + 1 already.

    values: of masks whose values are no class indices. names: the masks' own classes, matched by name; None: the
    masks' class c is class c of what is scored. Raises InputError where one of them is not among `classes`, or
    `values` has more than there are.
    """
    same = names is None or list(names) == list(classes[: len(names)])
    if same and values is None:
        return None
    own = len(classes if names is None else names)
    labels, refused = _by_name(names, classes, own)
    listed = np.ones(IGNORE + 1, bool)
    if values is not None:
        first = values.table(own)
        labels, refused = labels[first], np.zeros(IGNORE + 1, bool)
        listed = np.isin(np.arange(IGNORE + 1), [v for v in values.values if v is not None])
        listed[IGNORE] = True  # 255 is ignored where it is not listed, as in every mask
    return ValueTable(labels, refused, ~listed, own)


def _by_name(
    names: Sequence[str] | None, classes: Sequence[str], own: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(label of each of the masks' labels, whether there is no such label)."""
    table = np.arange(IGNORE + 1, dtype=np.uint8)
    refused = np.zeros(IGNORE + 1, bool)
    refused[own + 1 : IGNORE] = True
    if names is None:
        return table, refused
    places = {name: value for value, name in enumerate(classes, start=1)}
    unknown = [name for name in names if name not in places]
    if unknown:
        some = ", ".join(map(shown, unknown[:3])) + (", …" if len(unknown) > 3 else "")
        raise InputError(
            f"the ground truth has {len(unknown)} classes that what is scored has not ({some}); "
            "both must use the same names"
        )
    table[1 : own + 1] = [places[name] for name in names]
    return table, refused
