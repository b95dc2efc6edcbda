"""`infercam bench`: this machine, in one run, side by side."""
