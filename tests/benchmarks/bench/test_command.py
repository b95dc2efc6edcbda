"""`infercam bench` as a user runs it: options that cannot be, and a quick run on the demo from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infercam.benchmarks.bench.result import BenchResult, read_result
from infercam.benchmarks.bench.settings import BenchSettings
from infercam.benchmarks.bench.setup import make_plan
from infercam.benchmarks.common import command, machine
from infercam.engine.common.errors import InfercamError
from infercam.engine.method.recipe import RECIPES

PROGRAM = (
    "import typer\nfrom infercam.engine import cli\nfrom infercam.benchmarks.commands.bench import register\n"
)
PROGRAM += "cli.entry_points = lambda group: []\nregister(cli.app)\ncli.main()"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-c", PROGRAM, "bench", *map(str, arguments)]
    return subprocess.run(given, capture_output=True, text=True, check=False)


def plan(tmp_path: Path, **options: object):
    return make_plan(Path("demo"), tmp_path, BenchSettings(**options), lambda text: None)


def test_the_demo_needs_nothing(tmp_path) -> None:
    made = plan(tmp_path, images=3)
    assert made.subject.pictures == "synthetic scenes of the demo"
    assert len(made.pictures) == 3
    assert made.pictures.truth(3) is not None
    assert made.field.recipes == list(RECIPES)
    assert plan(tmp_path, images=3).pictures == made.pictures
    assert plan(tmp_path, images=2).pictures.digest != made.pictures.digest


def test_quick_is_small(tmp_path) -> None:
    made = plan(tmp_path, quick=True, images=100, rounds=9)
    assert (made.field.count, made.field.few, made.rounds) == (4, 2, 2)
    assert made.field.recipes == ["released", "fast"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipes": "fast,superb"}, "no recipe 'superb'; there are: paper, released"),
        ({"recipes": ","}, "at least one recipe"),
        ({"only": "rows,dessert"}, "no part 'dessert'"),
        ({"backends": "abacus"}, "no backend 'abacus'"),
        ({"counts": "5"}, "two or more different"),
        ({"counts": "5,x"}, "two or more different"),
        ({"model": Path("nowhere.pth")}, "nowhere.pth: no such file"),
        ({"folder": Path("nowhere")}, "nowhere"),
        ({"folder": Path("a"), "voc": Path("b")}, "--folder DIR"),
        ({"labels": "x.json"}, "go with images"),
    ],
)
def test_bad_options_are_one_line(tmp_path, options, said) -> None:
    with pytest.raises(InfercamError) as e:
        plan(tmp_path, **options)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_errors_of_the_command(tmp_path) -> None:
    done = run(tmp_path / "no-bundle", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error:")
    assert "Traceback" not in done.stderr
    (tmp_path / "old.json").write_text("{}")
    done = run("demo", "--compare", tmp_path / "old.json", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "not a result of `infercam bench`" in done.stderr
    assert not (tmp_path / "out").exists()  # nothing was begun


def test_what_a_result_records(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/infercam", "bench", "/home/me/bundle", "--rounds", "2"])
    assert command().endswith("bench bundle --rounds 2")
    assert "/" not in command()
    assert {"processor", "cores", "gpu", "python"} <= set(machine())


@pytest.mark.slow
def test_a_quick_run_from_end_to_end(tmp_path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    out = tmp_path / "out"
    first = run("demo", "--quick", "--images", "2", "-o", out)
    assert first.returncode == 0, first.stderr
    result = read_result(out / "bench.json")
    _check(result)
    for name in ("quality-cost.png", "waterfall.png", "growth.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    for said in ("engine cpu: fast", "From the plain loop", "Time grows with", "matrix rate", "--model"):
        assert said in first.stdout
    times = {f: f.stat().st_mtime_ns for f in (out / "measured").iterdir()}
    again = run("demo", "--quick", "--images", "2", "-o", out, "--compare", out / "bench.json")
    assert again.returncode == 0, again.stdout
    assert times == {
        f: f.stat().st_mtime_ns for f in (out / "measured").iterdir()
    }  # nothing was measured again
    _compared_with_a_faster_past(out, tmp_path / "past.json")


def _check(result: BenchResult) -> None:
    rows = {r.name: r for r in result.rows}
    measured = [r for r in result.rows if r.seconds_per_image]
    assert {"engine cpu: CAM, 8 views", "engine cpu: released", "engine cpu: fast"} <= {
        r.name for r in measured
    }
    for r in measured:
        assert r.seconds_per_image is not None and len(r.seconds_per_image.all) == r.rounds == 2
        assert r.peak_mb and r.cpu_cores and r.images_per_second and r.over_baseline
        assert r.miou is not None and 0 < r.miou < 1
        if "8 views" in r.name:
            assert set(r.over_baseline.all) == {1.0}
        if r.flop_per_image is not None:
            assert r.network_pixels_per_image
            assert r.rate_share is not None and r.rate_share > 0  # on a busy machine perhaps above 1
    for r in result.rows:
        assert r.seconds_per_image or r.not_measured
    assert rows["PyTorch loop: released"].not_measured
    flop = {n: rows[f"engine cpu: {n}"].flop_per_image for n in ("CAM, 1 view", "CAM, 8 views", "released")}
    if all(flop.values()):
        assert flop["CAM, 8 views"] == pytest.approx(
            15 * flop["CAM, 1 view"], rel=0.03
        )  # engine/method/README.md §1: 2 × 7.5
        assert flop["released"] > flop["CAM, 8 views"]
    assert [g.name for g in result.growth] == ["images", "area", "classes", "iterations"]
    assert all(g.exponent is not None and g.error is not None for g in result.growth)
    assert len(result.waterfall) == 7
    assert abs(sum(result.profile["fast"].values()) - 1) < 0.01


def _compared_with_a_faster_past(out: Path, past: Path) -> None:
    """A past that was ten times as fast, with little noise."""
    old = json.loads((out / "bench.json").read_text())
    for r in old["rows"]:
        if r["seconds_per_image"]:
            s = r["seconds_per_image"]["median"] / 10
            r["seconds_per_image"] = {"median": s, "low": s, "high": s, "all": [s] * 50}
    past.write_text(json.dumps(old))
    done = run("demo", "--quick", "--images", "2", "-o", out, "--compare", past)
    assert "worse:" in done.stdout or "noise up to" in done.stdout
    old["subject"]["bundle_hash"] = "another"
    past.write_text(json.dumps(old))
    done = run("demo", "--quick", "--images", "2", "-o", out, "--compare", past)
    assert done.returncode == 1
    assert "the bundle differs" in done.stderr
