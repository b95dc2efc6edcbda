"""Graphs of other precisions, chosen and checked by the maps."""
