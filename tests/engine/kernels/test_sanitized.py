"""All kernel tests once more, in a process whose kernels are built with AddressSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_emulator import build
from tests.cuda_emulator.driver import SANITIZED

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    if SANITIZED or build.compiler() is None:
        pytest.skip("needs a C++ compiler (g++ or CXX), and runs once only")
    asked = [build.compiler() or "g++", "-print-file-name=libasan.so"]
    library = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("needs the compiler's AddressSanitizer library (libasan)")
    return {
        **os.environ,
        "LD_PRELOAD": str(Path(library).resolve()),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=77",
        "INFERCAM_EMULATOR": "sanitized",
    }


OUT_OF_BOUNDS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from tests.cuda_emulator import build
from tests.cuda_emulator.driver import EmulatedDriver
driver = EmulatedDriver(library=build.library([build.HERE / "faulty.cu"], sanitized=True))
pointer = driver.allocate(256)
driver.launch("beyond_the_end", (1, 1, 1), (64, 1, 1), [pointer, np.int32(int(sys.argv[2]))])
"""


@pytest.mark.parametrize(("offset", "code"), [(0, 0), (1, 77)])
def test_the_sanitizer_is_at_work(environment: dict[str, str], offset: int, code: int) -> None:
    command = [sys.executable, "-c", OUT_OF_BOUNDS, str(HERE.parents[2]), str(offset)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("heap-buffer-overflow" in done.stderr) == (code != 0)


@pytest.mark.slow
def test_kernels_under_the_sanitizer(environment: dict[str, str]) -> None:
    files = [str(HERE / f"test_{name}.py") for name in ("input_kernels", "map_kernels", "emulator")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=HERE.parents[2])
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
