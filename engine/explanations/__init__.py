"""Figures of maps that need no threshold, and, but for pointing, no masks."""
