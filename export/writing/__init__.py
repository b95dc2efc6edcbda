"""From a source to a bundle on disk: reading, verifying, writing."""
