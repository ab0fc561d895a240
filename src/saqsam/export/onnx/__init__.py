"""ONNX graphs of a quantized model: one graph builder, one folder of writers per SAM family."""
