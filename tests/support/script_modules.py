"""Scripts that find each other because they lie in one folder, imported for tests and forgotten afterwards."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def scripts(folder: str, names: Sequence[str]) -> Iterator[dict[str, ModuleType]]:
    """The scripts of a folder of the repository, by name, while the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / folder))
        before = set(sys.modules)
        yield {name: importlib.import_module(name) for name in names}
        for name, module in list(sys.modules.items()):
            if name not in before and Path(getattr(module, "__file__", None) or "").parent == ROOT / folder:
                del sys.modules[name]
