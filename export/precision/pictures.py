"""Pictures to calibrate and compare on, as the network will see them: at the engine's scales, normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from infercam.engine.bundle import Manifest
from infercam.engine.common.errors import ExportError, InputError
from infercam.engine.data.images import read_image
from infercam.engine.data.sources import folder_source
from infercam.engine.method.geometry import ViewSizes
from infercam.engine.method.reference import normalise, resize_pixels
from infercam.export.compare import Agreement, Comparison, predicted
from infercam.export.runtime import GraphSession, RunError
from infercam.export.writing.verify import texture

SCALES = (1.0, 0.5, 1.5, 2.0)
"""Of the views, in turn over the pictures."""
LONGEST_SIDE = 512
_TEXTURES = 8


@dataclass(frozen=True)
class SamplePicture:
    """One view: uint8 H×W×3 RGB at network size, and the size of the image that its map belongs to."""

    pixels: np.ndarray
    size: tuple[int, int]

    def array(self, manifest: Manifest) -> np.ndarray:
        """The network's input, float32 1×3×h×w."""
        return normalise(self.pixels, manifest.input)[None]


def pictures(images: Sequence[np.ndarray], manifest: Manifest) -> list[SamplePicture]:
    """One view of each (H, W, 3) uint8 RGB image; the scales take turns."""
    out = []
    for i, image in enumerate(images):
        height, width = image.shape[:2]
        shape = ViewSizes.of_network(manifest.input).of(height, width, SCALES[i % len(SCALES)])
        out.append(SamplePicture(resize_pixels(image, *shape), (height, width)))
    return out


def textures() -> list[np.ndarray]:
    """Generated images, where the user gives none."""
    return [texture(160 + 16 * i, 224 - 8 * i, seed) for i, seed in enumerate(range(_TEXTURES))]


def shrunk(image: np.ndarray, longest: int) -> np.ndarray:
    """The image with no side beyond `longest` pixels."""
    ratio = longest / max(image.shape[:2])
    if ratio >= 1:
        return image
    width, height = (max(1, round(s * ratio)) for s in (image.shape[1], image.shape[0]))
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


class Reference:
    """The fp32 graph's responses to some pictures, and how near another graph comes to them."""

    def __init__(self, session: GraphSession, pictures: Sequence[SamplePicture], manifest: Manifest) -> None:
        self.pictures = list(pictures)
        self.manifest = manifest
        self._responses = []
        for picture in self.pictures:
            scores, response = _run(session, picture.array(manifest))
            self._responses.append((response[0], predicted(scores[0], manifest.multi_label)))

    def agreement(self, session: GraphSession, limit: int | None = None) -> Agreement:
        """Of `session` (a graph with the same inputs and outputs) on the first `limit` pictures."""
        comparison = Comparison()
        known = list(zip(self.pictures, self._responses, strict=True))[:limit]
        for i, (picture, (response, classes)) in enumerate(known):
            _, other = _run(session, picture.array(self.manifest))
            if other[0].shape != response.shape:
                raise ExportError(f"the converted graph's response is {other[0].shape}, not {response.shape}")
            comparison.add(f"picture {i + 1}", [(response, other[0])], classes, picture.size)
        return comparison.result()


def _run(session: GraphSession, x: np.ndarray) -> list[np.ndarray]:
    """Scores and response."""
    try:
        return session.run(x)[:2]
    except RunError as e:
        raise ExportError(f"the graph does not run on {'x'.join(map(str, x.shape))}: {e}") from None


def read_pictures(
    folder: Path | None, count: int, passed_over: Callable[[str], None] = lambda reason: None
) -> list[np.ndarray]:
    """Pictures spread over the folder, none without one; those that cannot be read are told to `passed_over`.

    Raises ExportError where not one of them can be read.
    """
    if folder is None:
        return []
    source = folder_source(folder)
    found = []
    for item in source[:: max(1, len(source) // count)][:count]:
        try:
            found.append(read_image(item.path))
        except InputError as e:
            passed_over(str(e))
    if not found:
        raise ExportError(f"{folder}: none of its images can be read")
    return found
