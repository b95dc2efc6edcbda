"""What somebody may have meant."""

from __future__ import annotations

import pytest

from infercam.engine.common.suggest import did_you_mean, nearest

CLASSES = ["cat", "dog", "potted plant", "Elk", "elk hound"]


@pytest.mark.parametrize(
    ("word", "want"),
    [
        *[("Dog", "dog"), ("DOG", "dog"), ("elk", "Elk"), ("potted-plant", "potted plant")],
        *[("pottedplant", "potted plant"), ("POTTED_PLNT", "potted plant"), ("Elk hond", "elk hound")],
        *[("zebra", None), ("", None), ("-", None), (7, None), ("d" * 10_000, None)],
    ],
)
def test_the_nearest_word(word: object, want: str | None) -> None:
    assert nearest(word, CLASSES) == want


def test_as_the_end_of_a_message() -> None:
    assert did_you_mean("Dog", CLASSES) == "; did you mean 'dog'?"
    assert did_you_mean("zebra", CLASSES) == ""
