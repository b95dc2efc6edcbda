"""Evaluation of many images: counts that are packed and spilled come back to the last bit, in bounded memory."""

from __future__ import annotations

import errno
import pickle
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infercam.engine.common.errors import StoreError
from infercam.engine.evaluation import kept_counts
from infercam.engine.evaluation.evaluate import (
    EvalResult,
    JointHistogram,
    add_intervals,
    compare,
    count_image,
    evaluate_store,
    folder_ground_truth,
    summarise,
)
from infercam.engine.evaluation.ground_truth import MaskFiles
from infercam.engine.evaluation.image_counts import ImageCounts
from infercam.engine.evaluation.kept_counts import KeptCounts
from infercam.engine.evaluation.label_png import write_label
from infercam.engine.store.mapstore import MapRecord, MapStore

COCO_CLASSES = 80
many = pytest.mark.parametrize(
    "images", [16_000, pytest.param(80_000, marks=pytest.mark.slow)], ids=["16k", "80k"]
)


def counts(seed: int, classes: int = COCO_CLASSES, size: tuple[int, int] = (24, 32)) -> ImageCounts:
    """One image of one to five of the classes, with noisy maps."""
    rng = np.random.default_rng(seed)
    present = [int(c) for c in rng.permutation(classes)[: rng.integers(1, 6)]]
    mask = rng.choice([0, 0, 255, *(c + 1 for c in present)], size).astype(np.uint8)
    maps = [np.clip((mask == c + 1) * 0.3 + 0.7 * rng.random(size), 0, 1) for c in present]
    return count_image(np.stack(maps).astype(np.float32), present, mask, classes, f"{seed:012d}")


def equal(one: ImageCounts, two: ImageCounts) -> bool:
    names = ("labels", "hits", "predicted", "true_labels", "true_counts")
    arrays = [(getattr(one, name), getattr(two, name)) for name in names]
    return (one.id, one.active) == (two.id, two.active) and all(
        np.array_equal(a, b) and a.dtype == b.dtype and a.shape == b.shape for a, b in arrays
    )


@st.composite
def any_counts(draw) -> ImageCounts:
    """Counts as large as they may be, so that every width of integer is needed; also of no label at all."""
    rows, true = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    top = draw(st.sampled_from([1, 100, 40_000, 3_000_000, 2**32 - 1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    return ImageCounts(
        id=draw(st.text(max_size=4)),
        labels=np.sort(rng.permutation(254)[:rows]).astype(np.int32),
        hits=rng.integers(0, top, (rows, 100), endpoint=True).astype(np.uint32),
        predicted=rng.integers(0, top, (rows, 100), endpoint=True).astype(np.uint32),
        true_labels=np.sort(rng.permutation(254)[:true]).astype(np.int32),
        true_counts=rng.integers(0, 2**40, true).astype(np.int64),
        active=int(rng.integers(0, 2**33)),
    )


@given(st.lists(any_counts(), max_size=11), st.integers(1, 4), st.booleans())
def test_what_is_kept_comes_back(images: list[ImageCounts], block: int, on_disk: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept_counts, "_BLOCK", block)
        patch.setattr(kept_counts, "_HELD", 1 if on_disk else 1 << 20)
        kept = KeptCounts(images)
        assert len(kept) == len(images) and kept.ids == [image.id for image in images]
        assert all(equal(a, b) for a, b in zip(kept, images, strict=True))
        assert all(equal(kept[-i - 1], images[-i - 1]) for i in range(len(images)))
        assert [image.id for image in kept[1:4]] == [image.id for image in images[1:4]]
        copy = pickle.loads(pickle.dumps(kept))
        assert all(equal(a, b) for a, b in zip(copy, images, strict=True))
        blocks = list(kept.blocks())
        rows = [(b.first + i, label) for b in blocks for i, label in zip(b.images, b.labels, strict=True)]
        assert sorted(rows) == [(i, label) for i, image in enumerate(images) for label in image.labels]
        assert all((np.diff(b.labels) >= 0).all() and (np.diff(b.true_labels) >= 0).all() for b in blocks)
        with pytest.raises(IndexError):
            kept[len(images)]
        if on_disk and len(images) >= block:
            assert kept._file._rolled  # type: ignore[attr-defined]


def histogram(images: list[ImageCounts], classes: int = COCO_CLASSES) -> JointHistogram:
    found = JointHistogram(classes)
    for image in images:
        found.add_counts(image)
    return found


def plain_bootstrap(images: list[ImageCounts], classes: int, resamples: int) -> np.ndarray:
    """Best mIoU of resamples whose images are summed one by one, from what was never packed."""
    random = np.random.default_rng(0)
    best = []
    for weights in random.multinomial(len(images), np.full(len(images), 1 / len(images)), size=resamples):
        true, hits, predicted = np.zeros(classes + 1), *np.zeros((2, classes + 1, 100))
        for weight, image in zip(weights.tolist(), images, strict=True):
            true[image.true_labels] += weight * image.true_counts
            hits[image.labels] += float(weight) * image.hits
            predicted[image.labels] += float(weight) * image.predicted
        iou = hits / np.maximum(true[:, None] + predicted - hits, 1)
        best.append(iou[true > 0].mean(axis=0).max())
    return np.array(best)


def test_the_bootstrap_over_blocks_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_counts, "_BLOCK", 7)
    images = [counts(seed, 12) for seed in range(40)]
    found = summarise(histogram(images, 12))
    done: list[int] = []
    add_intervals(found, 60, progress=done.append)
    assert sum(done) == 60
    plain = plain_bootstrap(images, 12, 60)
    assert found.intervals["all"].std == pytest.approx(plain.std(), rel=1e-12)
    assert found.intervals["all"].low == pytest.approx(np.percentile(plain, 2.5), rel=1e-12)


def test_comparing_does_not_depend_on_order_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [counts(seed, 12) for seed in range(30)]
    better = [replace(image, hits=image.hits + (image.predicted - image.hits) // 2) for image in images]
    one, two = summarise(histogram(images, 12)), summarise(histogram(better, 12))
    want = compare(one, two, 70)
    monkeypatch.setattr(kept_counts, "_BLOCK", 4)
    turned = summarise(histogram(better[::-1], 12))
    assert compare(summarise(histogram(images, 12)), turned, 70) == want
    assert want["all"].difference > 0 and want["all"].interval.std > 0


def test_a_full_disk_is_one_line() -> None:
    kept = KeptCounts()

    class Full:
        def seek(self, *_: int) -> int:
            return 0

        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    kept._file = Full()  # type: ignore[assignment]
    image = counts(0)
    with pytest.raises(StoreError, match="disk full; set TMPDIR"):
        kept.extend(replace(image, id=str(i)) for i in range(600))


def stream(n: int) -> Iterator[ImageCounts]:
    """Images of 640×480 in size: their counts are multiplied up from small ones."""
    few = [counts(seed) for seed in range(64)]
    scaled = [
        replace(
            image, hits=image.hits * 400, predicted=image.predicted * 400, true_counts=image.true_counts * 400
        )
        for image in few
    ]
    for i in range(n):
        yield replace(scaled[i % 64], id=f"COCO_train2014_{i:012d}")


def peak_of(work) -> tuple[float, EvalResult]:
    tracemalloc.start()
    try:
        result = work()
        return tracemalloc.get_traced_memory()[1] / 1e6, result
    finally:
        tracemalloc.stop()


def accumulate(n: int, keep: bool) -> EvalResult:
    total = JointHistogram(COCO_CLASSES, keep_images=keep)
    for image in stream(n):
        total.add_counts(image)
    return summarise(total)


@many
def test_many_images_without_a_bootstrap_leave_only_the_total(images: int) -> None:
    peak, result = peak_of(lambda: accumulate(images, keep=False))
    assert result.images == images and result.counts is None
    assert peak < 5


@many
def test_many_images_are_kept_in_bounded_memory(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts of 80,000 are over 200 MB as arrays; held are 32 MB of them, the ids and one block. A fifth of the
    images, and a fifth held."""
    monkeypatch.setattr(kept_counts, "_HELD", kept_counts._HELD * images // 80_000)
    plain = sum(i.hits.nbytes + i.predicted.nbytes for i in stream(64)) * images / 64 / 1e6
    assert plain > 200 * images / 80_000
    peak, result = peak_of(lambda: accumulate(images, keep=True))
    assert result.counts is not None and len(result.counts) == images
    assert peak < 30 + 40 * images / 80_000
    resampling, _ = peak_of(lambda: add_intervals(result, 20) or result)
    assert resampling < 60 and result.intervals["all"].std > 0
    direct = accumulate(64, keep=True)  # the same 64 images, again and again: the same figure
    assert result.all.miou == direct.all.miou


# -- stores --------------------------------------------------------------------------------------------------------
@pytest.fixture
def small(tmp_path: Path) -> tuple[MapStore, Path]:
    rng = np.random.default_rng(0)
    store = MapStore.create_or_open(tmp_path / "maps", classes=["a", "b"], settings={})
    for i in range(70):
        mask = rng.choice([0, 1, 2, 255], (6, 5)).astype(np.uint8)
        write_label(tmp_path / "masks" / f"d{i % 3}" / f"{i}.png", mask)
        maps = rng.random((1, 6, 5)).astype(np.float32)
        store.write(MapRecord(f"d{i % 3}/{i}", [i % 2], ["ab"[i % 2]], maps), "x")
    return store, tmp_path / "masks"


def test_images_are_kept_only_where_asked_for(small) -> None:
    store, masks = small
    truth = folder_ground_truth(masks)
    kept, total = evaluate_store(store, truth), evaluate_store(store, truth, keep_images=False)
    assert kept.to_json() == total.to_json() and total.counts is None and kept.counts is not None
    again = summarise(histogram(list(kept.counts), 2), class_names=["a", "b"])
    assert again.images == 70 and np.array_equal(again.all.curve, kept.all.curve)
    bootstrapped = evaluate_store(store, truth, keep_images=False, bootstrap=30, workers=2)
    assert bootstrapped.intervals == evaluate_store(store, truth, bootstrap=30).intervals


def test_lists_of_masks_hold_only_ids(tmp_path: Path) -> None:
    ids = [f"{i:012d}" for i in range(5)]
    files = MaskFiles(tmp_path, ids)
    assert list(files) == [(id, tmp_path / f"{id}.png") for id in ids] and files[-1][0] == ids[-1]
    assert list(files[1:3]) == list(files)[1:3] and len(files[::2]) == 3
