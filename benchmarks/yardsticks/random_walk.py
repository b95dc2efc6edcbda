"""The random walk of one image: dense squarings of T, CSR products with T, and ours, on one core.

    python -m infercam.benchmarks.yardsticks.random_walk [--size 500x375] [--maps 3] [--rounds 3]

Each way starts from the same affinities and maps and ends with walked maps; the dense transition matrix and the
CSR matrix are given (psa's own code spends longer on making them), ours is made within the measured time.
Seconds are CPU seconds of the one thread, so that other work on the machine counts as little as it can.
Affinities are those of smooth random features with edges, from almost 0 to almost 1. Memory is what the peak of
the process grows by in the measured time, beyond the matrices it is given; each way has a process of its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from infercam.benchmarks.common import write_result
from infercam.trainer.affinity.random_walk import pairs_inside, search_offsets, walk
from infercam.trainer.affinity.random_walk_ref import transition_ref
from infercam.trainer.affinity.settings import STRIDE

console = Console(stderr=True, highlight=False)
STEPS = 8
BETA = 8.0


def main(
    size: Annotated[str, typer.Option(help="photo, WIDTHxHEIGHT")] = "500x375",
    maps: Annotated[int, typer.Option(help="maps carried: background and the classes present")] = 3,
    rounds: Annotated[int, typer.Option(help="measurements of each way, in turn; the least counts")] = 3,
    name: Annotated[str, typer.Option(help="results/NAME.json")] = "random_walk",
    way: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every way on one core; prints a line each and writes results/NAME.json."""
    width, height = (int(n) for n in size.split("x"))
    grid = (-(-height // STRIDE), -(-width // STRIDE))
    if way is not None:
        print(json.dumps(_one(way, grid, maps)))
        return
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for each in WAYS:
            found = _process(each, size, maps)
            best = rows.setdefault(each, found)
            best["seconds"] = min(best["seconds"], found["seconds"])
    want = np.array(rows["dense"].pop("values"))
    for each, row in rows.items():
        row["times_faster_than_dense"] = rows["dense"]["seconds"] / row["seconds"]
        if each != "dense":
            row["largest_difference"] = float(np.abs(np.array(row.pop("values")) - want).max())
        console.print(
            f"{each:8} {1e3 * row['seconds']:9.1f} ms  {row['times_faster_than_dense']:6.0f} x  "
            f"{row['grown_mb']:6.1f} MB  difference {row.get('largest_difference', 0):.1e}"
        )
    content = {"size": size, "grid": list(grid), "maps": maps, "steps": 2**STEPS, "threads": 1, "ways": rows}
    console.print(f"-> {write_result(name, content)}")


def _process(way: str, size: str, maps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "infercam.benchmarks.yardsticks.random_walk", "--way", way]
    run = subprocess.run(
        [*command, "--size", size, "--maps", str(maps)], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def _one(way: str, grid: tuple[int, int], count: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    affinity, maps = _affinities(grid), np.random.default_rng(1).random((count, *grid)).astype(np.float32)
    run = WAYS[way](affinity, maps)
    walk(torch.zeros(34, 9, 9), torch.zeros(1, 9, 9))  # what is imported on first use is no part of it
    before = _peak()
    began = time.process_time()
    values = run()
    seconds = time.process_time() - began
    return {"seconds": seconds, "grown_mb": _peak() - before, "values": values.tolist()}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _affinities(grid: tuple[int, int]) -> NDArray[np.float32]:
    """exp(-mean |g_i - g_j|) of smooth random features g, as AffinityNet's are: regions with soft edges."""
    rng = np.random.default_rng(0)
    planes = [cv2.GaussianBlur(rng.normal(size=grid).astype(np.float32), (0, 0), 4) for _ in range(16)]
    features = np.stack([np.tanh(8 * plane / plane.std()) for plane in planes])
    inside = pairs_inside(*grid)
    affinity = np.zeros(inside.shape, np.float32)
    for p, (dy, dx) in enumerate(search_offsets()):
        there = np.roll(features, (-dy, -dx), (1, 2))
        affinity[p] = np.exp(-np.abs(features - there).mean(0)) * inside[p]
    return affinity


Run = Callable[[], NDArray[np.float32]]


def _dense(affinity: NDArray[np.float32], maps: NDArray[np.float32]) -> Run:
    matrix, vectors = torch.from_numpy(transition_ref(affinity, BETA)), torch.from_numpy(maps).flatten(1)

    def run() -> NDArray[np.float32]:
        power = matrix
        for _ in range(STEPS):
            power = power @ power
        return (vectors @ power).numpy()

    return run


def _csr(affinity: NDArray[np.float32], maps: NDArray[np.float32]) -> Run:
    from scipy.sparse import csr_array

    matrix = csr_array(transition_ref(affinity, BETA).T)
    start = np.ascontiguousarray(maps.reshape(len(maps), -1).T)

    def run() -> NDArray[np.float32]:
        vectors = start
        for _ in range(2**STEPS):
            vectors = matrix @ vectors
        return vectors.T

    return run


def _ours(affinity: NDArray[np.float32], maps: NDArray[np.float32]) -> Run:
    return lambda: (
        walk(torch.from_numpy(affinity), torch.from_numpy(maps), beta=BETA, log2_steps=STEPS)
        .flatten(1)
        .numpy()
    )


WAYS: dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], Run]] = {
    "dense": _dense,
    "csr": _csr,
    "ours": _ours,
}


if __name__ == "__main__":
    typer.run(main)
