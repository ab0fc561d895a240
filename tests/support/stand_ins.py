"""Stand-ins for modules that official code imports and that are no dependency."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@contextmanager
def stand_ins(modules: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Let imports in the block find stand-ins; on exit `sys.modules` is as before for their packages.

    Args:
        modules: Content of each stand-in by module name, parents first. With a ``__path__``, other modules of the
            package are imported from there.
    """
    packages = {name.partition(".")[0] for name in modules}

    def present() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] in packages]

    before = {name: sys.modules.pop(name) for name in present()}
    for name, content in modules.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
        module.__path__ = []
        module.__dict__.update(content)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name in present():
            del sys.modules[name]
        sys.modules.update(before)
