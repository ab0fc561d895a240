"""`export.json`: contents of an exported folder, the checkpoint it was made from, and hashes of both."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import SamConfig, SamProcessor

from saqsam.export.formats import FORMATS
from saqsam.export.layouts.contract import OWN_LAYOUT
from saqsam.models.configuration import parse_config
from saqsam.models.processing import load_processor, processor_fields
from saqsam.recipes.recipe import Recipe
from saqsam.utils.errors import CheckpointError, shorten, shorten_message
from saqsam.utils.strict_json import read_json_object

MANIFEST = "export.json"
FLOAT_NAME = "float"
"""Name that stands for the recipe of a float model."""
MANIFEST_VERSION = 2
"""Version 1 had neither a hash of the manifest itself nor the settings of the processor."""
LOW_RES_OUTPUTS = ("iou_predictions", "low_res_masks")
"""Decoder outputs that do not depend on the size of the original image."""
MAX_FILE_BYTES = 2**31
"""Largest model file that is opened, in bytes; protobuf messages such as ONNX files hold no more."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"\d{1,4}(\.\d{1,4}){1,2}")
_MAX_NAME = 200


@dataclass(frozen=True)
class Manifest:
    """Contents of an exported folder.

    Attributes:
        format: Name of the format, one of `FORMATS`.
        single_mask: Whether the decoder returns one mask per prompt instead of all.
        recipe: Recipe of the checkpoint, as JSON types; None for a float model.
        name: Name of the recipe, or `FLOAT_NAME`.
        checkpoint: Content hash of the checkpoint or of the float model.
        config: `SamConfig` of the model, as JSON types.
        processor: Settings of the processor, as `processor_fields` returns them; empty in version 1.
        files: SHA-256 of each model file by name.
        details: Further properties that a format records of its files, as JSON types.
        layout: Name of the layout. saqsam loads its own only.
        version: Version of the manifest itself.
    """

    format: str
    single_mask: bool
    recipe: Mapping[str, Any] | None
    name: str
    checkpoint: str
    config: Mapping[str, Any]
    processor: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    layout: str = OWN_LAYOUT
    version: int = MANIFEST_VERSION

    def to_json(self) -> str:
        """Return the text of `export.json`, with the hash of all other fields as `sha256`."""
        values = asdict(self)
        if self.layout == OWN_LAYOUT:
            del values["layout"]  # unknown to saqsam before layouts
        return json.dumps({**values, "sha256": manifest_hash(values)}, indent=2, sort_keys=True) + "\n"

    def model_file(self, folder: Path, part: str) -> Path:
        """Return the path of the file that a runtime opens for a part, `encoder` or `decoder`."""
        return folder / FORMATS[self.format].main_file(part)

    def least_version(self, runtime: str) -> str | None:
        """Return the least version of a runtime that runs the files, such as `1.18`; None if it is unknown.

        Raises:
            CheckpointError: `details` holds no version.
        """
        requires = self.details.get("requires", {})
        if not isinstance(requires, dict):
            raise CheckpointError(
                f"{MANIFEST}: details: requires: expected versions, got {shorten(requires)}"
            )
        version = requires.get(runtime)
        if version is None or (isinstance(version, str) and _VERSION.fullmatch(version)):
            return version
        raise CheckpointError(f"{MANIFEST}: details: requires: expected versions, got {shorten(version)}")

    @cached_property
    def sam_config(self) -> SamConfig:
        """Configuration of the model.

        Raises:
            CheckpointError: No model can be built from it.
        """
        return parse_config(self.config, f"{MANIFEST}: config")

    def read_processor(self, folder: Path) -> SamProcessor:
        """Load the processor of an exported folder.

        Raises:
            CheckpointError: It is damaged, or not the processor that the model was exported with.
        """
        processor = load_processor(folder, self.sam_config)
        if self.version > 1:
            for name, actual in processor_fields(processor).items():
                if self.processor.get(name) != actual:
                    raise CheckpointError(
                        f"{folder}: the processor was altered: expected {name} "
                        f"{shorten(self.processor.get(name))} as in {MANIFEST}, got {shorten(actual)}; "
                        "export the model again"
                    )
        return processor


def manifest_hash(values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the fields of a manifest but `sha256`, as canonical JSON."""
    covered = {name: value for name, value in values.items() if name != "sha256"}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def is_export(folder: str | Path) -> bool:
    """Return whether a folder is an export."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of an exported folder, and check it and the model files it names.

    Raises:
        CheckpointError: The folder is not an export, was written by a newer saqsam, or holds a manifest or a model file
            that is missing, damaged or altered.
    """
    manifest = parse_manifest(folder)
    check_files(Path(folder), manifest)
    return manifest


def parse_manifest(folder: str | Path) -> Manifest:
    """Read and check the manifest of an exported folder, without looking at the model files.

    Raises:
        CheckpointError: As for `read_manifest`. A folder in the layout of other clients is refused, too.
    """
    path = Path(folder) / MANIFEST
    try:
        raw = read_json_object(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not an export of saqsam: it has no {MANIFEST}") from error
    version = raw.get("version")
    if type(version) is not int or version not in (1, MANIFEST_VERSION):
        raise CheckpointError(
            f"{path}: expected version {MANIFEST_VERSION}, got {shorten(version)}; export the model again"
        )
    if version == MANIFEST_VERSION and raw.get("sha256") != manifest_hash(raw):
        raise CheckpointError(f"{path} was altered: its hash differs; export the model again")
    layout = raw.get("layout", OWN_LAYOUT)
    if layout != OWN_LAYOUT:
        raise CheckpointError(
            f"{folder}: written in the layout {shorten(layout)} for other clients; to run it in saqsam, export the "
            "model without a layout"
        )
    values = _checked(raw, version, str(path))
    manifest = Manifest(**values)
    _check_recipe(manifest, str(path))
    parse_config(manifest.config, f"{path}: config")
    if version == 1:
        warnings.warn(
            f"{path}: written by an older saqsam, its configuration and processor are protected by no hash; "
            "export the model again",
            stacklevel=2,
        )
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Check that the model files are in the folder and have the hashes that the manifest states.

    Raises:
        CheckpointError: A file is missing, lies outside the folder, is too large, cut short or altered.
    """
    for name, expected in manifest.files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if file.resolve().parent != folder.resolve():
            raise CheckpointError(
                f"{file}: expected a file in the folder, found a link that points outside it"
            )
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise CheckpointError(f"{file}: expected at most {MAX_FILE_BYTES:,} bytes, got {size:,}")
        if file_hash(file) != expected:
            raise CheckpointError(
                f"{file} was cut short or altered: its hash differs; export the model again"
            )


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_CHECKS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "format": (f"one of {', '.join(FORMATS)}", lambda v: isinstance(v, str) and v in FORMATS),
    "single_mask": ("true or false", lambda v: isinstance(v, bool)),
    "recipe": ("a JSON object, or null for a float model", lambda v: v is None or isinstance(v, dict)),
    "name": ("a short name", lambda v: isinstance(v, str) and 0 < len(v) <= _MAX_NAME),
    "checkpoint": ("a SHA-256", lambda v: isinstance(v, str) and _SHA256.fullmatch(v) is not None),
    "config": ("a JSON object", lambda v: isinstance(v, dict)),
    "processor": ("a JSON object", lambda v: isinstance(v, dict)),
    "files": (
        "a JSON object of SHA-256 hashes",
        lambda v: (
            isinstance(v, dict) and all(isinstance(h, str) and _SHA256.fullmatch(h) for h in v.values())
        ),
    ),
    "details": ("a JSON object", lambda v: isinstance(v, dict)),
}


def _checked(raw: Mapping[str, Any], version: int, source: str) -> dict[str, Any]:
    """Return the fields of a manifest after checking their names and types."""
    absent = {"processor"} if version == 1 else set()
    unknown = raw.keys() - _CHECKS.keys() - {"version", "sha256"}
    if unknown:
        raise CheckpointError(f"{source}: unknown field {shorten(min(unknown))}")
    values: dict[str, Any] = {"version": version}
    for name, (expected, accepts) in _CHECKS.items():
        if name in absent:
            continue
        if name not in raw:
            raise CheckpointError(f"{source}: field {name!r} is missing")
        if not accepts(raw[name]):
            raise CheckpointError(f"{source}: {name}: expected {expected}, got {shorten(raw[name])}")
        values[name] = raw[name]
    names = FORMATS[values["format"]].file_names()
    if values["files"].keys() != names:
        raise CheckpointError(
            f"{source}: files: expected {', '.join(sorted(names))}, got {shorten(sorted(values['files']))}"
        )
    return values


def _check_recipe(manifest: Manifest, source: str) -> None:
    expected = FLOAT_NAME
    if manifest.recipe is not None:
        try:
            expected = Recipe.from_dict(manifest.recipe).name
        except ValueError as error:
            raise CheckpointError(f"{source}: {shorten_message(error)}") from error
    if manifest.name != expected:
        raise CheckpointError(
            f"{source}: name: expected the recipe's, {shorten(expected)}, got {shorten(manifest.name)}"
        )
