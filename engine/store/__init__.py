"""What goes out: the map store, its index, its failures, its formats."""
