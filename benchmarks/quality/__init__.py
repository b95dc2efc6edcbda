"""Quality and cost of recipes on photos with ground truth: `python -m infercam.benchmarks.quality`."""
