"""Runners: the network on device pointers, for backends/device.py. `protocol.py` says what one offers."""
