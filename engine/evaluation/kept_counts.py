"""The counts of every image, for resampling, in memory that does not grow with the images.

They are packed into blocks (per class and threshold the difference to the threshold before, in the smallest integers
that hold them: 1 to 2 KB an image), of which 32 MiB are held; beyond that they are on disk, in a temporary file
without a name. Beside them an id and 8 bytes an image are held.
"""

from __future__ import annotations

import errno
import hashlib
import io
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from infercam.engine.common.errors import StoreError
from infercam.engine.evaluation.image_counts import ImageCounts

_BLOCK = 512  # images: fewer make the bootstrap slower, more no faster
_HELD = 32 << 20  # bytes in memory before they go to disk


@dataclass(frozen=True, eq=False)
class CountsBlock:
    """Some images' counts, by label: rows of one label are together, in the order of the images.

    first: number of the block's first image; `images` and `true_images` count from there.
    images, labels: (R,) of which image and label a row is.
    curves: (R, 2, 100) float64, whole numbers: hits and predicted as in `ImageCounts`.
    true_images, true_labels, true_counts: (T,) the same of the ground truth.
    active: (N,) as in `ImageCounts`, one an image.
    """

    first: int
    images: np.ndarray
    labels: np.ndarray
    curves: np.ndarray
    true_images: np.ndarray
    true_labels: np.ndarray
    true_counts: np.ndarray
    active: np.ndarray


class KeptCounts(Sequence[ImageCounts]):
    """A growing sequence of images' counts; iterate over it, or over its `blocks`."""

    def __init__(self, images: Iterable[ImageCounts] = ()) -> None:
        self.ids: list[str] = []
        self._truths = array("Q")
        self._recent: list[ImageCounts] = []
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_HELD)  # noqa: SIM115 - lives as long as this does
        self._offsets: list[int] = []
        self._last: tuple[int, CountsBlock] | None = None
        self.extend(images)

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptCounts, (list(self),)  # between processes go a few images at a time

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        if number // _BLOCK >= len(self._offsets):
            return self._recent[number - len(self._offsets) * _BLOCK]
        if self._last is None or self._last[0] != number // _BLOCK:
            self._last = number // _BLOCK, self._read(number // _BLOCK)
        return self._image(self._last[1], number % _BLOCK)

    def append(self, image: ImageCounts) -> None:
        """Keep one more; raises StoreError where the disk of temporary files is full."""
        self.ids.append(image.id)
        self._truths.append(_digest(image))
        self._recent.append(image)
        if len(self._recent) == _BLOCK:
            self._write(self._recent)
            self._recent = []

    def extend(self, images: Iterable[ImageCounts]) -> None:
        for image in images:
            self.append(image)

    def truth(self, number: int) -> int:
        """A fingerprint of an image's ground truth: equal labels with equal pixels have equal ones."""
        return self._truths[number]

    def blocks(self) -> Iterator[CountsBlock]:
        """All images in order; one block is in memory at a time."""
        for number in range(len(self._offsets)):
            yield self._read(number)
        if self._recent:
            yield _packed(len(self._offsets) * _BLOCK, self._recent)

    def _write(self, images: list[ImageCounts]) -> None:
        arrays = {name: value for name, value in vars(_packed(0, images)).items() if name != "first"}
        curves = arrays.pop("curves")
        arrays |= {"starts": curves[:, :, 0], "steps": np.diff(curves, axis=2)}
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, **{name: _smallest(value) for name, value in arrays.items()})
        try:
            self._offsets.append(self._file.seek(0, io.SEEK_END))
            self._file.write(data.getbuffer())
        except OSError as e:
            full = "disk full" if e.errno == errno.ENOSPC else e.strerror or e
            raise StoreError(
                f"{tempfile.gettempdir()}: {full}; set TMPDIR to a larger disk, or leave out the bootstrap"
            ) from None

    def _read(self, number: int) -> CountsBlock:
        end = self._offsets[number + 1] if number + 1 < len(self._offsets) else None
        self._file.seek(self._offsets[number])
        data = self._file.read(-1 if end is None else end - self._offsets[number])
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            arrays = {name: archive[name].astype(np.int64) for name in archive.files}
        starts, steps = arrays.pop("starts"), arrays.pop("steps")
        curves = np.concatenate([starts[:, :, None], steps], axis=2).cumsum(axis=2, dtype=np.float64)
        return CountsBlock(number * _BLOCK, curves=curves, **arrays)

    def _image(self, block: CountsBlock, at: int) -> ImageCounts:
        rows, true = block.images == at, block.true_images == at
        return ImageCounts(
            id=self.ids[block.first + at],
            labels=block.labels[rows].astype(np.int32),
            hits=block.curves[rows, 0].astype(np.uint32),
            predicted=block.curves[rows, 1].astype(np.uint32),
            true_labels=block.true_labels[true].astype(np.int32),
            true_counts=block.true_counts[true],
            active=int(block.active[at]),
        )


def _packed(first: int, images: list[ImageCounts]) -> CountsBlock:
    labels, of_image, order = _by_label([image.labels for image in images])
    true_labels, true_images, true_order = _by_label([image.true_labels for image in images])
    curves = [np.stack([image.hits, image.predicted], axis=1) for image in images]
    return CountsBlock(
        first=first,
        images=of_image,
        labels=labels,
        curves=np.concatenate(curves)[order].astype(np.float64),
        true_images=true_images,
        true_labels=true_labels,
        true_counts=np.concatenate([image.true_counts for image in images])[true_order],
        active=np.array([image.active for image in images]),
    )


def _by_label(labels: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The labels of all images in one row, sorted; of which image each is; and the order that sorts them."""
    of_image = np.repeat(np.arange(len(labels)), [len(own) for own in labels])
    joined = np.concatenate(labels)
    order = np.argsort(joined, kind="stable")
    return joined[order], of_image[order], order


def _smallest(values: np.ndarray) -> np.ndarray:
    """The same whole numbers in the smallest integers that hold them all."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    kinds = (np.int8, np.int16, np.int32, np.int64)
    return values.astype(next(k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max))


def _digest(image: ImageCounts) -> int:
    truth = image.true_labels.astype("<i4").tobytes() + image.true_counts.astype("<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(truth, digest_size=8).digest(), "little")
