"""Training a classifier on image-level labels."""
