"""A GPU as the engine uses it: memory, one stream, kernels. `driver.py` says what is needed of one."""
