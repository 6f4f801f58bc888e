"""Files: transformed models, factors in fewer bits, ONNX."""
