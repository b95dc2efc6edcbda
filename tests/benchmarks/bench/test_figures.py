"""Fits recover exponents; comparisons flag what is slower and pass noise; results are validated when read."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from infercam.benchmarks.bench.compare import Verdict, compare
from infercam.benchmarks.bench.figures import spread
from infercam.benchmarks.bench.fit import power_law
from infercam.benchmarks.bench.result import BenchResult, ResultRow, Subject, read_result
from infercam.benchmarks.bench.table import tables
from infercam.engine.common.errors import InputError


# -- fits ------------------------------------------------------------------------------------------------------------
@given(
    exponent=st.floats(-3, 3),
    factor=st.floats(1e-3, 1e3),
    x=st.lists(st.integers(1, 10**6), min_size=3, max_size=8, unique=True),
)
def test_an_exact_power_law_is_recovered(exponent, factor, x) -> None:
    fitted = power_law(x, [factor * v**exponent for v in x])
    assert fitted.exponent == pytest.approx(exponent, abs=1e-6)
    assert fitted.factor == pytest.approx(factor, rel=1e-4)
    assert fitted.error == pytest.approx(0, abs=1e-5)


def test_the_standard_error_says_how_far_off_an_exponent_may_be() -> None:
    """Of many noisy fits, about as many as should lie within two standard errors of the truth."""
    rng = random.Random(5)
    x = [1.0, 2, 4, 8] * 3
    inside = 0
    for _ in range(400):
        y = [0.1 * v**1.5 * math.exp(rng.gauss(0, 0.1)) for v in x]
        fitted = power_law(x, y)
        assert fitted.error is not None
        inside += abs(fitted.exponent - 1.5) < 2 * fitted.error
    assert 0.88 < inside / 400 < 0.98  # Student's t of 10 degrees: 0.927


def test_two_points_have_no_error_and_one_no_exponent() -> None:
    assert power_law([1, 2], [1, 4]).error is None
    for x, y in (([1, 1], [1, 2]), ([1, 2], [1, 0]), ([0, 1], [1, 1]), ([1, 2], [1])):
        with pytest.raises(ValueError, match="power law"):
            power_law(x, y)


# -- comparisons -----------------------------------------------------------------------------------------------------
NAMES = ("engine cpu: fast", "engine cpu: released", "PyTorch loop: released")


def result(seconds: dict[str, list[float]], **changes: object) -> BenchResult:
    rows = [
        ResultRow(
            name=n,
            images=10,
            rounds=len(s),
            seconds_per_image=spread(s),
            peak_mb=400,
            miou=0.5,
            miou_images=10,
        )
        for n, s in seconds.items()
    ]
    subject = {"bundle": "b", "bundle_hash": "h", "pictures": "VOC val", "pictures_digest": "d"}
    subject |= {"images": 10, "few": 3, "mean_pixels": 187500.0, "mean_classes": 1.5}
    subject |= {k: v for k, v in changes.items() if k in subject}
    machine = {"processor": "P", "cores": changes.get("cores", 2), "gpu": "none", "numpy": "2"}
    return BenchResult(
        date="2026-01-01",
        command="infercam bench",
        machine=machine,
        subject=Subject.model_validate(subject),
        rounds=3,
        matrix_rate={"cpu": 1e11},
        rows=rows,
    )


def noisy(rng: random.Random, sigma: float, slower: float = 1.0) -> dict[str, list[float]]:
    base = {"engine cpu: fast": 0.3 * slower, "engine cpu: released": 1.7, "PyTorch loop: released": 6.5}
    return {n: [s * math.exp(rng.gauss(0, sigma)) for _ in range(3)] for n, s in base.items()}


def slower_rows(verdicts: list[Verdict]) -> list[str]:
    return [v.row for v in verdicts if v.worse and v.figure == "time"]


def test_a_regression_is_flagged_and_named() -> None:
    rng = random.Random(0)
    found = compare(result(noisy(rng, 0.02)), result(noisy(rng, 0.02, slower=1.25)))
    assert slower_rows(found) == ["engine cpu: fast"]


def test_noise_is_not() -> None:
    """At any level of noise, hardly ever a false alarm in 300 comparisons of three rows."""
    for sigma in (0.002, 0.02, 0.2):
        rng = random.Random(1)
        alarms = sum(
            bool(slower_rows(compare(result(noisy(rng, sigma)), result(noisy(rng, sigma)))))
            for _ in range(100)
        )
        assert alarms <= 3, sigma


def test_what_is_flagged_in_silence_is_noise_on_a_loud_machine() -> None:
    rng = random.Random(2)
    assert slower_rows(compare(result(noisy(rng, 0.01)), result(noisy(rng, 0.01, 1.15))))
    assert not slower_rows(compare(result(noisy(rng, 0.3)), result(noisy(rng, 0.3, 1.15))))


def test_single_rounds_are_not_judged() -> None:
    one = result({n: [1.0] for n in NAMES})
    other = result({n: [9.0] for n in NAMES})
    verdicts = compare(one, other)
    assert not slower_rows(verdicts)
    assert "noise not known" in str(verdicts[0])


def test_faster_is_no_regression() -> None:
    rng = random.Random(3)
    assert not slower_rows(compare(result(noisy(rng, 0.01)), result(noisy(rng, 0.01, 0.5))))


def test_memory_and_quality_are_compared_too() -> None:
    old, new = result({n: [1.0, 1.01] for n in NAMES}), result({n: [1.0, 1.01] for n in NAMES})
    new.rows[0].peak_mb, new.rows[1].miou = 460.0, 0.495
    worse = [(v.row, v.figure) for v in compare(old, new) if v.worse]
    assert worse == [(NAMES[0], "memory"), (NAMES[1], "mIoU")]
    new.rows[0].peak_mb, new.rows[1].miou = 415.0, 0.499
    assert not [v for v in compare(old, new) if v.worse]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"bundle_hash": "x"}, "bundle"), ({"pictures_digest": "x"}, "pictures"), ({"images": 9}, "images"),
     ({"few": 2}, "slow"), ({"cores": 4}, "cores")],
)  # fmt: skip
def test_only_like_is_compared_with_like(change, named) -> None:
    seconds = {n: [1.0, 1.1] for n in NAMES}
    with pytest.raises(InputError, match=f"nothing to compare.*{named}"):
        compare(result(seconds), result(seconds, **change))


def test_no_row_in_common() -> None:
    with pytest.raises(InputError, match="no measured row in common"):
        compare(result({"a": [1.0]}), result({"b": [1.0]}))


# -- files and tables ------------------------------------------------------------------------------------------------
def test_a_result_is_read_as_it_was_written(tmp_path) -> None:
    one = result({n: [1.0, 1.1, 0.9] for n in NAMES})
    (tmp_path / "bench.json").write_text(one.model_dump_json())
    assert read_result(tmp_path / "bench.json") == one


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "not json", '{"schema_version": 2}', json.dumps({"rows": [{"name": 3}]})]
)
def test_another_file_is_refused_in_one_line(tmp_path, text) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="not a result") as e:
        read_result(tmp_path / "x.json")
    assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="no such file"):
        read_result(tmp_path / "absent.json")


def test_a_row_without_figures_shows_its_reason() -> None:
    one = result({NAMES[0]: [1.0, 1.1]})
    one.rows.append(ResultRow(name="torch-cam: CAM, 1 view", not_measured="torchcam needs torchcam [bench]"))
    console = Console(width=150, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in tables(one):
        console.print(table)
    text = console.export_text()
    assert "torchcam needs torchcam [bench]" in text
    assert "1.05 (1–1.1)" in text
