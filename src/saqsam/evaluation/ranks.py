"""Processes that share the images of an evaluation, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed


def rank() -> int:
    """Return the rank of this process, from 0; 0 for a single process."""
    return torch.distributed.get_rank() if _is_group() else 0


def launched_rank() -> int:
    """Return the rank that `torchrun` assigned, before the process joins its group; 0 without `torchrun`."""
    return int(os.environ.get("RANK", "0")) if _launched_processes() > 1 else 0


def _launched_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def world_size() -> int:
    """Return the number of processes."""
    return torch.distributed.get_world_size() if _is_group() else 1


def gather(content: Any) -> list[Any] | None:
    """Gather one value per rank on rank 0; other ranks receive None. Waits for all ranks."""
    if world_size() == 1:
        return [content]
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    torch.distributed.gather_object(content, gathered)
    return gathered


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started, if any, while the block runs."""
    if _launched_processes() == 1 or _is_group():
        yield
        return
    # gloo even with accelerators: records are exchanged from main memory.
    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _is_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
