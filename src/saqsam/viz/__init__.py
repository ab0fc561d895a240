"""Draw masks over images and compare models side by side.

May import `data`, `evaluation` and `utils`.
"""
