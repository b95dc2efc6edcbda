"""Runners: the network on device pointers, for backends/device.py. `device/runner.py` says what one offers."""
