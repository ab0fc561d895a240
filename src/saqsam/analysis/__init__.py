"""Count what a model consists of: tensors, bytes and multiply-accumulate operations.

May import everything up to `checkpoint`.
"""
