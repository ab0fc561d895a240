"""ONNX graphs of SAM v1."""
