"""Export formats are entries of one table: a new entry is all that the exporter and the manifest need."""

from pathlib import Path
from typing import Any

import pytest

from saqsam.export import check_export, export_model, read_manifest
from saqsam.export.formats import FORMATS, FormatEntry
from saqsam.recipes.catalog import DEPLOY_TARGETS
from support.tiny_quantized import quantized_tiny
from support.tiny_sam import tiny_processor


def write_names(model: Any, folder: Path, metadata: dict[str, str], *, single_mask: bool) -> dict[str, Any]:
    for part in ("encoder", "decoder"):
        (folder / f"{part}.toy").write_text(part)
    return {"single": single_mask, "recipe": "saqsam_recipe" in metadata}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> FormatEntry:
    monkeypatch.setattr("pkgutil.resolve_name", lambda name: {"toy:write": write_names}[name])
    entry = FormatEntry("toy", ("toy",), ("numpy",), "toy:write")
    monkeypatch.setitem(FORMATS, "toy", entry)
    return entry


def test_a_format_is_one_entry(toy: FormatEntry, tmp_path: Path) -> None:
    written = export_model(
        quantized_tiny(), tiny_processor(), tmp_path / "out", format="toy", single_mask=True
    )
    assert written.details == {"single": True, "recipe": True}
    assert read_manifest(tmp_path / "out").files == written.files
    assert written.files.keys() == toy.file_names() == {"encoder.toy", "decoder.toy"}
    assert written.model_file(tmp_path / "out", "decoder").read_text() == "decoder"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(FORMATS, "toy", FormatEntry("toy", ("toy",), ("numpy", "no_such_package"), "toy:w"))
    with pytest.raises(
        ValueError, match=r"toy needs the package no_such_package: pip install 'saqsam\[toy\]'"
    ):
        check_export("toy", tmp_path / "out", overwrite=False)


def test_an_unknown_format_and_an_existing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"expected one of {', '.join(FORMATS)}, got 'tflite'"):
        check_export("tflite", tmp_path / "out", overwrite=False)
    with pytest.raises(ValueError, match="exists; choose another name, or pass overwrite=True"):
        check_export("onnx", tmp_path, overwrite=False)


def test_every_format_is_a_deploy_target() -> None:
    assert list(FORMATS) == list(DEPLOY_TARGETS)
