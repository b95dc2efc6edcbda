"""Errors of training that reach the user as one line (see engine/common/errors.py)."""

from __future__ import annotations

from infercam.engine.common.errors import InfercamError


class TrainingError(InfercamError):
    """Training cannot go on (a loss that is not finite, a disk that is full); the last checkpoint is kept."""
