"""Post-training quantization: calibration, equalization, clipping and reconstruction of a model.

`pipeline.py` runs the phases in the order of the paper. Modules here may import `data`, `models`, `quant`, `recipes`,
`convert`, `checkpoint`, `inference` and `utils`.
"""
