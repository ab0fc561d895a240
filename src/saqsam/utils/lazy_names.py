"""Names that are imported when they are first used: of a package (PEP 562), and classes in tables of other packages."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, str], removed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package whose modules are slow to import.

    Modules of the package are attributes too, whether they were imported before or not.

    Args:
        package: Name of the package, its `__name__`.
        modules: The module within the package that defines each name, such as `exporter` for `export_model`.
        removed: Names of earlier versions, and what to use instead; for the error message.
    """

    def get(name: str) -> Any:
        if name in modules:
            value = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
            setattr(sys.modules[package], name, value)
            return value
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        hint = f": {removed[name]}" if removed is not None and name in removed else ""
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, names


class LazyClass:
    """Stand-in for a class until it is called or an attribute of it is read, for tables of other packages.

    Args:
        path: `module:name` of the class.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Create an instance of the class."""
        return pkgutil.resolve_name(self._path)(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(pkgutil.resolve_name(self._path), name)
