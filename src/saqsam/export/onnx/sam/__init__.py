"""ONNX graphs of SAM v1: image encoder, prompt encoder and mask decoder.

May import what `export.onnx` may import.
"""
