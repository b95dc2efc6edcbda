"""From response maps to better response maps: saliency, pixel-adaptive refinement, the random walk, the dense CRF."""
