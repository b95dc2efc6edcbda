"""Shared by the engine's tests: the tiny bundle, and where ../shared is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))  # importlib mode: so that tests can import tiny.py

import tiny
from infercam.engine.api import Engine
from infercam.engine.bundle import Bundle

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


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
