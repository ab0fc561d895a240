"""Run a SAM on images and prompts: predictor, automatic masks and the backend interface.

May import `data`, `models` and `utils`.
"""
