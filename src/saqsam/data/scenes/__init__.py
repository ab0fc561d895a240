"""Procedural scenes, the dataset that comes with the package: drawn from a seed, with exact masks.

May import `utils`, and of `data` its modules `types` and `rle`.
"""
