"""Post-training quantization: calibration, clipping, equalization and reconstruction of a model.

May import `data`, `models`, `quant`, `recipes`, `convert`, `checkpoint`, `inference` and `utils`.
"""
