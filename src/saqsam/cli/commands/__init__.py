"""Implementations of the commands, one module each; imported when a command runs, since they import torch."""
