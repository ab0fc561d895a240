"""Lazy names are imported when they are used, and listed before."""

import sys
import types
from pathlib import Path

import pytest

from saqsam.utils.lazy_names import lazy_names


def test_a_name_is_imported_once_and_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = types.ModuleType("toy"), types.ModuleType("toy.module")
    module.answer = 42  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy", package)
    monkeypatch.setitem(sys.modules, "toy.module", module)
    get, names = lazy_names("toy", {"answer": "module"})
    assert "answer" in names()
    assert "answer" not in vars(package)
    assert get("answer") == 42
    assert vars(package)["answer"] == 42
    with pytest.raises(AttributeError, match="module 'toy' has no attribute 'question'"):
        get("question")


def test_modules_of_the_package_are_attributes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").write_text(
        "from saqsam.utils.lazy_names import lazy_names\n__getattr__, __dir__ = lazy_names(__name__, {})\n"
    )
    (tmp_path / "toy" / "tool.py").write_text("answer = 42\n")
    (tmp_path / "toy" / "broken.py").write_text("import missing_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("toy", "toy.tool"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    toy = __import__("toy")
    assert toy.tool.answer == 42
    with pytest.raises(ModuleNotFoundError, match="missing_package"):
        _ = toy.broken
    with pytest.raises(AttributeError, match="module 'toy' has no attribute 'other'"):
        _ = toy.other
    for name in ("toy", "toy.tool"):
        monkeypatch.delitem(sys.modules, name, raising=False)
