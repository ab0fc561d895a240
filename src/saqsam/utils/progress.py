"""The progress callback that every long-running function of the library takes."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A function that is told how far a phase has come.

    Long-running functions call it after each step. Phases follow one another; a function may have one or several.

    Example:
        >>> def show(phase: str, done: int, total: int, note: str = "") -> None:
        ...     print(f"{phase}: {done} of {total} {note}")
        >>> saqsam.quantize(model, progress=show)  # doctest: +SKIP
    """

    def __call__(self, phase: str, done: int, total: int, note: str = "", /) -> None:
        """Take note of a step.

        Args:
            phase: Name of the phase, such as "calibrating".
            done: Number of finished steps of the phase, from 1.
            total: Number of all its steps.
            note: Remark about the step, such as its loss; empty if there is none.
        """
