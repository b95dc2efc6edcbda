"""The studies' backend, which remembers what the network answered: the same maps, inferred once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infercam.benchmarks.quality.cached import CachedCpuBackend
from infercam.engine import Engine
from tests.engine import tiny


@pytest.mark.parametrize("fixed", [None, (24, 32)], ids=["any size", "windows"])
def test_its_maps_are_the_cpu_backends_and_come_back_without_the_network(
    fixed: tuple[int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tiny.build(tmp_path / "bundle", fixed=fixed, cells=fixed is not None)
    pixels, cache = tiny.picture(45, 58), tmp_path / "answers.npz"

    def maps(backend: CachedCpuBackend | str) -> np.ndarray:
        with Engine.load(bundle, backend) if isinstance(backend, str) else Engine(bundle, backend) as engine:
            (result,) = engine.stream([("one", pixels, [2, 0])], "corrected", "erase")
        assert result.error is None
        return result.maps

    first = CachedCpuBackend(bundle, cache=cache)
    want = maps("cpu")
    np.testing.assert_array_equal(maps(first), want)
    first.save()
    again = CachedCpuBackend(bundle, cache=cache)
    assert again.answers.keys() == first.answers.keys() and len(again.answers) > 8

    def never(*_: object) -> None:
        raise AssertionError("the network was asked again")

    monkeypatch.setattr(again, "_run_network", never)
    monkeypatch.setattr(again, "_infer", never)
    np.testing.assert_array_equal(maps(again), want)
