"""Quantizers, observers, packing and quantized layers. Knows nothing of SAM."""
