"""Tensors captured once and read many times: in memory up to a budget, on disk beyond it."""

from __future__ import annotations

import math
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class MemoryBudget:
    """The bytes of captured tensors that may be in memory at once, over all stores.

    A context manager, which closes the files of all stores. They have no name, so that the operating system removes
    them however the process ends.

    Args:
        limit: Bytes.
        folder: Existing folder for what does not fit; None for the system's folder of temporary files.

    Attributes:
        used: Bytes in memory.
        spilled: Bytes on disk.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self.limit, self.folder = limit, folder
        self.used = 0
        self.spilled = 0
        self._files = ExitStack()

    def __enter__(self) -> MemoryBudget:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def open_file(self) -> IO[bytes]:
        """Open a file without a name; closing it frees its space."""
        return self._files.enter_context(tempfile.TemporaryFile(dir=self.folder))

    def take(self, size: int) -> bool:
        """Take `size` bytes if they are left."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True


class TensorStore:
    """A list of tuples of tensors; each item is in memory or on disk, whatever the budget allowed when it came.

    Args:
        budget: The budget, shared with other stores.
        what: Whose tensors these are, for error messages.
    """

    def __init__(self, budget: MemoryBudget, what: str) -> None:
        self._budget, self._what = budget, what
        self._items: list[tuple[Tensor | _Spilled, ...]] = []
        self._held = 0
        self._file: IO[bytes] | None = None

    def append(self, tensors: tuple[Tensor, ...]) -> None:
        """Add an item; tensors in memory stay on their device.

        Raises:
            ValueError: If one item alone is larger than the budget.
        """
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if size > self._budget.limit:
            raise ValueError(
                f"memory of {_show(self._budget.limit)} is too little for {self._what}: one image needs {_show(size)}"
            )
        if self._budget.take(size):
            self._held += size
            self._items.append(tuple(tensor.detach().contiguous() for tensor in tensors))
        else:
            self._items.append(tuple(self._spill(tensor) for tensor in tensors))

    def _spill(self, tensor: Tensor) -> _Spilled:
        # Contiguous as in memory: what is computed from it must not depend on where it was.
        array = tensor.detach().cpu().contiguous().numpy()
        try:
            if self._file is None:
                self._file = self._budget.open_file()
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(array.tobytes())
            self._file.flush()
        except OSError as error:
            where = str(self._budget.folder or tempfile.gettempdir())
            raise OSError(error.errno, f"{error.strerror}, to hold {self._what}", where) from error
        self._budget.spilled += array.nbytes
        return _Spilled(self._file, offset, array.shape, array.dtype)

    def __len__(self) -> int:
        return len(self._items)

    def get(self, index: int, device: torch.device, chosen: Tensor | None = None) -> tuple[Tensor, ...]:
        """An item on `device`.

        Args:
            index: Which.
            device: Where to.
            chosen: Of tensors with more than one entry along the first axis, take these alone.
        """
        return tuple(_read(tensor, device, chosen) for tensor in self._items[index])

    def clear(self) -> None:
        """Forget all items and give their memory and files back."""
        for item in self._items:
            self._budget.spilled -= sum(one.size for one in item if isinstance(one, _Spilled))
        if self._file is not None:
            self._file.close()
            self._file = None
        self._budget.used -= self._held
        self._held = 0
        self._items.clear()


@dataclass(frozen=True)
class _Spilled:
    """A tensor on disk: C-contiguous values at an offset in a file."""

    file: IO[bytes]
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def map(self) -> NDArray[Any]:
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


def _read(tensor: Tensor | _Spilled, device: torch.device, chosen: Tensor | None) -> Tensor:
    if isinstance(tensor, _Spilled):
        mapped = tensor.map()
        picked = mapped if chosen is None or len(mapped) == 1 else mapped[chosen.cpu().numpy()]
        return torch.from_numpy(np.array(picked)).to(device)
    if chosen is not None and len(tensor) > 1:
        tensor = tensor[chosen.to(tensor.device)]
    return tensor.to(device)


def _show(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
