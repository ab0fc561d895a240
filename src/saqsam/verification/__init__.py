"""Compare exported files with the checkpoint they came from: masks, metrics and the first layers to diverge.

May import everything up to `evaluation` and `runtimes`.
"""
