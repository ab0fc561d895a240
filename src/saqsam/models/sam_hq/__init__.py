"""SAM-HQ (arXiv 2306.01567): files, module names, quantizable attention and forward pass, on top of SAM v1's.

May import `quant` and `utils`.
"""
