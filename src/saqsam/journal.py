"""What an unfinished quantization has on disk, so that it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from saqsam.output import write_whole

ARGUMENTS = "arguments.json"
_NOTES = "notes"


class Journal:
    """A folder of finished steps, made with the first of them.

    Args:
        folder: Where.
        arguments: All that decides about the result. A journal goes on only for the same.

    Raises:
        ValueError: If the folder belongs to a run with other arguments, or is no journal.
    """

    def __init__(self, folder: Path, arguments: Mapping[str, str]) -> None:
        self.folder, self.arguments = folder, dict(arguments)
        path = folder / ARGUMENTS
        if path.exists():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ValueError(f"{path} cannot be read: {error}; remove {folder} to start anew") from error
            other = sorted(key for key in {*known, *arguments} if known.get(key) != arguments.get(key))
            if other:
                raise ValueError(
                    f"{folder} holds an unfinished run with another {', '.join(other)}; its finished steps are kept. "
                    f"Run it again as it was, choose another --out, or remove that folder to start anew"
                )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is in the way: it is not an unfinished run of saqsam")

    def load(self, step: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and notes of a finished step; None if it is not finished.

        Raises:
            ValueError: If its file is damaged.
        """
        path = self._path(step)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                notes = json.loads(file.metadata()[_NOTES])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}; remove it to do this step anew") from error
        return tensors, notes

    def save(self, step: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Write a finished step; it is there only when whole."""
        if not (self.folder / ARGUMENTS).exists():
            content = json.dumps(self.arguments, indent=1, sort_keys=True)
            write_whole(self.folder / ARGUMENTS, content.encode())
        write_whole(self._path(step), save(dict(tensors), metadata={_NOTES: json.dumps(notes)}))

    def _path(self, step: str) -> Path:
        return self.folder / f"{step}.safetensors"
