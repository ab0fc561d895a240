"""Turn a float SAM into one with quantizer slots, and that one into packed integer codes.

May import `models`, `quant`, `recipes` and `utils`.
"""
