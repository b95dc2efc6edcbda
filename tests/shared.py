"""Where real inputs lie, beside the checkout. Tests that read them are marked `shared`; they skip where it is not."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
