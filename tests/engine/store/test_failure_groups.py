"""Reasons of failed images, counted: whatever the pictures are called, and however many fail."""

from __future__ import annotations

import pytest

from infercam.engine.common.errors import InputError
from infercam.engine.store.failure_groups import MOST, FailureGroups, grouped
from infercam.engine.store.failures import Failures, one_line

DOG = "label 'Dog' is not one of the bundle's 20 classes (cat, dog, …); did you mean 'dog'?"


def test_the_commonest_comes_first() -> None:
    groups = grouped([("a", "a: no labels")] + [(f"p{n}", f"p{n}: {DOG}") for n in range(398)])
    assert groups.lines() == [f"398 × {DOG}", "1 × a: no labels"]
    assert groups.to_json() == [{"count": 398, "reason": DOG}, {"count": 1, "reason": "a: no labels"}]
    assert groups.alike is None


@pytest.mark.parametrize(
    ("reason", "want"),
    [
        ("/data/my photos/{id}.png: cut off", "cut off"),
        ("{id}: {name}.xml is not there", "… is not there"),
        ("{id}: no labels in l.json (no {id}.xml)", "no labels in l.json (no …)"),
        ("{id}: in l.csv it would have the labels of {name}, as x/{name} has", None),
        (
            "{id}: {n} pixels, more than 4000; raise --max-pixels",
            "… pixels, more than 4000; raise --max-pixels",
        ),
        ("ZeroDivisionError: by nothing", "ZeroDivisionError: by nothing"),
        ("RuntimeError: {id} at 0x{n}f", "RuntimeError: … at …"),
        ("cannot identify '/x/{id}.png'", "cannot identify '…'"),
        ("{id}: its {name}", "its …"),
        ("{name}", "…"),
    ],
)
@pytest.mark.parametrize("ids", ["{n}", "img {n}", "sub/dir/x{n}.v2", "e{n}", "[{n}", "bild-ü{n}"])
def test_names_and_numbers_make_no_new_reason(reason: str, want: str | None, ids: str) -> None:
    names = [ids.format(n=1000 + n) for n in range(30)]
    told = [(id, reason.format(id=id, name=id.rpartition("/")[2], n=5000 + n)) for n, id in enumerate(names)]
    groups = grouped(told)
    assert groups.alike is not None and len(groups.lines()) == 1
    assert want is None or groups.lines() == [f"30 × {want}"]


def test_an_image_called_like_its_label() -> None:
    groups = grouped([("dog", "dog: label 'dog' is unknown"), ("x", "x: label 'dog' is unknown")])
    assert groups.lines() == ["2 × label 'dog' is unknown"]


def test_memory_is_bounded_and_what_is_common_is_found_late() -> None:
    groups = FailureGroups()
    for n in range(5000):
        word = "".join(chr(97 + int(d)) for d in str(n))
        groups.add("x", f"x: label '{word}' is unknown")
        if n > 4000:
            groups.add(f"y{n}", f"y{n}: cut off")
    assert len(groups._groups) <= MOST
    found = groups.to_json(3)
    assert found[0] == {"count": 999, "reason": "cut off"}
    assert found[-1]["reason"] == "other reasons" and sum(one["count"] for one in found) == 5999
    assert groups.alike is None


def test_the_list_of_failures_counts_them(tmp_path) -> None:
    failures = Failures(tmp_path)
    for name in ("a", "b"):
        failures.add(name, InputError(f"{name}: two words"))
    failures.add("c", ValueError(""))
    assert failures.groups.lines() == ["2 × two words", f"1 × {one_line(ValueError(''))}"]


def test_reasons_that_are_alike_but_for_what_they_quote() -> None:
    """Every name of a wrong table of labels is another reason, and yet there is one fault."""
    reasons = [DOG, DOG.replace("Dog", "Sofa").partition(";")[0], DOG.replace("'Dog'", '"Cow\'s"')]
    groups = grouped((f"p{n}", f"p{n}: {reasons[n % 3]}") for n in range(10))
    assert groups.alike == DOG and [count for count, _ in groups.commonest()] == [4, 3, 3]
    groups.add("x", "x: no labels")
    assert groups.alike is None and FailureGroups().alike is None
    many = grouped(
        (f"p{n}", f"p{n}: label '{'a' * (n % 30)}{'b' * (n // 30)}' is unknown") for n in range(900)
    )
    assert many.alike is not None
