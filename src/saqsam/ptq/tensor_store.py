"""Storage for captured tensors: in memory up to a budget, spilled to disk beyond it."""

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
    """Bytes of captured tensors that all stores together may hold in memory.

    A context manager that closes the files of all stores on exit. The files have no name, so the operating system
    removes them however the process ends.

    Args:
        limit: Number of bytes.
        folder: Existing folder for spilled tensors; None for the system's folder for temporary files.

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
        """Open an unnamed file; closing it frees its space."""
        return self._files.enter_context(tempfile.TemporaryFile(dir=self.folder))

    def take(self, size: int) -> bool:
        """Reserve `size` bytes; return False if fewer are left."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True


class TensorStore:
    """A list of tuples of tensors. An item is held in memory, or on disk if it exceeded the budget when appended.

    Args:
        budget: Budget, shared with other stores.
        content: Description of the tensors, for error messages.
    """

    def __init__(self, budget: MemoryBudget, content: str) -> None:
        self._budget, self._content = budget, content
        self._items: list[tuple[Tensor | _Spilled, ...]] = []
        self._held = 0
        self._file: IO[bytes] | None = None

    def append(self, tensors: tuple[Tensor, ...]) -> None:
        """Append an item; tensors held in memory stay on their device.

        Raises:
            ValueError: The item alone exceeds the budget.
            OSError: The item cannot be written to disk.
        """
        self._items.append(self._hold(tensors))

    def append_empty(self, count: int) -> None:
        """Append empty items, which `fill` may replace."""
        self._items += [()] * count

    def fill(self, index: int, tensors: tuple[Tensor, ...]) -> None:
        """Replace an empty item; arguments and errors are those of `append`."""
        assert not self._items[index], "only an empty item can be filled"
        self._items[index] = self._hold(tensors)

    def _hold(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor | _Spilled, ...]:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if size > self._budget.limit:
            raise ValueError(
                f"memory of {_show(self._budget.limit)} is too little for {self._content}: "
                f"one image needs {_show(size)}"
            )
        if self._budget.take(size):
            self._held += size
            return tuple(tensor.detach().contiguous() for tensor in tensors)
        return tuple(self._spill(tensor) for tensor in tensors)

    def _spill(self, tensor: Tensor) -> _Spilled:
        # Contiguous as in memory, so that results do not depend on where a tensor was held.
        array = tensor.detach().cpu().contiguous().numpy()
        try:
            if self._file is None:
                self._file = self._budget.open_file()
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(array.tobytes())
            self._file.flush()
        except OSError as error:
            where = str(self._budget.folder or tempfile.gettempdir())
            raise OSError(error.errno, f"{error.strerror}, to hold {self._content}", where) from error
        self._budget.spilled += array.nbytes
        return _Spilled(self._file, offset, array.shape, array.dtype)

    def __len__(self) -> int:
        return len(self._items)

    def get(self, index: int, device: torch.device, chosen: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return an item.

        Args:
            index: Index of the item.
            device: Device to move the tensors to.
            chosen: Indices along the first axis, int64 [p], to select from tensors with more than one entry along it;
                None for all.
        """
        return tuple(_read(tensor, device, chosen) for tensor in self._items[index])

    def clear(self) -> None:
        """Remove all items and free their memory and files."""
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


def select(tensors: tuple[Tensor, ...], chosen: Tensor) -> tuple[Tensor, ...]:
    """Select entries along the first axis, int64 [p], of tensors that have more than one entry along it."""
    return tuple(t[chosen.to(t.device)] if len(t) > 1 else t for t in tensors)


def _read(tensor: Tensor | _Spilled, device: torch.device, chosen: Tensor | None) -> Tensor:
    if isinstance(tensor, _Spilled):
        mapped = tensor.map()
        selected = mapped if chosen is None or len(mapped) == 1 else mapped[chosen.cpu().numpy()]
        return torch.from_numpy(np.array(selected)).to(device)
    return (tensor if chosen is None else select((tensor,), chosen)[0]).to(device)


def _show(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
