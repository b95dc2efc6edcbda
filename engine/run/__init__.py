"""Images + bundle -> a map store: in one process, in shards, on a Ray cluster."""
