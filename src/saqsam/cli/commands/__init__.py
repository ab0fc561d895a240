"""Implementations of the commands, one module each, which are imported when a command runs, since they import torch.

May import the whole package.
"""
