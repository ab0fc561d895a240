"""Inventory of a model: parameters, bytes and multiply-accumulate operations by part.

May import `checkpoint` and everything below it.
"""
