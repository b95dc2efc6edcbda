"""Proof that it holds: kills, full disks, damaged input, a long run."""
