"""A worker process seen from outside: its memory with its children's, the GPU's use while its clock runs, its end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from infercam.benchmarks.bench.job import BenchJob, BenchOutcome, Measured

SAMPLE_SECONDS = 0.05
GPU_QUERY = ["--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits", "-lms", "200"]


def measure(job: BenchJob, folder: Path) -> BenchOutcome:
    """Run the job in a process of its own; its maps are left in `folder`/maps, which must not be there yet.

    Whatever goes wrong there is the outcome's one-line reason.
    """
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "infercam.benchmarks.bench.worker", str(folder)]
    with GpuWatch() as gpu, (folder / "errors").open("wb") as errors:
        # A group of its own: the terminal's Ctrl-C goes to this process alone, which then ends the worker.
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, process_group=0)
        try:
            peak = _wait(child)
        finally:
            if child.returncode is None:
                child.kill()
                child.wait()
    outcome = _outcome(folder, child.returncode)
    if outcome.measured is None:
        return outcome
    return BenchOutcome(
        measured=outcome.measured.model_copy(update={"peak_mb": peak, **gpu.seen(outcome.measured)})
    )


def _outcome(folder: Path, code: int) -> BenchOutcome:
    with suppress(OSError, ValueError):
        return BenchOutcome.model_validate_json((folder / "outcome.json").read_bytes())
    lines = (folder / "errors").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return BenchOutcome(reason=f"the process {ended}: {lines[-1][:300]}" if lines else f"the process {ended}")


# -- memory ----------------------------------------------------------------------------------------------------------
def _wait(child: subprocess.Popen[bytes]) -> float:
    """Wait for the end; the peak of resident memory in MB: the process's own as the system kept it, or the largest
    sum over it and its children that was seen, whichever is more."""
    seen = 0
    while True:
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            own = int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
            return max(own, seen) / 2**20
        seen = max(seen, tree_memory(child.pid))
        time.sleep(SAMPLE_SECONDS)


def tree_memory(pid: int) -> int:
    """Resident bytes of a process and all below it, now; 0 where the system has no /proc."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        with suppress(OSError, ValueError, IndexError):  # it may end while it is looked at
            pages = int(Path(f"/proc/{one}/statm").read_text().split()[1])
            total += pages * os.sysconf("SC_PAGE_SIZE")
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())
    return total


# -- GPU -------------------------------------------------------------------------------------------------------------
class GpuWatch:
    """Asks nvidia-smi five times a second, where there is one; all the GPU's users are in it."""

    def __init__(self, program: str = "nvidia-smi") -> None:
        self._program = shutil.which(program)
        self._samples: list[tuple[float, float, float]] = []  # when, busy 0..1, MB
        self._child: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuWatch:
        if self._program is not None:
            self._child = subprocess.Popen(
                [self._program, *GPU_QUERY], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._reader = threading.Thread(target=self._read, daemon=True)
            self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._reader.join()

    def _read(self) -> None:
        assert self._child is not None and self._child.stdout is not None
        for line in self._child.stdout:
            with suppress(
                ValueError
            ):  # "[N/A]" where a GPU does not say; of several, the first line of each turn
                busy, used = (float(part) for part in line.split(","))
                self._samples.append((time.monotonic(), busy / 100, used))

    def seen(self, measured: Measured) -> dict[str, float]:
        """Mean use and most memory between the worker's two clock readings; {} where nothing was seen."""
        inside = [s for s in self._samples if measured.began <= s[0] <= measured.ended]
        if not inside:
            return {}
        return {
            "gpu_busy": sum(busy for _, busy, _ in inside) / len(inside),
            "gpu_mb": max(used for _, _, used in inside),
        }
