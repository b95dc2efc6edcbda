from infercam.benchmarks.common import run_command
from infercam.benchmarks.gpu.measure import main

if __name__ == "__main__":
    run_command(main)
