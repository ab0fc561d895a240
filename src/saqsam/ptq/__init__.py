"""Post-training quantization: calibration, equalization, clipping and reconstruction of a model.

May import `checkpoint`, `inference` and everything below them. `pipeline.py` runs the phases in the order of the paper.
"""
