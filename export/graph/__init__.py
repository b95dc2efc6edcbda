"""Graph surgery: from a classifier's ONNX graph to a response graph."""
