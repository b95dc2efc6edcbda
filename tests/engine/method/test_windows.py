"""Views of a network of one size, in windows: where they lie, and how their responses are put together."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infercam.engine import Engine
from infercam.engine.method import reference
from infercam.engine.method.geometry import ViewSizes
from infercam.engine.method.recipe import RECIPES, Recipe, recipe
from infercam.engine.method.windows import Cover, Windows, put_together, shares
from tests.engine import tiny


@st.composite
def networks(draw: st.DrawFn, whole: bool = False) -> Windows:
    """whole: a window's cells fill it exactly."""
    cell = draw(st.integers(1, 32))
    cells = draw(st.tuples(st.integers(1, 16), st.integers(1, 16)))
    if whole:
        return Windows((cell * cells[0], cell * cells[1]), cell, cells)
    rest = draw(st.tuples(st.integers(0, cell - 1), st.integers(0, cell - 1)))
    lost = draw(st.integers(0, 2))  # by convolutions without padding
    size = cell * (cells[0] + lost) + rest[0], cell * (cells[1] + lost) + rest[1]
    return Windows(size, cell, cells)


sides = st.integers(1, 700)


@given(networks(), sides, sides)
@settings(max_examples=300)
def test_windows_cover_every_pixel_and_every_cell(network: Windows, height: int, width: int) -> None:
    cover = network.cover(height, width)
    assert cover.window == network.size
    axes = zip(
        cover.size, (height, width), network.size, network.cells, (cover.rows, cover.columns), strict=True
    )
    for side, asked, window, cells, starts in axes:
        pixels = [at * network.cell for at in starts]
        assert pixels[0] == 0 and pixels[-1] + window == side, "inside, and to both ends"
        assert all(a < b <= a + window for a, b in pairwise(pixels)), "no pixel between two windows"
        assert all(b <= a + cells for a, b in pairwise(starts)), "no cell of the response either"
        assert starts == tuple(starts[-1] - at for at in reversed(starts)), (
            "the mirror image's windows mirrored"
        )
        gaps = [b - a for a, b in pairwise(starts)]
        assert not gaps or max(gaps) - min(gaps) <= 2, "evenly"
        assert asked <= window or abs(side - asked) <= 1.5 * network.cell
        if asked <= window:
            assert starts == (0,), "what fits into a window is one, stretched"


def test_a_photo_in_windows() -> None:
    """What a Swin of 224 pixels and stride 32 sees of 375×500 pixels."""
    network = Windows((224, 224), 32, (7, 7))
    assert network.cover(375, 500) == Cover((384, 480), (224, 224), (0, 5), (0, 4, 8), 32)
    assert network.cover(188, 250) == Cover((224, 256), (224, 224), (0,), (0, 1), 32)
    assert network.cover(188, 224).places == [(0, 0)]


@given(networks(), sides, sides)
def test_shares_add_up_to_one(network: Windows, height: int, width: int) -> None:
    cover = network.cover(height, width)
    for cells, starts in zip(network.cells, (cover.rows, cover.columns), strict=True):
        total = np.zeros(starts[-1] + cells)
        for at, share in zip(starts, shares(starts, cells), strict=True):
            assert (share > 0).all()
            total[at : at + cells] += share
        np.testing.assert_allclose(total, 1, atol=1e-6)


def local(network: Windows, classes: int) -> reference.Network:
    """Cells that see nothing but their own pixels: means of the channels, in mixtures."""
    mixtures = np.random.default_rng(5).standard_normal((classes, 3)).astype(np.float32)

    def run(x: np.ndarray) -> np.ndarray:
        n, channels, height, width = x.shape
        (rows, columns), cell = (height // network.cell, width // network.cell), network.cell
        parts = x[:, :, : rows * cell, : columns * cell].reshape(n, channels, rows, cell, columns, cell)
        return np.einsum("kc,nchw->nkhw", mixtures, parts.mean(axis=(3, 5)))

    return run


@given(networks(whole=True), st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_a_network_that_looks_no_further_than_its_cell_sees_the_same(
    network: Windows, height: int, width: int, seed: int
) -> None:
    """In windows as in the whole view, were it able to take that: nothing is lost, moved or counted twice."""
    cover = network.cover(height, width)
    view = np.random.default_rng(seed).standard_normal((3, *cover.size)).astype(np.float32)
    run = local(network, 2)
    whole = np.maximum(run(view[None])[0], 0)
    np.testing.assert_allclose(reference.seen_through(view, cover, run), whole, atol=1e-5)


@given(networks(), sides, sides, st.integers(0, 4), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_putting_together_against_the_twin(
    network: Windows, height: int, width: int, classes: int, seed: int
) -> None:
    cover = network.cover(height, width)
    rng = np.random.default_rng(seed)
    responses = [rng.standard_normal((classes, *network.cells)).astype(np.float32) for _ in cover.places]
    in_turn = iter(responses)
    want = reference.seen_through(
        np.zeros((3, *cover.size), np.float32), cover, lambda x: next(in_turn)[None]
    )
    found = np.maximum(put_together(responses, cover), 0)
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("windows", [False, True])
def test_only_where_asked_and_needed(windows: bool) -> None:
    chosen = Recipe(windows=windows)
    free = ViewSizes(smallest=32)
    assert free.cover(375, 500, 0.5, chosen) == Cover((188, 250), (188, 250))
    one = ViewSizes(fixed=(64, 64), windows=Windows((64, 64), 16, (4, 4)))
    assert (len(one.cover(375, 500, 0.5, chosen).places) > 1) == windows
    assert one.cover(375, 500, 0.1, chosen).size == (64, 64)


def test_what_a_bundle_makes_of_it(tmp_path: Path) -> None:
    """One of any size has no need of windows, one that does not say how many cells its response has gets none: their
    stores stay as they are."""
    wanted, plain = RECIPES["fast"], recipe("fast", windows=False)
    with Engine.load(tiny.build(tmp_path / "any"), threads=1) as engine:
        assert not engine.recipe(wanted).windows
        assert engine.recipe(wanted).fingerprint("both") == plain.fingerprint("both")
    with Engine.load(tiny.build(tmp_path / "one", fixed=(24, 32), cells=True), threads=1) as engine:
        assert engine.recipe(wanted) == wanted and wanted.fingerprint("both") != plain.fingerprint("both")
        assert engine.recipe(plain).views.scales == (1.0,)
    with Engine.load(tiny.build(tmp_path / "old", fixed=(24, 32)), threads=1) as engine:
        assert engine.recipe(wanted).fingerprint("both") == engine.recipe(plain).fingerprint("both")
        assert engine.recipe(wanted).views.scales == (1.0,)
