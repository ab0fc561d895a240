"""ExecuTorch programs of a quantized model: modules to be traced, with one folder per SAM family.

May import `checkpoint` and everything below it, and from `export` its modules that every format shares.
"""
