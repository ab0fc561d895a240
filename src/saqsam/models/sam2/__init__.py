"""SAM 2 and 2.1 (arXiv 2408.00714) for images: files, module names, quantizable attention and forward pass.

May import `quant` and `utils`.
"""
