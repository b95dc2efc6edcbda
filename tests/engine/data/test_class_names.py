"""Files of class names as model hubs and data sets have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infercam.engine.common.errors import InputError
from infercam.engine.data.class_names import read_classes

NAMES = ["tench, Tinca tinca", "cock", "jack-o'-lantern", "great white shark: Carcharodon"]
DICTIONARY = (
    "{0: 'tench, Tinca tinca',\n 1: 'cock',\n 2: \"jack-o'-lantern\",\n 3: 'great white shark: Carcharodon'}"
)


def read(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "names").write_text(text, encoding="utf-8")
    return read_classes(tmp_path / "names")


@pytest.mark.parametrize(
    "text",
    [
        DICTIONARY,
        DICTIONARY.strip("{}"),
        DICTIONARY.strip("{}") + ",\n",
        DICTIONARY.strip("{}").replace("\n", "\r\n\r\n"),
        "\n".join(reversed(DICTIONARY.strip("{}").split("\n"))),
        str(NAMES),
        json.dumps({"architectures": ["ResNet"], "id2label": dict(enumerate(NAMES)), "label2id": {"a": 0}}),
        json.dumps(dict(enumerate(NAMES))),
        "0: tench, Tinca tinca\n1: cock\n2: jack-o'-lantern\n3: great white shark: Carcharodon",
    ],
)
def test_names_by_index(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == NAMES


def test_a_line_that_is_no_pair_makes_all_lines_names(tmp_path: Path) -> None:
    assert read(tmp_path, "0: 'cat',\ndog\n") == ["0: 'cat',", "dog"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0: 'cat',\n2: 'dog',\n", "every index from 0 to 1"),
        ("1: 'cat',\n2: 'dog',\n", "every index from 0 to 1"),
        ("0: 'cat',\n0: 'dog',\n", "every index from 0 to 1"),
        ("0: 'cat',\n1: 'cat',\n", "twice"),
        ("{0: 'cat', 2: 'dog'}", "not valid JSON"),
        ("{0: open('/etc/passwd')}", "not valid JSON"),
        (json.dumps({"id2label": {"1": "cat"}}), "by index from 0 without gaps"),
        (json.dumps({"hidden_size": 3}), "by index"),
    ],
)
def test_names_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
