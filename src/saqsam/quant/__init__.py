"""Quantizers, observers, packing and quantized layers, independent of any model.

May import nothing else of the package.
"""
