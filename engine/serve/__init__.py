"""`infercam serve`: the Open Inference Protocol over HTTP, /maps for pictures, and a page to try it."""
