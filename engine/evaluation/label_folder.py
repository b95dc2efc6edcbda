"""A folder of pseudo labels: `<id>.png` for each image, and what made them.

    FOLDER/
      label_folder.json  schema_version, classes, settings (of the latest run), created, tools
      index.jsonl        one line per finished image: {"id", "fingerprint", "bytes"}
      <id>.png           palette PNG of class indices, 0 background, c + 1 class c, 255 ignored

As in a map store, a line of the index vouches for its file and names the settings that made it; a file without
one is made again. Folders of other tools have the PNGs only: they are read, not written.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy import uint8
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infercam.engine.common.atomic import TEMP_PREFIX, atomic_write
from infercam.engine.common.errors import StoreError, shown
from infercam.engine.common.paths import check_id, existing, regular_bytes
from infercam.engine.evaluation.label_png import PNG, write_label
from infercam.engine.store.image_index import ImageIndex, cannot_write
from infercam.engine.store.mapstore import INDEX, sweep_stale
from infercam.engine.store.mapstore import INFO as MAP_INFO

SCHEMA_VERSION = 1
INFO = "label_folder.json"
SUFFIX = PNG[0]


class LabelInfo(BaseModel):
    """`label_folder.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    classes: list[str] = Field(min_length=1, max_length=254, description="names; index c is value c + 1")
    settings: dict[str, Any] = Field(default_factory=dict)
    created: str = Field(default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds"))
    tools: dict[str, str] = Field(default_factory=dict)


class LabelFolder:
    """An open folder of labels; may be sent to other processes, which may write to it at once."""

    def __init__(self, path: Path, info: LabelInfo | None) -> None:
        self.path = path
        self.info = info
        """None in a folder of another tool."""
        self._index = ImageIndex(path / INDEX)

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelFolder, (self.path, self.info)  # a lock has no copy

    @classmethod
    def create_or_open(
        cls, path: str | os.PathLike[str], classes: list[str], settings: dict[str, Any]
    ) -> LabelFolder:
        """Open `path` for writing, making it where it does not exist; `settings` are recorded.

        Raises StoreError where it is a map store, holds labels of other classes, or cannot be written.
        """
        root = Path(path)
        tools = {"infercam": version("infercam"), "python": platform.python_version()}
        info = LabelInfo(classes=classes, settings=settings, tools=tools)
        if (root / MAP_INFO).exists():
            raise StoreError(f"{shown(root)}: is a map store; write the labels to another folder")
        if (root / INFO).exists():
            there = _read_info(root / INFO)
            if there.classes != classes:
                raise StoreError(f"{shown(root)}: holds labels of other classes; write to another folder")
            info = info.model_copy(update={"created": there.created})
        try:
            root.mkdir(parents=True, exist_ok=True)
            with atomic_write(root / INFO, "w") as f:
                f.write(info.model_dump_json(indent=1) + "\n")
            sweep_stale(root)
        except OSError as e:
            raise cannot_write(root, e) from None
        return cls(root, info)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> LabelFolder:
        """Open for reading, also a folder that another tool filled; raises StoreError where there is none."""
        root = Path(path)
        if not root.is_dir():
            raise StoreError(f"{shown(root)}: no such folder of labels")
        return cls(root, _read_info(root / INFO) if (root / INFO).exists() else None)

    def file(self, id: str) -> Path:
        """The PNG of an image; raises InputError for an id that would leave the folder."""
        return self.path / f"{check_id(id)}{SUFFIX}"

    def done(self, id: str, fingerprint: str) -> bool:
        """Whether the image's file is there, complete, and was made with that fingerprint."""
        entry = self._index.get(id)
        if entry is None or entry[0] != fingerprint:
            return False
        try:
            return self.file(id).stat().st_size == entry[1]
        except OSError:
            return False

    def write(self, id: str, label: NDArray[uint8], fingerprint: str) -> None:
        """Store one image's (H, W) uint8 label; `fingerprint` names what decides it. Raises StoreError."""
        file = self.file(id)
        write_label(file, label)
        self._index.append(id, fingerprint, file.stat().st_size)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and existing(self.file(id), *PNG[1:]).is_file()

    def ids(self) -> list[str]:
        """The images that have a PNG, sorted."""
        found = {f.relative_to(self.path) for suffix in PNG for f in self.path.rglob(f"*{suffix}")}
        return sorted({f.with_suffix("").as_posix() for f in found if not f.name.startswith(TEMP_PREFIX)})


def _read_info(file: Path) -> LabelInfo:
    try:
        raw = json.loads(regular_bytes(file))
        if isinstance(raw, dict) and raw.get("schema_version", 0) > SCHEMA_VERSION:
            raise StoreError(f"{shown(file)}: is newer than this infercam reads; upgrade infercam")
        return LabelInfo.model_validate(raw)
    except (OSError, ValueError, TypeError, ValidationError, RecursionError):
        raise StoreError(
            f"{shown(file)}: damaged; remove the folder, or that file to read it as another tool's"
        ) from None
