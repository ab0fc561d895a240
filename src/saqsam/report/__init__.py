"""Reports on checkpoints: their content, and its renderings as HTML, Markdown and JSON.

May import everything but `cli`.
"""
