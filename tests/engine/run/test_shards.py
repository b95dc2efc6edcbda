"""`infercam run --shard i/n`: shares, one store of several writers, going on under another division."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infercam.engine import Bundle, Engine
from infercam.engine.common.errors import InputError
from infercam.engine.data.labels import load_labels
from infercam.engine.data.sources import Item, Source, folder_source
from infercam.engine.evaluation.evaluate import evaluate_store, folder_ground_truth
from infercam.engine.method.recipe import RECIPES
from infercam.engine.run.run import Run, Summary
from infercam.engine.run.shards import Shard
from infercam.engine.store.convert import convert
from infercam.engine.store.failures import FAILURES, Failures, read_failures
from infercam.engine.store.mapstore import MapStore
from infercam.engine.store.open_maps import open_maps
from tests.engine import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data"), 11, (24, 32))


def run(engine: Engine, data: Path, out: Path, shard: str = "", recipe: str = "released") -> Summary:
    source = folder_source(data / "images")
    labels = load_labels(data / "labels.json", tiny.CLASSES)
    part = Shard.parse(shard) if shard else None
    return Run(engine, source, labels, out, recipe=RECIPES[recipe], mode="both", shard=part)()


def maps_of(out: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in out.glob("*.npz")}


# -- shares ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(1, 20))
def test_every_image_is_in_one_share_and_shares_are_balanced(images: int, count: int) -> None:
    source = Source("list", Path(), [f"{n}" for n in range(images)], lambda name: Item(name, Path(name)))
    shares = [[item.id for item in Shard(n + 1, count).of(source)] for n in range(count)]
    assert sorted(chain(*shares), key=int) == [item.id for item in source]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    "text", ["", "3", "0/4", "5/4", "-1/4", "1/0", "a/b", "1/4/2", "1.5/4", "1/" + "9" * 10]
)
def test_a_bad_shard_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="I/N"):
        Shard.parse(text)


def test_a_shard_s_names() -> None:
    assert Shard.parse(" 3/8") == Shard(3, 8) and Shard(3, 8).tag == "3-of-8"


# -- one store -------------------------------------------------------------------------------------------------


def test_shards_write_what_one_process_writes(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    assert run(tiny_engine, data, tmp_path / "one").done == 11
    done = [run(tiny_engine, data, tmp_path / "out", f"{n}/3") for n in (2, 3, 1)]
    assert [s.images for s in done] == [s.done for s in done] == [4, 3, 4]
    assert maps_of(tmp_path / "out") == maps_of(tmp_path / "one")
    store = MapStore.open(tmp_path / "out")
    assert len(store) == 11 and store.info.settings["source"]["count"] == 11, "the whole source is recorded"
    assert store.info.settings == MapStore.open(tmp_path / "one").info.settings


def test_store_json_is_written_once(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    run(tiny_engine, data, tmp_path, "1/2")
    before = (tmp_path / "store.json").stat().st_ino
    run(tiny_engine, data, tmp_path, "2/2")
    run(tiny_engine, data, tmp_path)
    assert (tmp_path / "store.json").stat().st_ino == before


def test_another_division_goes_on_from_all_before(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    for n in (1, 2, 5):
        run(tiny_engine, data, tmp_path, f"{n}/5")
    done = len(maps_of(tmp_path))
    four = [run(tiny_engine, data, tmp_path, f"{n}/4") for n in (1, 2, 3)]
    assert sum(s.kept + s.done for s in four) == sum(s.images for s in four)
    assert sum(s.done for s in four) == len(maps_of(tmp_path)) - done
    rest = run(tiny_engine, data, tmp_path)
    assert rest.kept == 11 - rest.done > 0
    for shard in ("", "1/1", "2/2", "7/20"):
        assert run(tiny_engine, data, tmp_path, shard).done == 0


def test_other_settings_under_another_division(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    """The file is of the later run: no older line of another part may vouch for it."""
    run(tiny_engine, data, tmp_path, recipe="released")
    for n in (1, 2):
        assert run(tiny_engine, data, tmp_path, f"{n}/2", "fast").done > 0
    assert run(tiny_engine, data, tmp_path, recipe="fast").done == 0
    assert run(tiny_engine, data, tmp_path, "1/1", "released").done == 11
    assert run(tiny_engine, data, tmp_path, "2/2", "fast").kept == 0


def test_a_lost_or_torn_part_costs_its_images_only(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    for n in (1, 2, 3):
        run(tiny_engine, data, tmp_path, f"{n}/3")
    (tmp_path / "index-1-of-3.jsonl").unlink()
    part = tmp_path / "index-2-of-3.jsonl"
    part.write_bytes(part.read_bytes()[:-7])
    assert run(tiny_engine, data, tmp_path).done == 4 + 1


def test_eval_and_convert_read_a_store_of_shards(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    run(tiny_engine, data, tmp_path / "one")
    for n in (1, 2):
        run(tiny_engine, data, tmp_path / "out", f"{n}/2")
    (tmp_path / "gt").mkdir()
    rng = np.random.default_rng(0)
    for record in MapStore.open(tmp_path / "one"):
        mask = rng.integers(0, 6, record.maps.shape[1:], dtype=np.uint8)
        Image.fromarray(mask).save(tmp_path / "gt" / f"{record.id}.png")
    truth = folder_ground_truth(tmp_path / "gt")
    scores = [evaluate_store(MapStore.open(tmp_path / name), truth).to_json() for name in ("one", "out")]
    for score in scores:
        score.pop("maps")
    assert scores[0] == scores[1]
    assert convert(open_maps(tmp_path / "out", "npz"), tmp_path / "psa", "psa").written == 11


def test_shards_as_processes_at_once(
    tiny_bundle: Bundle, tiny_engine: Engine, data: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from infercam.engine.cli import main; main()", "run", tiny_bundle.path]
    command += ["--images", data / "images", "--labels", data / "labels.json", "-o", tmp_path / "out"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    shards = [
        subprocess.Popen(
            [*map(str, command), "--threads", "1", "--shard", f"{n}/3"],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in (1, 2, 3)
    ]
    for shard in shards:
        _, errors = shard.communicate(timeout=120)
        assert shard.returncode == 0, errors
    run(tiny_engine, data, tmp_path / "one")
    assert maps_of(tmp_path / "out") == maps_of(tmp_path / "one")
    assert run(tiny_engine, data, tmp_path / "out").kept == 11


# -- failures --------------------------------------------------------------------------------------------------


def test_failures_of_shards(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    good = (tmp_path / "data" / "images" / "p003.png").read_bytes()
    for name in ("p000", "p003"):
        (tmp_path / "data" / "images" / f"{name}.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    for n in (1, 2):
        assert run(tiny_engine, tmp_path / "data", out, f"{n}/2").failed == 1
    assert sorted(p.name for p in out.glob("failures*")) == ["failures-1-of-2.jsonl", "failures-2-of-2.jsonl"]
    assert read_failures(out).keys() == {"p000", "p003"} and "p003.png" in read_failures(out)["p003"]
    (tmp_path / "data" / "images" / "p003.png").write_bytes(good)
    run(tiny_engine, tmp_path / "data", out, "2/2")
    assert read_failures(out).keys() == {"p000"}, "the other share's list stays"
    run(tiny_engine, tmp_path / "data", out)
    assert [p.name for p in out.glob("failures*")] == [FAILURES], "of another division nothing stays"
    assert read_failures(out).keys() == {"p000"}


def test_the_list_of_failures_is_that_of_the_latest_run(tmp_path: Path) -> None:
    (tmp_path / "failures-of-mine.jsonl").write_text("kept\n")
    Failures(tmp_path).add("a", InputError("bad"))
    Failures(tmp_path, "1-of-2").add("b", ValueError("worse\nstill"))
    assert read_failures(tmp_path) == {"b": "ValueError: worse still"}
    with (tmp_path / "failures-1-of-2.jsonl").open("a") as f:
        f.write('{"id": "c", "rea')
    assert list(read_failures(tmp_path)) == ["b"]
    Failures(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["failures-of-mine.jsonl"]


def test_json_of_a_shard(tiny_engine: Engine, data: Path, tmp_path: Path) -> None:
    found = json.loads(run(tiny_engine, data, tmp_path, "20/20").to_json())
    assert found["images"] == found["done"] == 0, "more shards than images"
