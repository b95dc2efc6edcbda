"""Label Studio's run lengths, against a decoder written from rle-pack's description."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infercam.engine.labelling.label_studio import run_lengths_of


def decoded(data: list[int]) -> np.ndarray:
    bits, at, out = "".join(f"{byte:08b}" for byte in data), 0, []

    def read(size: int) -> int:
        nonlocal at
        at += size
        return int(bits[at - size : at], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    while len(out) < count:
        repeated, length = read(1), read(sizes[read(2)]) + 1
        out += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    assert len(bits) - at < 8
    return np.array(out, np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.floats(0, 1), st.integers(0, 999))
@example(1, 1, 1.0, 0)
@example(200, 300, 0.0, 0)
@example(200, 300, 1.0, 0)
def test_run_lengths_come_back(height: int, width: int, share: float, seed: int) -> None:
    inside = np.random.default_rng(seed).random((height, width)) < share
    data = run_lengths_of(inside)
    want = np.repeat(inside[..., None], 4, axis=2) * np.uint8(255)
    assert np.array_equal(decoded(data).reshape(want.shape), want)


def test_the_sdk_decodes_them() -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    inside = np.random.default_rng(3).random((17, 23)) < 0.4
    assert np.array_equal(brush.decode_rle(run_lengths_of(inside)).reshape(17, 23, 4)[..., 3] > 0, inside)
