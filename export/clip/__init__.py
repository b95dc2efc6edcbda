"""CLIP as a zero-shot classifier: texts instead of trained weights, patches scored as the picture is."""
