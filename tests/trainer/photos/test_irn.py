"""irn's maps at stride 4; that irn reads the files is in tests/engine/store/test_mapstore.py."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from infercam.trainer.photos.irn import strided


def test_strided_of_nothing() -> None:
    assert strided(np.zeros((0, 9, 8), np.float32)).shape == (0, 3, 2)
