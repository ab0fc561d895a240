"""The files of finished steps, from which an interrupted quantization can be resumed.

The folder is untrusted input: every file is parsed strictly, and a digest binds each step to its run, so that an
altered step, or a step of another run, is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from saqsam.utils.atomic_write import write_atomic
from saqsam.utils.errors import CheckpointError, shorten_message
from saqsam.utils.strict_json import parse_json_object, read_json_object
from saqsam.utils.tensor_bytes import tensor_bytes

ARGUMENTS = "arguments.json"
_NOTES, _DIGEST = "notes", "sha256"
_STEP = re.compile(r"ranges|unit-\d+")
"""Names of the steps of a quantization."""
_NOT_OURS = re.compile(r"(?!lock(-\d+)?$|staged$|replaced$|\.).*")
"""Names other than those of locks and temporary files, which the command line also keeps in the folder."""


class Journal:
    """A folder of finished steps, created when the first step is saved.

    Args:
        folder: The folder.
        arguments: Everything that decides the result. Only a run with equal arguments can be resumed.

    Raises:
        ValueError: The folder holds a run with other arguments, or is not a journal.
        CheckpointError: Its `arguments.json` is damaged.
    """

    def __init__(self, folder: Path, arguments: Mapping[str, str]) -> None:
        self.folder, self.arguments = folder, dict(arguments)
        path = folder / ARGUMENTS
        if path.exists():
            try:
                known = read_json_object(path)
            except CheckpointError as error:
                raise CheckpointError(f"{error}; remove {folder} to start again") from error
            other = sorted(key for key in {*known, *arguments} if known.get(key) != arguments.get(key))
            if other:
                names = shorten_message(", ".join(other))
                raise ValueError(
                    f"{folder} holds an unfinished run with another {names}; its finished steps are kept. "
                    f"Repeat that run, choose another folder, or remove this one to start again"
                )
        elif folder.exists() and (
            not folder.is_dir() or any(_NOT_OURS.fullmatch(item.name) for item in folder.iterdir())
        ):
            raise ValueError(f"{folder} is in the way: it is not an unfinished run of saqsam")

    def path(self, step: str) -> Path:
        """Return the path of a step's file."""
        return self.folder / f"{step}.safetensors"

    def load(self, step: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and notes of a finished step; None if it is not finished.

        Raises:
            CheckpointError: The file is damaged, altered, or from another run.
        """
        path = self.path(step)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise damaged_step(path, shorten_message(error)) from error
        notes = metadata.get(_NOTES, "")
        if _DIGEST not in metadata:
            raise damaged_step(path, "it has no digest, as in older versions of saqsam")
        if metadata[_DIGEST] != self._digest(step, tensors, notes):
            raise damaged_step(path, "its digest does not match its content and the arguments of this run")
        try:
            return tensors, parse_json_object(notes, "its notes")
        except CheckpointError as error:
            raise damaged_step(path, str(error)) from error

    def save(self, step: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Save a finished step by an atomic write.

        Args:
            step: Name of the step.
            tensors: Tensors by name, on the CPU.
            notes: Plain JSON values.
        """
        if not (self.folder / ARGUMENTS).exists():
            content = json.dumps(self.arguments, indent=1, sort_keys=True)
            write_atomic(self.folder / ARGUMENTS, content.encode())
        text = json.dumps(notes, allow_nan=False)
        metadata = {_NOTES: text, _DIGEST: self._digest(step, tensors, text)}
        write_atomic(self.path(step), save(dict(tensors), metadata=metadata))

    def _digest(self, step: str, tensors: Mapping[str, Tensor], notes: str) -> str:
        """Return the SHA-256 of a step's run, name and notes, and of the dtype, shape and bytes of its tensors."""
        digest = hashlib.sha256(json.dumps([self.arguments, step, notes], sort_keys=True).encode())
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
            digest.update(tensor_bytes(tensor))
        return digest.hexdigest()


def remove_steps(folder: Path) -> None:
    """Remove the finished steps in a folder, and the folder if nothing else is in it.

    The arguments go last: if the process ends in between, what is left is still an unfinished run.
    """
    for path in [*sorted(folder.glob("*.safetensors")), folder / ARGUMENTS]:
        if path.name == ARGUMENTS or _STEP.fullmatch(path.stem):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # other files, or no such folder
        folder.rmdir()


def damaged_step(path: Path, why: str) -> CheckpointError:
    """Return the error about a step's file that cannot be used."""
    return CheckpointError(f"{path} is damaged: {why}; remove it to redo this step")
