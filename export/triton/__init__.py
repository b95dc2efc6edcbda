"""`infercam package triton`: a bundle as a Triton model repository."""
