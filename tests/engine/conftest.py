"""Shared by the engine's tests: the tiny bundle, and where ../shared is."""

from __future__ import annotations

from pathlib import Path

import pytest

from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle
from tests.engine import tiny
from tests.shared import SHARED


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Five classes, stride 4, any size: see tiny.py."""
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="session")
def tiny_engine(tiny_bundle: Bundle):
    with Engine.load(tiny_bundle, threads=2) as engine:
        yield engine


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real inputs beside the repository; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, which is not here")
    return SHARED
