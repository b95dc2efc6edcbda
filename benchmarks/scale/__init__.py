"""Many images, many clients, many workers."""
