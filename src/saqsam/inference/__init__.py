"""Predictor, automatic mask generator and the backend interface: everything that runs a SAM on images and prompts.

May import `data`, `models` and `utils`.
"""
