"""ONNX graphs of SAM 2's image encoder, and of its prompt encoder and mask decoder."""
