"""A class that is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import Any


class LazyClass:
    """Stand in for a class: calls and attributes are those of the class, which is imported for the first of them.

    Args:
        module: Dotted name of the module that defines the class.
        name: Name of the class.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Create an instance of the class."""
        return self._load()(*args, **kwargs)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._load(), attribute)

    def _load(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)
