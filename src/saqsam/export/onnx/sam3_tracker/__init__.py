"""ONNX graphs of the image encoder of SAM 3's tracker; its decoder is that of SAM 2."""
