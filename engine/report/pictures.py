"""What the page shows of an image: photo, ground truth and maps, reduced and encoded; a chunk of images a file.

A chunk is a script that hands its content to the page, `infercamChunk(NUMBER, JSON);`: from file:// a page may
load scripts and pictures, but not fetch. It is written after the photos that it speaks of, atomically, so a chunk
that is there is complete and a build that was killed goes on after it.

Of one image: {"size": [H, W], "width", "height" (reduced), "photo": base64 WebP or null where it is a file,
"truth": PNG of labels or null, "runs": [{"classes": [...], "png"}, or {"error"}, or null where there is none],
"error": in place of all this where the photo cannot be read}. PNGs are base64, 8-bit grey: a run's maps one below
the other, in the order of its classes; labels are indices.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from infercam.engine.common.atomic import atomic_write
from infercam.engine.common.errors import InputError, StoreError
from infercam.engine.data.images import read_image
from infercam.engine.evaluation.label_png import read_label, read_mask
from infercam.engine.evaluation.mask_values import ValueTable
from infercam.engine.report.runs import Planes, ShownRun
from infercam.engine.store.failures import one_line
from infercam.engine.store.image_index import cannot_write

CALL = "infercamChunk"
_PHOTOS_A_FOLDER = 500
# Maps are smooth: as differences from the row above they take half the room, and less than with Pillow's choice.
_PNG = [
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
    *(cv2.IMWRITE_PNG_COMPRESSION, 6),
]


@dataclass(frozen=True)
class PagePicture:
    """One image of the report: its number (row of the page), files, and whether it is scored."""

    number: int
    id: str
    photo: Path
    mask: Path | None


@dataclass(frozen=True)
class Chunk:
    """Images whose pictures are in one file; inside the HTML (`embedded`) or beside it."""

    number: int
    pictures: Sequence[PagePicture]
    embedded: bool


@dataclass(frozen=True)
class Painted:
    """A chunk that is there: for each of its images the classes that its maps name, and what went wrong."""

    chunk: Chunk
    classes: list[list[int]]
    errors: list[str]


def photo_name(number: int) -> str:
    """Where an image's photo is, below the report's folder: by number, so that no id becomes a path."""
    return f"photos/{number // _PHOTOS_A_FOLDER:03d}/{number}.webp"


def chunk_name(number: int) -> str:
    return f"chunks/{number}.js"


@dataclass(frozen=True)
class Painter:
    """Writes chunks below `folder`; sent to the processes that do so.

    size: longest side of what the page shows, pixels; quality: of the photos, WebP's 1..100.
    """

    runs: Sequence[ShownRun]
    folder: Path
    size: int
    quality: int
    max_pixels: int
    values: ValueTable | None = None
    """What the values of the masks stand for, where they are no class indices."""

    def __call__(self, chunk: Chunk) -> Painted:
        """Write a chunk unless it is there. Raises StoreError where it cannot be written."""
        file = self.folder / chunk_name(chunk.number)
        if not file.exists():
            images = [self._image(picture, chunk.embedded) for picture in chunk.pictures]
            _write(file, f"{CALL}({chunk.number},{script_json(images)});\n".encode())
        else:
            images = read_chunk(file)
        errors = [line for image in images for line in _errors(image)]
        return Painted(chunk, [_classes(image) for image in images], errors)

    def _image(self, picture: PagePicture, embedded: bool) -> dict[str, Any]:
        try:
            photo = read_image(picture.photo, self.max_pixels)
        except (InputError, StoreError) as e:
            return {"error": str(e)}
        size = (photo.shape[0], photo.shape[1])
        height, width = reduced(size, self.size)
        webp = _encode(
            ".webp", _shrunk(photo, height, width)[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, self.quality]
        )
        if not embedded:
            _write(self.folder / photo_name(picture.number), webp)
        return {
            "size": size,
            "width": width,
            "height": height,
            "photo": _text(webp) if embedded else None,
            "truth": self._truth(picture, size, (height, width)),
            "runs": [self._run(run, picture.id, size, (height, width)) for run in self.runs],
        }

    def _truth(self, picture: PagePicture, size: tuple[int, int], to: tuple[int, int]) -> Any:
        if picture.mask is None:
            return None
        try:
            if self.values is None:
                mask = read_label(picture.mask, len(self.runs[0].classes), size)
            else:
                mask, _ = self.values.apply(read_mask(picture.mask), picture.id)
        except InputError as e:
            return {"error": one_line(e)}
        return {"png": _text(_encode(".png", _nearest(mask, *to), _PNG))}

    def _run(self, run: ShownRun, id: str, size: tuple[int, int], to: tuple[int, int]) -> Any:
        if id not in run:
            return None
        try:
            found = run.read(id, size)
        except (InputError, StoreError) as e:
            return {"error": one_line(e)}
        planes = reduced_planes(run.kind, found, to)
        png = _text(_encode(".png", planes.reshape(-1, to[1]), _PNG)) if len(planes) else None
        return {"classes": found.classes, "png": png}


def reduced(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) with the longest side at most `longest`, in proportion."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def reduced_planes(kind: str, found: Planes, to: tuple[int, int]) -> NDArray[np.uint8]:
    """(K, h, w): maps averaged over the area of the smaller pixels, labels by the nearest pixel."""
    shrink = _shrunk if kind == "maps" else _nearest
    if not len(found.levels):
        return np.zeros((0, *to), np.uint8)
    return np.stack([shrink(plane, *to) for plane in found.levels])


def script_json(content: Any) -> str:
    """JSON in ASCII that is safe inside a script element, whatever its texts hold."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def read_chunk(file: Path) -> list[dict[str, Any]]:
    """The images of a chunk's file."""
    text = file.read_text(encoding="ascii")
    return list(json.loads(chunk_json(text)))


def chunk_json(text: str) -> str:
    """The JSON inside a chunk's script."""
    return text[text.index(",") + 1 : text.rindex(")")]


def _classes(image: dict[str, Any]) -> list[int]:
    runs = [run for run in image.get("runs", []) if run and "classes" in run]
    return sorted({c for run in runs for c in run["classes"]})


def _errors(image: dict[str, Any]) -> list[str]:
    if "error" in image:
        return [image["error"]]
    parts = [image["truth"], *image["runs"]]
    return [part["error"] for part in parts if part and "error" in part]


def _shrunk(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _nearest(label: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def _encode(suffix: str, pixels: NDArray[np.uint8], options: list[int]) -> bytes:
    done, data = cv2.imencode(suffix, np.ascontiguousarray(pixels), options)
    if not done:
        raise StoreError(f"OpenCV cannot encode a {suffix} of {pixels.shape}")
    return data.tobytes()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _write(file: Path, data: bytes) -> None:
    try:
        with atomic_write(file) as f:
            f.write(data)
    except OSError as e:
        raise cannot_write(file, e) from None
