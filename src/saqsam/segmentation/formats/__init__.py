"""Formats of masks: one module for each, all listed in `registry`."""
