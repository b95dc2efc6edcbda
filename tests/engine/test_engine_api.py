"""The Python API: what it accepts, what it refuses in one line, streams, and what it never imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infercam.engine import Engine
from infercam.engine.bundle import Bundle
from infercam.engine.common.errors import BackendError, BundleError, InputError, MissingExtra
from infercam.engine.method.recipe import Recipe, Views
from tests.engine import tiny

PICTURE = tiny.picture(20, 26)


def refusal(kind: type[Exception], call, *args: object, **named: object) -> str:
    with pytest.raises(kind) as caught:
        call(*args, **named)
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def test_maps_of_a_picture(tiny_engine: Engine, tmp_path: Path) -> None:
    maps = tiny_engine.maps(PICTURE, ["horse", "cat"])
    assert maps.shape == (2, 20, 26) and maps.dtype == np.float32
    assert 0 <= float(maps.min()) <= float(maps.max()) <= 1
    np.testing.assert_array_equal(maps, tiny_engine.maps(PICTURE, [2, 0], "released", "both"))
    np.testing.assert_allclose(maps[::-1], tiny_engine.maps(PICTURE, ["cat", "horse"]), atol=1e-6)
    Image.fromarray(PICTURE).save(tmp_path / "p.png")
    for path in (tmp_path / "p.png", str(tmp_path / "p.png")):
        np.testing.assert_array_equal(maps, tiny_engine.maps(path, [2, 0]))


def test_classes_may_be_names_or_any_integers_and_repeats_are_dropped(tiny_engine: Engine) -> None:
    assert tiny_engine.class_indices(["cow", 3, 0, "cat"]) == [3, 0]
    assert tiny_engine.class_indices(np.flatnonzero([0, 1, 0, 0, 1])) == [1, 4]
    assert tiny_engine.class_indices(()) == []


@pytest.mark.parametrize("bad", ["unicorn", "", 5, -1, 2.0, None, True, np.int64(7)])
def test_an_unknown_class_is_named(tiny_engine: Engine, bad: object) -> None:
    text = refusal(InputError, tiny_engine.maps, PICTURE, [bad])
    assert repr(bad) in text and "5 classes" in text and "cat, dog" in text


def test_no_classes_give_no_maps(tiny_engine: Engine) -> None:
    assert tiny_engine.maps(PICTURE, []).shape == (0, 20, 26)


@pytest.mark.parametrize(
    "bad",
    [
        PICTURE.astype(np.float32) / 255,
        PICTURE.astype(np.uint16),
        PICTURE[..., 0],
        PICTURE[..., :2],
        PICTURE.transpose(2, 0, 1),
        PICTURE[None],
        PICTURE[:0],
        PICTURE.tolist(),
        Image.fromarray(PICTURE),
        None,
    ],
)
def test_a_bad_picture_is_refused(tiny_engine: Engine, bad: object) -> None:
    for call, args in ((tiny_engine.maps, ([0],)), (tiny_engine.scores, ()), (tiny_engine.predict, ())):
        assert "H×W×3 uint8 RGB" in refusal(InputError, call, bad, *args)


def test_a_missing_or_broken_file_is_refused(tiny_engine: Engine, tmp_path: Path) -> None:
    assert "none.jpg" in refusal(InputError, tiny_engine.maps, tmp_path / "none.jpg", [0])
    (tmp_path / "text.jpg").write_text("not a picture")
    assert "text.jpg" in refusal(InputError, tiny_engine.maps, tmp_path / "text.jpg", [0])


def test_views_of_arrays_are_as_good_as_arrays(tiny_engine: Engine) -> None:
    """Mirrored, strided, read-only, Fortran order: and the picture is never written to."""
    flipped = PICTURE[:, ::-1]
    want = tiny_engine.maps(np.ascontiguousarray(flipped), [1])
    for view in (flipped, np.asfortranarray(flipped)):
        np.testing.assert_array_equal(tiny_engine.maps(view, [1]), want)
    frozen = PICTURE.copy()
    frozen.setflags(write=False)
    tiny_engine.maps(frozen, [0, 1])
    np.testing.assert_array_equal(frozen, PICTURE)


def test_unknown_recipe_mode_and_backend(tiny_engine: Engine, tiny_bundle: Bundle) -> None:
    assert "released" in refusal(InputError, tiny_engine.maps, PICTURE, [0], "bestest")
    assert "baseline, split, erase, both" in refusal(
        InputError, tiny_engine.maps, PICTURE, [0], "paper", "all"
    )
    assert "cpu" in refusal(BackendError, Engine.load, tiny_bundle, "quantum")
    assert refusal(BundleError, Engine.load, "/no/such/bundle")


def test_a_refusal_leaves_the_engine_usable(tiny_engine: Engine) -> None:
    want = tiny_engine.maps(PICTURE, [0])
    for args in ((PICTURE, ["unicorn"]), (PICTURE, [0], "none-such"), (None, [0])):
        refusal(InputError, tiny_engine.maps, *args)
    np.testing.assert_array_equal(tiny_engine.maps(PICTURE, [0]), want)


def test_missing_onnxruntime_names_the_extra(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = refusal(MissingExtra, Engine.load, tiny_bundle)
    assert "infercam[cpu]" in text and "onnxruntime" in text


# -- prediction ------------------------------------------------------------------------------------------------


def test_predicted_classes_pass_the_threshold(tiny_engine: Engine) -> None:
    scores = tiny_engine.scores(PICTURE).astype(np.float64)
    assert scores.shape == (5,)
    probability = 1 / (1 + np.exp(-scores))
    for threshold in (0.0, 0.3, 0.5, 0.9):
        found = tiny_engine.predict(PICTURE, threshold)
        assert found == [i for i, p in enumerate(probability) if p > threshold]
    assert tiny_engine.predict(PICTURE, 0.0) == [0, 1, 2, 3, 4] and tiny_engine.predict(PICTURE, 1.0) == []


def test_a_single_label_classifier_predicts_by_softmax(tmp_path: Path) -> None:
    with Engine.load(tiny.build(tmp_path / "b", multi_label=False), threads=1) as engine:
        scores = engine.scores(PICTURE)
        assert engine.predict(PICTURE, 0.0) == [0, 1, 2, 3, 4]
        assert len(engine.predict(PICTURE, 0.5)) <= 1
        best = float(np.exp(scores.max()) / np.exp(scores.astype(np.float64)).sum())
        assert engine.predict(PICTURE, best - 1e-6) == [int(scores.argmax())]
        assert engine.predict(PICTURE, best + 1e-6) == []


# -- streams ---------------------------------------------------------------------------------------------------


def test_a_stream_gives_each_item_once_good_or_bad(tiny_engine: Engine, tmp_path: Path) -> None:
    items = [
        ("good", PICTURE, ["cat"]),
        ("class", PICTURE, ["unicorn"]),
        ("file", tmp_path / "none.jpg", [0]),
        ("empty", PICTURE, []),
        ("also", tiny.picture(9, 5), [1, 2, 3]),
    ]
    found = {r.id: r for r in tiny_engine.stream(items, "corrected")}
    assert found.keys() == {"good", "class", "file", "empty", "also"}
    assert isinstance(found["class"].error, InputError) and isinstance(found["file"].error, InputError)
    assert found["file"].maps.size == 0
    assert found["empty"].maps.shape == (0, 20, 26) and found["empty"].error is None
    good = found["good"]
    assert good.classes == [0] and good.pixels is PICTURE and 1 <= len(good.iterations) <= 4
    np.testing.assert_allclose(good.maps, tiny_engine.maps(PICTURE, ["cat"], "corrected"), atol=1e-6)
    assert found["also"].classes == [1, 2, 3] and len(found["also"].iterations) == 1


def test_an_empty_stream(tiny_engine: Engine) -> None:
    assert list(tiny_engine.stream([])) == []


def endless():
    n = 0
    while True:
        yield f"p{n}", tiny.picture(16 + n % 3, 20, n), [n % 5]
        n += 1


def test_an_abandoned_stream_leaves_the_engine_usable(tiny_engine: Engine) -> None:
    want = tiny_engine.maps(PICTURE, [0, 1])
    for leave in (1, 2, 7):
        stream = tiny_engine.stream(endless())
        for _ in range(leave):
            assert next(stream).error is None
        stream.close()
        assert tiny_engine.backend.collect() == [], "nothing is left in flight"
        np.testing.assert_allclose(tiny_engine.maps(PICTURE, [0, 1]), want, atol=1e-6)


def test_items_that_raise_end_the_stream_and_not_the_engine(tiny_engine: Engine) -> None:
    def items():
        yield "a", PICTURE, [0]
        raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        list(tiny_engine.stream(items()))
    assert tiny_engine.maps(PICTURE, [0]).any()


def test_two_streams_at_once_are_refused_not_mixed(tiny_engine: Engine) -> None:
    """They would be given each other's results, and wait for ever for their own."""
    first = tiny_engine.stream(endless())
    next(first)
    assert "another stream" in refusal(InputError, tiny_engine.maps, PICTURE, [0])
    assert next(first).error is None, "the first goes on"
    first.close()
    assert tiny_engine.maps(PICTURE, [0]).any()


def test_the_caller_is_told_of_every_turn(tiny_engine: Engine) -> None:
    flying = []
    items = [(f"p{n}", tiny.picture(60, 80), [n]) for n in range(4)]
    list(tiny_engine.stream(items, on_turn=lambda s: flying.append(s.tiles_in_flight)))
    assert max(flying) > 1 and flying[-1] == 0
    stats = tiny_engine.scheduler.stats  # type: ignore[union-attr]
    assert stats.images == 4 and stats.tiles == 16


def test_the_recipe_may_be_an_object(tiny_engine: Engine) -> None:
    cheap = Recipe(name="mine", views=Views(scales=(1.0,), mirror=False), iterations=1)
    tiny_engine.maps(tiny.picture(60, 80), [0], cheap)
    assert tiny_engine.scheduler.stats.views == 5  # type: ignore[union-attr]


# -- imports ---------------------------------------------------------------------------------------------------

LEAN = """
import importlib, pkgutil, sys
import infercam.engine
names = [m.name for m in pkgutil.walk_packages(infercam.engine.__path__, 'infercam.engine.')]
names = [n for n in names if '.demo' not in n]
for name in names:
    importlib.import_module(name)
assert len(names) > 20, names
import numpy as np
with infercam.engine.Engine.load(sys.argv[1], threads=1) as engine:
    assert engine.maps(np.zeros((9, 9, 3), np.uint8) + 50, ['cat', 1], 'paper').shape == (2, 9, 9)
heavy = {m.partition('.')[0] for m in sys.modules}
print(sorted(heavy & {'torch', 'onnx', 'torchvision', 'matplotlib', 'ray', 'scipy'}))
"""


def test_the_engine_never_imports_torch_or_onnx(tiny_bundle: Bundle) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAN, str(tiny_bundle.path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
