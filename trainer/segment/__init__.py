"""DeepLab on pseudo labels, with saliency in the loss (eq. 4)."""
