"""What the paper says, and when: recipes, geometry, tasks, the scheduler; `reference` is the plain NumPy twin."""
