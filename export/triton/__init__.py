"""A bundle as a model repository of the Triton Inference Server: `infercam package triton BUNDLE -o REPOSITORY`."""
