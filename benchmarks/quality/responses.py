"""The answers of a network to views of an image, kept on disk: rules that combine them are then studied offline."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infercam.engine.bundle import Bundle
from infercam.engine.common.atomic import atomic_write
from infercam.engine.method.geometry import ViewSizes
from infercam.engine.method.host_ops import Resized, masks_at, normalise_table, sum_views
from infercam.engine.method.recipe import Views
from infercam.engine.runners.host_session import HostSession

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Responses:
    """Of a bundle on the CPU, views on the ladder; answers in `folder/<id>.npz`, half precision."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self._spec = bundle.manifest.input
        self._output = bundle.manifest.response
        self._session = HostSession(bundle.graph("fp32"), "cpu", threads=1)
        self._table = normalise_table(self._spec)
        self._sizes = ViewSizes.of_network(self._spec)
        self._folder = folder

    def of(self, id: str, pixels: NDArray[np.uint8], classes: list[int]) -> ImageResponses:
        file = self._folder / f"{id}.npz"
        known: dict[str, Any] = {}
        if file.is_file():
            with np.load(file, allow_pickle=False) as found:
                known = {key: found[key] for key in found.files}
        return ImageResponses(self, file, pixels, classes, known)

    def infer(self, pixels: NDArray[np.uint8], scale: float, mirrored: bool, erased: Mask | None) -> Float:
        """C×h×w of one view, before ReLU; erased: at the picture's size."""
        height, width = pixels.shape[:2]
        shape = self._sizes.of(height, width, scale, ladder=True)
        view = Resized(pixels, shape, self._table, self._spec.colour)
        x = np.empty((1, 3, *shape), np.float32)
        small = None if erased is None else masks_at(erased, [shape], False)[0]
        view.write(x[0], mirrored, small[:, ::-1] if mirrored and small is not None else small)
        found: Float = self._session.run(x, [self._output])[0][0]
        return found


@dataclass
class ImageResponses:
    """One image's; call `save` once what is needed was asked for."""

    source: Responses
    file: Path
    pixels: NDArray[np.uint8]
    classes: list[int]
    known: dict[str, Any]
    new: bool = False

    def total(self, views: Views, erased: Mask | None = None) -> Float:
        """The sum over views at image size, K×H×W (method/README.md §1)."""
        pairs = [
            (self._one(s, False, erased), self._one(s, True, erased) if views.mirror else None)
            for s in views.scales
        ]
        return sum_views(pairs, len(self.classes), *self.pixels.shape[:2])

    def _one(self, scale: float, mirrored: bool, erased: Mask | None) -> Float:
        what = b"" if erased is None else np.packbits(erased).tobytes()
        digest = hashlib.md5(what, usedforsecurity=False).hexdigest()[:16] if what else "whole"
        key = f"{scale}{'m' if mirrored else ''}-{digest}-{'_'.join(map(str, self.classes))}"
        if key not in self.known:
            found = self.source.infer(self.pixels, scale, mirrored, erased)[self.classes]
            self.known[key] = found.astype(np.float16)
            self.new = True
        response: Float = self.known[key].astype(np.float32)
        return response

    def save(self) -> None:
        if self.new:
            with atomic_write(self.file) as f:
                np.savez(f, **self.known)
            self.new = False
