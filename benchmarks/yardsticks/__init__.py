"""What others do, written plainly: the PyTorch loop, the dense random walk, PyTorch on the GPU."""
