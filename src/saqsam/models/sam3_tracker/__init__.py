"""The tracker of SAM 3 (arXiv 2511.16719) for images: files, module names, quantizable attention and forward pass.

Its mask decoder is that of SAM 2, whose modules it uses. May import `quant` and `utils`.
"""
