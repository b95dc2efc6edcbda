"""`infercam build` from its options to its one-line outcome; over the stand-in for TensorRT."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT-RTX is not installed, so nothing is built: pip install 'infercam[rtx]'"
)

from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import InfercamError
from infercam.engine.data.sources import folder_source
from infercam.engine.runners.plan import Plan
from infercam.export.commands import build as build_cli
from infercam.export.commands.build import register
from infercam.export.plan.workflow import spread
from tests.engine import tiny


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    tiny.build(tmp_path / "bundle")
    return tiny.write_dataset(tmp_path, 6)


@pytest.fixture
def build(trt, data, monkeypatch):
    """Run the command on the tiny bundle; returns what it printed, raises what it raised."""
    monkeypatch.setattr(build_cli, "_open_driver", lambda device: trt.state.driver)
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)

    def run(*args, source: bool = True, exit_code: int = 0) -> str:
        images = ["--images", data / "images"] if source else []
        given = ["build", data / "bundle", "--runtime", "tensorrt", "--precision", "fp32"]
        given += ["--batch-pixels", 60_000, *images, *args]
        result = CliRunner().invoke(app, list(map(str, given)), env={"COLUMNS": "200"})
        if isinstance(result.exception, InfercamError):
            assert "\n" not in str(result.exception)
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result.output

    return run


def plan_of(data: Path) -> Plan:
    (folder,) = (p for p in (data / "bundle" / "plans").iterdir())
    return Plan.load(folder)


def test_a_plan_for_the_users_images(build, data, trt):
    printed = build("--profiles", 3, "--check-images", 2)
    plan = plan_of(data)
    assert len(plan.record.profiles) == 3 and plan.intact()
    for words in (
        "built fp32 plan for NVIDIA H100 (compute 9.0), TensorRT 11.4.0.106",
        "against ONNX Runtime fp32: 2 images, 16 views; response error",
        "IoU at 0.3: 1.0000",
        str(plan.folder),
    ):
        assert words in printed
    shares = [
        float(line.split()[-1].rstrip("%")) for line in printed.splitlines() if line.rstrip().endswith("%")
    ]
    assert len(shares) == 3 and sum(shares) == pytest.approx(100, abs=0.2)
    assert trt.state.driver.closed
    assert "kept" in build("--profiles", 3, "--check-images", 2)
    assert trt.state.builds == 1


@pytest.mark.parametrize(
    "more", [[], ["--batch-pixels", 4_000_000, "--recipe", "fast"], ["--largest-view", 128]]
)
def test_without_images_the_ladder_and_drawn_scenes(build, data, trt, more):
    printed = build("--check-images", 2, *more, source=False)
    profiles = plan_of(data).record.profiles
    largest = {(): 192, ("--batch-pixels",): 1920, ("--largest-view",): 128}[tuple(map(str, more[:1]))]
    assert profiles[-1].largest[1:] == (largest * 9 // 8,) * 2 and profiles[-1].smallest[1:] == (5, 5)
    assert "against ONNX Runtime fp32: 2 images" in printed and "%" not in printed
    assert "kept" in build("--check-images", 2, *more, source=False) and trt.state.builds == 1


def test_the_largest_image_fits_although_the_sample_has_not_seen_it(build, data):
    Image.fromarray(tiny.picture(300, 40)).save(data / "images" / "p003b.png")
    build("--limit", 2, "--check-images", 1)
    profiles = plan_of(data).record.profiles
    assert profiles[-1].largest[1:] == (600, 600) and profiles[-1].smallest[1:] == (5, 5)


def test_centres_of_the_cpu_engine(build, data):
    build("--centres", "cpu", "--check-images", 1, "--labels", data / "labels.json", "--recipe", "fast")
    assert plan_of(data).record.profiles


def test_ground_truth_of_a_list_is_compared_with(build, data):
    for i in range(2):
        Image.fromarray(np.full((40 + i, 52 + i), i + 1, np.uint8)).save(data / f"mask{i}.png")
    (data / "list.txt").write_text("images/p000.png mask0.png\nimages/p001.png mask1.png\n")
    printed = build("--list", data / "list.txt", source=False)
    assert re.search(r"best mIoU [-+]0\.00 points on 2 masks", printed)


def test_options_reach_the_plan(build, data):
    build(
        "--strip-weights", "--refit", "--workspace", 128, "--hardware-compatible", "--cache", data / "plans"
    )
    (folder,) = (data / "plans").iterdir()
    options = Plan.load(folder).record.options
    assert (
        options.stripped
        and options.refittable
        and options.hardware_compatible
        and options.workspace_mb == 128
    )


def test_a_missed_tolerance_is_an_error_of_one_line(build, data, trt):
    trt.state.distort = 0.01
    with pytest.raises(InfercamError, match="not installed: responses differ by"):
        build("--max-error", 1e-3)
    (rejected,) = (data / "bundle" / "plans" / "rejected").iterdir()
    assert json.loads((rejected / "report.json").read_text())["missed"]
    build("--max-error", 0.5, "--min-iou", 0)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--precision", "fp64"], "no precision 'fp64'; there are: fp32, tf32"),
        (["--precision", "int8"], "no int8 graph; make it with: infercam precision"),
        (["--recipe", "nonsense"], "no recipe 'nonsense'"),
        (["--mode", "nonsense"], "no mode 'nonsense'"),
        (["--centres", "nonsense"], "there are `drawn` and `cpu`"),
        (["--strip-weights", "--version-compatible"], "take one of the two"),
        (["--version-compatible"], "a version-compatible plan needs tensorrt-lean"),
        (["--list", "x"], "give one source of images"),
        (["--labels", "missing.json"], "missing.json"),
    ],
)
def test_bad_options_are_one_line(build, data, args, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    with pytest.raises(InfercamError, match=words):
        build(*args)
    assert not list((data / "bundle").glob("plans/*"))


def test_one_bad_image_is_named(build, data):
    (data / "images" / "p001.png").write_bytes(b"no picture")
    with pytest.raises(InfercamError, match=r"p001\.png"):
        build()


def test_without_a_driver_one_line_says_so(build, monkeypatch):
    from infercam.engine.device.cuda import CudaDriver

    monkeypatch.setattr(build_cli, "_open_driver", CudaDriver)
    with pytest.raises(InfercamError, match="no NVIDIA driver on this machine"):
        build()


def test_a_signal_stops_the_build_and_the_handlers_come_back(build, data, trt):
    def interrupted(phase: str, step: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.6)  # the main thread takes it

    before = signal.getsignal(signal.SIGTERM)
    trt.state.on_step = interrupted
    assert "nothing was installed" in build(exit_code=128 + signal.SIGTERM)
    assert trt.state.builds == 1 and trt.state.driver.closed
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list((data / "bundle" / "plans").iterdir())


def test_the_command_is_registered():
    from infercam.export.commands import register as room

    app = typer.Typer()
    room(app)
    assert "build" in {c.name for c in app.registered_commands}


def test_a_sample_is_spread_over_the_source(tmp_path):
    source = folder_source(tiny.write_dataset(tmp_path, 10) / "images")
    assert [i.id for i in spread(source, 3)] == ["p000", "p003", "p006"]
    assert len(spread(source, 10)) == len(spread(source, 99)) == 10


@pytest.mark.shared
def test_real_photos_of_voc(build, shared):
    printed = build(
        "--voc", shared / "voc", "--split", "val", "--check-images", 2, "--limit", 20, source=False
    )
    assert "2 images, 16 views" in printed
    assert "masks" not in printed.split("against")[1]  # of other classes than the bundle's


def test_bundle_is_untouched_by_a_build(build, data):
    before = Bundle.load(data / "bundle").manifest
    build()
    assert Bundle.load(data / "bundle").manifest == before
