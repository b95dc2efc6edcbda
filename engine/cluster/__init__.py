"""One run on many machines: Ray Data, shards, remote stores."""
