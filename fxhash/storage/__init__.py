"""Files: transformed models, quantized factors, ONNX."""
