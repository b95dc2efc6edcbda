import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from infercam.benchmarks.common import run_command
from infercam.benchmarks.zoo.run import main

if __name__ == "__main__":
    run_command(main)
