"""From class names to the unit vectors that pictures are compared with: names into prompts, prompts averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from infercam.engine.common.errors import ExportError, MissingExtra

PROMPTS = ("a photo of a {}.",)
Encoder = Callable[[list[str]], np.ndarray]
"""Texts -> their embeddings, float32 (n, E)."""


def read_lines(file: Path, what: str) -> list[str]:
    """The lines of a text file that are not empty; raises ExportError."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise ExportError(f"{file}: the {what} cannot be read: {e}") from None
    found = [line for line in lines if line]
    if not found:
        raise ExportError(f"{file}: has no {what}; one a line")
    return found


def read_prompts(file: Path | None) -> Sequence[str]:
    """Templates with `{}` for the name, one a line; raises ExportError."""
    if file is None:
        return PROMPTS
    prompts = read_lines(file, "prompts")
    wrong = next((p for p in prompts if p.count("{}") != 1), None)
    if wrong is not None:
        raise ExportError(f"{file}: a prompt has one {{}} for the name, not '{wrong}'")
    return prompts


def text_vectors(names: Sequence[str], prompts: Sequence[str], encode: Encoder) -> np.ndarray:
    """A unit vector a name (n, E): each prompt's made a unit vector, the mean over prompts, made one again."""
    rows = []
    for name in names:
        found = unit_rows(encode([p.replace("{}", name) for p in prompts]), f"'{name}'")
        rows.append(found.mean(axis=0))
    return unit_rows(np.stack(rows), "the prompts")


def unit_rows(rows: np.ndarray, of: str) -> np.ndarray:
    """Rows (n, E) divided by their lengths, float32; raises ExportError where one has none."""
    rows = np.asarray(rows, np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(rows).all() or not (length > 0).all():
        raise ExportError(f"a text vector of {of} is zero or not finite")
    return (rows / length).astype(np.float32)


def read_vectors(file: Path, count: int) -> np.ndarray:
    """Unit vectors (count, E): a .npy file's matrix, or the only one of a .safetensors file; raises ExportError."""
    try:
        rows = _from_safetensors(file) if file.suffix == ".safetensors" else np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise ExportError(
            f"{file}: no matrix of numbers (.npy or .safetensors): {str(e).splitlines()[0]}"
        ) from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f":
        raise ExportError(f"{file}: not a matrix of floats, one row a name")
    if len(rows) != count:
        raise ExportError(
            f"{file}: {len(rows)} text vectors for {count} names, those of the background included"
        )
    return unit_rows(rows, str(file))


def _from_safetensors(file: Path) -> np.ndarray:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError:
        raise MissingExtra("safetensors", "clip", "reading .safetensors files") from None
    try:
        found = list(load_file(file).values())
    except SafetensorError as e:
        raise ValueError(str(e)) from None
    if len(found) != 1:
        raise ExportError(f"{file}: has {len(found)} tensors; one matrix is wanted")
    return np.asarray(found[0])
