"""The pinned onnxruntime-web: its files and hashes, where a page loads it from, and a check of a local copy."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saqsam.utils.errors import shorten

VERSION = "1.30.0"
"""Version of onnxruntime-web that web exports are made for and tested with."""
FOLDER = "onnxruntime-web"
"""Folder of an export that holds a copy."""
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
"""Address that the page loads the files from if the export holds no copy; the page checks their hashes."""
FILES: Mapping[str, tuple[str, str]] = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
"""Script and WebAssembly program of each backend. The first is the smallest build that runs the graphs."""
SHA384: Mapping[str, str] = {
    "ort.wasm.bundle.min.mjs": "PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort-wasm-simd-threaded.wasm": "vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
    "ort.webgpu.bundle.min.mjs": "1ntMeyj+z5diX6vBR5h+zlJBPc4iNvhCxE6nlammh8daBYcLBZkzrwDkuJjhwI+f",
    "ort-wasm-simd-threaded.asyncify.wasm": "EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
}
"""SHA-384 of the files, in base64."""

_INSTALL = f"npm install onnxruntime-web@{VERSION}, and pass node_modules/onnxruntime-web"


def check_runtime_files(folder: Path) -> Path:
    """Check an unpacked npm package of onnxruntime-web.

    Args:
        folder: The package, its folder `dist`, or any folder with the two files of the WebAssembly backend.

    Returns:
        The folder that holds the files.

    Raises:
        ValueError: It is not a folder, is another version, or a file is missing or altered. The message names the
            expected version.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected the folder of onnxruntime-web {VERSION}, found none: {_INSTALL}"
        )
    files = folder / "dist" if (folder / "dist").is_dir() else folder
    for package in (folder / "package.json", folder.parent / "package.json"):
        found = _version_of(package)
        if found is not None and found != VERSION:
            raise ValueError(
                f"{folder}: expected onnxruntime-web {VERSION}, found {shorten(found)}: {_INSTALL}"
            )
    for name in FILES["wasm"]:
        path = files / name
        if not path.is_file():
            raise ValueError(
                f"{folder}: expected onnxruntime-web {VERSION}, but {name} is missing: {_INSTALL}"
            )
        if _sha384(path) != SHA384[name]:
            raise ValueError(
                f"{path}: expected the file of onnxruntime-web {VERSION}, found another: {_INSTALL}"
            )
    return files


def copy_runtime(files: Path, folder: Path) -> None:
    """Copy the files of the WebAssembly backend, from a folder of `check_runtime_files`, into an export."""
    (folder / FOLDER).mkdir()
    for name in FILES["wasm"]:
        shutil.copyfile(files / name, folder / FOLDER / name)


def runtime_details(*, is_copied: bool) -> dict[str, Any]:
    """Return what `export.json` says of onnxruntime-web: version, address, files by backend, and their hashes."""
    return {
        "version": VERSION,
        "base": f"{FOLDER}/" if is_copied else CDN,
        "files": {backend: list(names) for backend, names in FILES.items()},
        "integrity": {name: f"sha384-{digest}" for name, digest in SHA384.items()},
    }


def _version_of(package: Path) -> str | None:
    """Return the version that a `package.json` of onnxruntime-web states; None for other files."""
    try:
        content = json.loads(package.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("name") != "onnxruntime-web":
        return None
    return str(content.get("version"))


def _sha384(path: Path) -> str:
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "sha384").digest()).decode()
