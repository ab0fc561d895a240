"""Processes that share the images of a run, as `torchrun` starts them: their ranks, and what they exchange.

Values are exchanged through main memory by a gloo group of their own, whatever the backend of the default group, and
without a time limit: while rank 0 learns, the others wait.
"""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from saqsam.utils.errors import PeerError
from saqsam.utils.progress import Progress

_T = TypeVar("_T")
_NO_LIMIT = timedelta(days=365)


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


def share(count: int) -> range:
    """Return this rank's share of the numbers below `count`: every k-th one, for k ranks."""
    return range(rank(), count, world_size())


def shared_map(
    work: Callable[[int], _T], count: int, phase: str = "", progress: Progress | None = None
) -> list[_T]:
    """Call a function with each number below `count`, which the ranks share, and return all results on every rank.

    Args:
        work: Function of a number. Tensors in its result must be on the CPU.
        count: Number of calls.
        phase: Name of the phase in reports of progress.
        progress: Progress callback; it counts the calls of this rank.

    Raises:
        PeerError: The function has raised on another rank, or another process has ended.
    """
    own = share(count)
    if progress is not None:
        progress(phase, 0, len(own))
    found: dict[int, _T] = {}
    with agreement():
        for step, number in enumerate(own):
            found[number] = work(number)
            if progress is not None:
                progress(phase, step + 1, len(own))
    everywhere = {number: result for part in all_gather(found) for number, result in part.items()}
    return [everywhere[number] for number in range(count)]


def gather(content: Any) -> list[Any] | None:
    """Gather one value per rank on rank 0; other ranks receive None. Waits for all ranks.

    Raises:
        PeerError: Another process has ended.
    """
    if world_size() == 1:
        return [content]
    gathered: list[Any] | None = [None] * world_size() if rank() == 0 else None
    with _exchanging() as group:
        torch.distributed.gather_object(content, gathered, group=group)
    return gathered


def all_gather(content: _T) -> list[_T]:
    """Return the values of all ranks, in the order of ranks, on every rank. Tensors must be on the CPU.

    Raises:
        PeerError: Another process has ended.
    """
    if world_size() == 1:
        return [content]
    gathered: list[Any] = [None] * world_size()
    with _exchanging() as group:
        torch.distributed.all_gather_object(gathered, content, group=group)
    return gathered


def on_first(work: Callable[[], _T]) -> _T:
    """Call a function on rank 0 alone, and return its result on every rank. Tensors in it must be on the CPU.

    Raises:
        PeerError: The function has raised on rank 0, or another process has ended.
    """
    if world_size() == 1:
        return work()
    results: list[Any] = [None]
    with agreement():
        if rank() == 0:
            results[0] = work()
    with _exchanging() as group:
        torch.distributed.broadcast_object_list(results, 0, group=group)
    result: _T = results[0]
    return result


def send_to_first(tensors: tuple[Tensor, ...]) -> None:
    """Send tensors to rank 0, which calls `receive`. Returns when rank 0 has them.

    Raises:
        PeerError: Another process has ended.
    """
    on_cpu = [tensor.detach().cpu().contiguous() for tensor in tensors]
    with _exchanging() as group:
        header = [[(tuple(tensor.shape), tensor.dtype) for tensor in on_cpu]]
        torch.distributed.send_object_list(header, 0, group=group)
        for tensor in on_cpu:
            torch.distributed.send(tensor, 0, group=group)


def receive(source: int) -> tuple[Tensor, ...]:
    """Receive the tensors that a rank sends by `send_to_first`, on the CPU.

    Raises:
        PeerError: Another process has ended.
    """
    with _exchanging() as group:
        header: list[Any] = [None]
        torch.distributed.recv_object_list(header, source, group=group)
        tensors = tuple(torch.empty(shape, dtype=dtype) for shape, dtype in header[0])
        for tensor in tensors:
            torch.distributed.recv(tensor, source, group=group)
    return tensors


@contextmanager
def agreement() -> Iterator[None]:
    """End the block on every rank with an exception if it raises on one: rank 0 raises that one, the others PeerError.

    Work that may fail on one rank alone belongs in such a block, right before what the ranks exchange next. A block
    around others then tells the errors that all ranks raise alike once.
    """
    if world_size() == 1:
        yield
        return
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    errors = all_gather(None if error is None else _portable(error))
    failed = next((number for number, one in enumerate(errors) if one is not None), None)
    if failed is None:
        return
    if rank() > 0:
        raise PeerError(f"rank {failed} has failed: {errors[failed]}") from error
    raise (error or errors[failed]) from None  # type: ignore[misc]


def _portable(error: Exception) -> Exception:
    """Return an exception that another process can raise."""
    try:
        copied = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(repr(error))
    return copied if isinstance(copied, Exception) else RuntimeError(repr(error))


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started, if any, while the block runs."""
    if _launched_processes() == 1 or _is_group():
        yield
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield
    finally:
        # A group that outlives its destruction ends its threads when the interpreter exits, which may abort it.
        _exchange_group.cache_clear()
        torch.distributed.destroy_process_group()


@contextmanager
def _exchanging() -> Iterator[Any]:
    """Yield the group of all processes for values in main memory, and tell lost connections as PeerError."""
    try:
        yield _exchange_group(torch.distributed.group.WORLD)
    except RuntimeError as error:
        raise PeerError("another process of this run has ended: see its own message") from error


@functools.lru_cache(maxsize=1)
def _exchange_group(_world: Any) -> Any:
    """Create the group, once for each default group; all ranks create it at their first exchange."""
    return torch.distributed.new_group(backend="gloo", timeout=_NO_LIMIT)


def _is_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
