"""General-purpose helpers: atomic writes, locks, strict JSON, error messages.

May import nothing else of the package.
"""
