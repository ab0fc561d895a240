"""Layouts of exported folders: the files, names and shapes that clients of other projects load unchanged.

A layout renames and reorders inputs and outputs of saqsam's own graphs, and adds a few nodes before and after them. It
is data: one entry of `catalog.LAYOUTS`.
"""
