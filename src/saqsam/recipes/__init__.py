"""Recipes: every choice of a quantization method as data, the named methods, and overrides.

May import `models`, `quant` and `utils`.
"""
