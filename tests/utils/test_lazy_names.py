"""Lazy names are imported when they are used, and listed before."""

import subprocess
import sys
import types

import pytest

from saqsam.utils.lazy_names import lazy_names


def test_a_name_is_imported_once_and_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = types.ModuleType("toy"), types.ModuleType("toy.module")
    package.__path__ = []
    module.answer = 42  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy", package)
    monkeypatch.setitem(sys.modules, "toy.module", module)
    get, names = lazy_names("toy", {"answer": "module"})
    assert "answer" in names()
    assert "answer" not in vars(package)
    assert get("answer") == 42
    assert vars(package)["answer"] == 42
    with pytest.raises(AttributeError, match="no attribute '_private'"):
        get("_private")
    with pytest.raises(AttributeError, match="module 'toy' has no attribute 'question'"):
        get("question")


@pytest.mark.slow
def test_modules_of_a_package_are_attributes_without_an_import() -> None:
    code = "import saqsam; saqsam.evaluation.compare.compare, saqsam.export.manifest.MANIFEST"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
