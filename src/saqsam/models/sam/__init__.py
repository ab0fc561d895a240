"""SAM v1 (arXiv 2304.02643): module names, quantizable attention and forward pass.

May import `quant` and `utils`.
"""
