"""The GPU engine, measured: `python -m infercam.benchmarks.gpu`."""
