"""Procedural scenes, the dataset that comes with the package: drawn from a seed, with exact masks.

Modules here may import `data.types`, `data.rle` and `utils`; only `data` and layers above it import them.
"""
