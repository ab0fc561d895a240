"""The progress callback that every long-running function of the library takes."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A callback that reports the progress of a phase.

    Long-running functions call it after each step. They run one phase or several, one after the other.

    Example:
        >>> def show(phase: str, done: int, total: int, note: str = "") -> None:
        ...     print(f"{phase}: {done} of {total} {note}")
        >>> saqsam.quantize(model, progress=show)  # doctest: +SKIP
    """

    def __call__(self, phase: str, done: int, total: int, note: str = "", /) -> None:
        """Report a finished step.

        Args:
            phase: Name of the phase, such as "calibrating".
            done: Number of finished steps of the phase, starting at 1.
            total: Total number of steps of the phase.
            note: Remark about the step, such as its loss; may be empty.
        """
