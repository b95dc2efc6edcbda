"""A CPU backend that remembers the network's answers, so that recipes which share passes infer them once.

For studies of quality only: its seconds mean nothing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from infercam.engine.backends.cpu import CpuBackend, response_key
from infercam.engine.common.atomic import atomic_write
from infercam.engine.method.task import View


class CachedCpuBackend(CpuBackend):
    """Answers are kept by image id, tile, size, window, mirroring and the erased pixels; `save` writes them."""

    def __init__(self, *args: Any, cache: Path | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cache = cache
        self.answers: dict[str, Any] = {}
        self._unsaved = 0
        if cache is not None and cache.is_file():
            with np.load(cache, allow_pickle=False) as file:
                self.answers = {key: file[key] for key in file.files}

    def _respond(self, views: list[View]) -> None:
        for view in views:
            key = self._key(view)
            known = self.answers.get(key)
            if known is None:
                super()._respond([view])
                self.answers[key] = view.tile.state.responses[response_key(view)]
                self._unsaved += 1
            else:
                view.tile.state.responses[response_key(view)] = known

    def _key(self, view: View) -> str:
        erased = self._erased(view)
        digest = (
            ""
            if erased is None
            else hashlib.md5(np.packbits(erased).tobytes(), usedforsecurity=False).hexdigest()
        )
        box = "_".join(map(str, view.tile.box))
        classes = "_".join(map(str, view.tile.image.classes))
        size = f"{view.whole[0]}x{view.whole[1]}{'m' if view.mirrored else ''}"
        if view.windowed:
            size += f"@{view.at[0]},{view.at[1]}"
        return f"{view.tile.image.id}-{classes}-{box}-{size}-{digest}"

    def save(self) -> None:
        if self.cache is not None and self._unsaved:
            with atomic_write(self.cache) as f:
                np.savez(f, **self.answers)
            self._unsaved = 0
