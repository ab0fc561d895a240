"""The tasks that a model is judged on, one file each.

May import what `evaluation` may import.
"""
