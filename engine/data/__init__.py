"""What comes in: images, where they lie, their labels, the layouts of data sets."""
