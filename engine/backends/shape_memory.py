"""Which (views, height, width) batches had, from run to run: what a runtime must prepare for is then prepared before
it is
needed. A file in the user's cache folder for each bundle, graph, runner, device and recipe:

    ~/.cache/infercam/shapes/<key>.json    {"schema_version": 1, "shapes": [[views, height, width, batches], ...]}

Most batches first. Nothing but time hangs on it: a file that is missing or damaged, or a folder that cannot be
written, means that shapes are prepared when they are met.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infercam.engine.common.atomic import write_text
from infercam.engine.common.cache import cache_file
from infercam.engine.common.errors import StoreError
from infercam.engine.common.paths import regular_bytes
from infercam.engine.runners.plan import Shape

MOST = 512
"""Shapes kept: a ladder makes some 150."""
FILE_BYTES = 1 << 20
Number = Annotated[int, Field(gt=0, lt=1 << 31)]


class _Remembered(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    shapes: list[tuple[Number, Number, Number, Number]] = Field(max_length=MOST)


class ShapeMemory:
    """The shapes that runs of one kind met. key: whatever decides them, as JSON."""

    def __init__(self, key: Mapping[str, Any]) -> None:
        self.file = cache_file("shapes", json.dumps(key, sort_keys=True).encode(), ".json")
        self._before: Counter[Shape] | None = None
        """As it was before this run."""

    def read(self) -> Counter[Shape]:
        """How many batches each had in earlier runs; empty where nothing is known."""
        if self._before is None:
            self._before = Counter()
            with suppress(OSError, ValidationError):
                found = _Remembered.model_validate_json(regular_bytes(self.file, FILE_BYTES))
                self._before = Counter(
                    {(n, height, width): count for n, height, width, count in found.shapes}
                )
        return self._before

    def note(self, met: Mapping[Shape, int]) -> None:
        """Write what this run has met so far. What older runs met counts half, and is forgotten in the end."""
        known = Counter({shape: count // 2 for shape, count in self.read().items() if count > 1})
        known.update(met)
        rows = [(*shape, min(count, (1 << 31) - 1)) for shape, count in known.most_common(MOST)]
        if rows:
            with suppress(StoreError):
                write_text(self.file, _Remembered(shapes=rows).model_dump_json() + "\n")
