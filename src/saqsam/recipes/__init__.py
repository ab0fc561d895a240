"""Recipes: all choices of a quantization method as data, the named methods, and overrides of single fields.

May import `models`, `quant` and `utils`.
"""
