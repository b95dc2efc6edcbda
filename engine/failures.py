"""`failures.jsonl`: the images of a run that could not be done, and why; the rest of the run went on."""

from __future__ import annotations

import json
from pathlib import Path

from .errors import InputError, StoreError, shown

FAILURES = "failures.jsonl"


class Failures:
    """`failures.jsonl` beside the maps: one line per failed image of the latest run; absent if none failed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            file.unlink(missing_ok=True)
        except OSError as e:
            raise StoreError(f"{file}: cannot be removed: {e.strerror}") from None

    def add(self, name: str, error: Exception) -> None:
        line = json.dumps({"id": shown(name), "reason": one_line(error)}, ensure_ascii=False)
        try:
            with self.file.open("a", encoding="utf-8") as f:
                f.write(line + "\n")
        except OSError as e:
            raise StoreError(f"{self.file}: cannot be written: {e.strerror}") from None


def one_line(error: BaseException) -> str:
    """An error as one line; an unexpected kind is named."""
    text = shown(" ".join(str(error).split())) or type(error).__name__
    return text if isinstance(error, InputError | StoreError) else f"{type(error).__name__}: {text}"
