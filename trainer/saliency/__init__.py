"""Saliency maps without ground truth."""
