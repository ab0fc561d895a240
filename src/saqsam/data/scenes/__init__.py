"""Procedural scenes: the dataset that comes with the package, drawn from a seed.

May import `data.types` and `utils`.
"""
