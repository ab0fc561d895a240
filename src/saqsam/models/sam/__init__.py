"""Structure, attention and forward pass of SAM v1 (arXiv 2304.02643).

May import `quant` and `utils`.
"""
