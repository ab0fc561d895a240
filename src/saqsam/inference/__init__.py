"""Predictor, automatic mask generator and the backend interface: everything that runs a SAM on images and prompts.

Modules here may import `data`, `models` and `utils`; evaluation, export and the runtimes build on them.
"""
