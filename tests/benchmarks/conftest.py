"""So that these tests can import the engine's helpers: tiny.py, device/host_runner.py."""

import sys
from pathlib import Path

ENGINE_TESTS = Path(__file__).resolve().parents[1] / "engine"
sys.path[:0] = [str(ENGINE_TESTS), str(ENGINE_TESTS / "device")]
