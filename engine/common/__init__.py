"""What every room stands on: errors, files written whole, paths, caches, processes, progress, options."""
