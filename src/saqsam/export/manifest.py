"""`export.json`: what an exported folder holds, and of which checkpoint it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import SamConfig, SamProcessor

from saqsam.models.loading import load_processor

MANIFEST = "export.json"
MANIFEST_VERSION = 1
FORMATS = {"onnx": "onnx", "openvino": "xml", "executorch": "pte"}
"""And how the names of their models end."""
LOW_RES_OUTPUTS = ("iou_predictions", "low_res_masks")
"""Outputs of a decoder that do not depend on the size of the original image."""


@dataclass(frozen=True)
class Manifest:
    """What an exported folder holds.

    Attributes:
        format: `onnx`, `openvino` or `executorch`.
        single_mask: Whether the decoder returns one mask a prompt instead of four.
        recipe: The checkpoint's recipe, as JSON types; `name` is its name.
        name: Name of the recipe.
        checkpoint: Content hash of the checkpoint.
        config: The model's `SamConfig`, as JSON types.
        files: SHA-256 of each file by name.
        details: What else a format says of its files, as JSON types.
        version: Of this file's format.
    """

    format: str
    single_mask: bool
    recipe: Mapping[str, Any]
    name: str
    checkpoint: str
    config: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    version: int = MANIFEST_VERSION

    def to_json(self) -> str:
        """As `export.json` holds it."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    def model_file(self, folder: Path, part: str) -> Path:
        """The file of a part, `encoder` or `decoder`, that a runtime opens."""
        return folder / f"{part}.{FORMATS[self.format]}"

    @property
    def sam_config(self) -> SamConfig:
        """The model's configuration."""
        return SamConfig.from_dict(dict(self.config))

    def processor(self, folder: Path) -> SamProcessor:
        """The processor that was saved beside it."""
        return load_processor(folder, self.sam_config)


def is_export(folder: str | Path) -> bool:
    """Whether a folder is an export."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check what a folder says of itself, and that its files are whole.

    Raises:
        ValueError: If it is no export, one of a newer saqsam, or a file is missing, cut short or altered.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is no export of saqsam: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("version") != MANIFEST_VERSION:
        found = values.get("version") if isinstance(values, dict) else None
        raise ValueError(f"{path}: expected version {MANIFEST_VERSION}, got {found!r}; export it again")
    try:
        manifest = Manifest(**values)
    except TypeError as error:
        raise ValueError(f"{path} is not what saqsam writes: {error}") from error
    for name, wanted in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        if file_hash(file) != wanted:
            raise ValueError(
                f"{file} is not the file that {MANIFEST} tells of: cut short or altered; export it again"
            )
    return manifest


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
