"""For all tests: no example of hypothesis fails because a busy machine was slow; `cuda_emulator` can be imported."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("infercam", deadline=None, print_blob=True)
settings.load_profile("infercam")
