"""Runtimes are entries of one table: a new entry is all that loading and verification need."""

from pathlib import Path
from typing import Any

import pytest

from saqsam.export import export_model
from saqsam.export.formats import FORMATS
from saqsam.runtimes import check_runtime, default_runtime, load_runtime
from saqsam.runtimes.registry import RUNTIMES, RuntimeEntry, installed_runtimes
from support.tiny_quantized import quantize_tiny, tiny_recipe
from support.tiny_sam import tiny_processor


class Toy:
    def __init__(self, folder: Path, manifest: Any, *, threads: int | None) -> None:
        self.folder, self.manifest, self.threads = folder, manifest, threads


def test_a_runtime_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from saqsam.recipes.deployment import deployable

    export_model(quantize_tiny(deployable(tiny_recipe())), tiny_processor(), tmp_path / "out")
    known = {"toy:Toy": Toy, "toy:device": lambda device: device.upper()}
    monkeypatch.setattr("pkgutil.resolve_name", lambda name: known[name])
    entry = RuntimeEntry("numpy", "onnx", ("other", "onnx"), "toy:Toy", ("threads",), "toy:device")
    monkeypatch.setitem(RUNTIMES, "numpy", entry)
    backend, _ = load_runtime(tmp_path / "out", "numpy", threads=3)
    assert isinstance(backend, Toy)
    assert (backend.folder, backend.threads, backend.manifest.format) == (tmp_path / "out", 3, "onnx")
    assert "numpy" in installed_runtimes("onnx")[1:]
    assert entry.resolve_device("gpu") == "GPU"


def test_every_format_has_a_default_runtime() -> None:
    for name in FORMATS:
        assert name in RUNTIMES[default_runtime(name)].formats
    assert default_runtime("onnx") == "onnxruntime"


def test_what_does_not_go_together_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"expected one of {', '.join(RUNTIMES)}, got 'tensorrt'"):
        check_runtime("tensorrt", "onnx")
    with pytest.raises(ValueError, match="executorch does not run exports of the format onnx"):
        check_runtime("executorch", "onnx")
    monkeypatch.setattr(RuntimeEntry, "is_installed", lambda self: False)
    with pytest.raises(ValueError, match=r"the package onnxruntime is missing: pip install 'saqsam\[onnx\]'"):
        check_runtime("onnxruntime", "onnx")
