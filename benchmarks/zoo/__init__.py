"""What share of published classifiers can be exported: `python -m infercam.benchmarks.zoo`."""
