"""Errors of training that reach the user as one line (see engine/errors.py)."""

from __future__ import annotations

from infercam.engine.errors import InfercamError


class TrainingError(InfercamError):
    """Training cannot go on (a loss that is not finite, a disk that is full); the last checkpoint is kept."""
