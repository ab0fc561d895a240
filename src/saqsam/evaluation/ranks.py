"""Several processes that share the images of an evaluation, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed


def rank() -> int:
    """Number of this process, from 0; 0 where there is only one."""
    return torch.distributed.get_rank() if _is_group() else 0


def launched_rank() -> int:
    """Return the rank that `torchrun` gave this process, before it joins the others; 0 without `torchrun`."""
    return int(os.environ.get("RANK", "0")) if _launched_processes() > 1 else 0


def _launched_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def world_size() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if _is_group() else 1


def gather(content: Any) -> list[Any] | None:
    """What each process gives, in the order of their ranks, to rank 0; None to the others. Waits for all."""
    if world_size() == 1:
        return [content]
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    torch.distributed.gather_object(content, gathered)
    return gathered


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started while the block runs; nothing to do where it did not."""
    if _launched_processes() == 1 or _is_group():
        yield
        return
    # gloo even beside accelerators: what is exchanged are records in main memory.
    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _is_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
