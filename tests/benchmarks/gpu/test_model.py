"""The batches of a GPU, simulated on the sizes of 300 VOC photos, and what they would take."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest

from infercam.benchmarks.gpu import model
from infercam.benchmarks.gpu.model import predicted, read_rates, read_sizes, report, simulated, simulations
from infercam.engine.backends.device_limits import device_limits
from infercam.engine.common.errors import InputError
from infercam.engine.method.recipe import recipe
from infercam.export.plan import profiles

SIZES = Path(__file__).with_name("voc_sizes.json")
"""[height, width, number of classes] of the 300 photos of `train` that the project measures on."""


@pytest.fixture(scope="module")
def sizes():
    return read_sizes(SIZES)


@pytest.fixture(scope="module")
def batches(sizes):
    """`batches(recipe)`: what OUT says of the batches alone, of a runtime that keeps every shape: one simulation."""
    rates = read_rates()
    one = rates.model_copy(update={"runtimes": {"pytorch": rates.runtimes["pytorch"]}})
    assert one.runtimes["pytorch"].keeps == 0
    return lambda chosen: report(sizes, chosen, "both", one)


@pytest.mark.parametrize(
    ("name", "most_sizes", "most_distinct", "least_views", "least_mpx"),
    [
        ("released", 90, 150, 12, 1.8),
        ("corrected", 90, 150, 12, 1.8),
        ("paper", 90, 150, 12, 1.8),
        ("fast", 40, 60, 7, 2.0),
        ("best", 45, 70, 8, 3.0),
    ],
)
def test_a_ladder_makes_few_shapes_and_full_batches(
    batches, name: str, most_sizes: int, most_distinct: int, least_views: float, least_mpx: float
) -> None:
    found = batches(recipe(name, ladder=True))
    assert found["sizes"] <= most_sizes and found["distinct_batches"] <= most_distinct
    assert found["views_per_batch"] >= least_views and found["mpx_per_batch"] >= least_mpx
    assert found["waste"] <= 0.1


def test_exact_sizes_are_each_a_shape_of_its_own(batches) -> None:
    found = batches(recipe("released"))
    assert found["sizes"] > 4000 and found["views_per_batch"] < 3 and found["waste"] == 0


def test_predictions_are_of_the_measured_kind(sizes) -> None:
    """Before the ladder an H100 made 0.47 to 0.64 images/s of `released` through PyTorch, cold."""
    rates = read_rates()
    before, after = (
        predicted(len(sizes), simulations(sizes, recipe("released", ladder=ladder), "both", rates), rates)
        for ladder in (False, True)
    )
    assert 0.4 < before["pytorch"]["cold"] < 0.7
    assert before["ort-cuda, one session"]["warm"] < 0.3
    for name in rates.runtimes:
        assert after[name]["cold"] > 3 * before[name]["cold"] and after[name]["warm"] > before[name]["warm"]


@pytest.mark.parametrize(
    ("ladder", "keeps", "plain", "most"),
    [(False, 8, 11_000, 7_000), (True, 32, 500, 350), (True, 64, 220, 180)],
)
def test_what_is_ready_goes_first_where_not_all_is_kept(sizes, ladder, keeps, plain, most) -> None:
    """plain: least preparations in the order of age alone, replayed with as many shapes kept."""
    chosen = recipe("released", ladder=ladder)
    asked: list[tuple[int, int, int]] = []
    kept: OrderedDict[tuple[int, int, int], None] = OrderedDict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiles._Simulated, "_run", lambda self, shape: asked.append(shape))
        by_age = simulated(sizes, chosen)
    prepared = 0
    for shape in asked:
        prepared += shape not in kept
        kept[shape] = None
        kept.move_to_end(shape)
        if len(kept) > keeps:
            kept.popitem(last=False)
    found = simulated(sizes, chosen, keeps=keeps)
    assert prepared > plain and found.prepared < most
    assert found.stats.pixels == pytest.approx(by_age.stats.pixels, rel=0.02)
    assert found.stats.views / found.stats.batches > 0.85 * by_age.stats.views / by_age.stats.batches


@pytest.mark.parametrize("gigabytes", [2, 4, 8, 24, 80])
def test_small_devices_have_full_batches_too(batches, gigabytes: int) -> None:
    """Images in flight and batches by the memory, `released` at stride 8 with 20 classes; memory itself is
    simulated by the number of images."""
    budget, typical = int(0.56 * gigabytes * (1 << 30)), 17 << 20
    limits = device_limits(budget, 7.25, typical, host_memory=64 << 30)
    limits = replace(limits, images=min(limits.images, limits.memory // typical), memory=1 << 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "DEVICE_LIMITS", limits)
        found = batches(recipe("released", ladder=True))
    assert found["waste"] <= 0.1 and found["distinct_batches"] <= 150
    assert found["mpx_per_batch"] > (1.8 if gigabytes >= 24 else 0.2)


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "sizes.json"
    file.write_text("[[375, 500, 1], [500, 375, 2]]")
    command = [
        sys.executable,
        "-m",
        "infercam.benchmarks.gpu.model",
        "--sizes",
        str(file),
        "--recipe",
        "released",
    ]
    ran = subprocess.run(
        [*command, "--ladder", "--json", str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0 and "predicted" in ran.stderr, ran.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert {"sizes", "distinct_batches", "views_per_batch", "mpx_per_batch", "waste", "predicted"} <= set(
        found
    )
    assert found["ladder"] is True and found["images"] == 2


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "[[1, 2]]", "[[0, 5, 1]]", '["a"]', "[[1, 2, null]]", "[5]"]
)
def test_what_is_no_list_of_sizes(tmp_path: Path, text: str) -> None:
    (tmp_path / "sizes.json").write_text(text)
    with pytest.raises(InputError, match="sizes"):
        read_sizes(tmp_path / "sizes.json")
