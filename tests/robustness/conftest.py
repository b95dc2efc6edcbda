"""One small rig for all proofs: forty drawn images and an undisturbed run over them."""

from __future__ import annotations

import pytest

from tests.robustness.outcome import Outcome, Size
from tests.robustness.rig import Rig

SMALL = Size(rounds=2, images=45, files=6, soak=250, connections=50, starts=2, seed=3)


@pytest.fixture(scope="session")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("robustness"), 40, seed=3, size=(64, 80))


@pytest.fixture(scope="session")
def size() -> Size:
    return SMALL


@pytest.fixture
def nothing_lost():
    def check(outcome: Outcome) -> None:
        assert outcome.losses == []
        assert outcome.rounds or outcome.inputs or outcome.skipped

    return check
