"""AffinityNet, and pseudo labels by its random walk."""
