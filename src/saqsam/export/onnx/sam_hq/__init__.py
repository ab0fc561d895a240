"""ONNX graphs of SAM-HQ: those of SAM v1 with the features and the mask of the high-quality token.

May import what `export.onnx` may import.
"""
