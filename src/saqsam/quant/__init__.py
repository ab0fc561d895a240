"""Quantizers, observers, packing and quantized layers, independent of any model.

Modules here import nothing else of the package.
"""
