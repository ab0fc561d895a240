"""The progress callback that every long-running function of the library takes."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A callback that reports the progress of a phase.

    Long-running functions call it at the start of a phase and after each step. They run one phase or several, one
    after the other. A phase may end early, as with learning that has converged.

    Example:
        >>> def show(phase: str, done: int, total: int, note: str = "") -> None:
        ...     print(f"{phase}: {done} of {total} {note}")
        >>> saqsam.quantize(model, progress=show)  # doctest: +SKIP
    """

    def __call__(self, phase: str, done: int, total: int, note: str = "", /) -> None:
        """Report the start of a phase or a finished step.

        Args:
            phase: Name of the phase, such as "calibrating"; it is the same in all reports of the phase.
            done: Number of finished steps of the phase. The first report of a phase announces it: its number is 0, or
                that of the steps that an earlier, interrupted run had finished.
            total: Total number of steps of the phase.
            note: Remark about the step, such as its loss; may be empty.
        """


def renamed(progress: Progress | None, phase: str) -> Progress | None:
    """Return a progress callback that reports phases to another one under one name; None if there is no callback."""
    if progress is None:
        return None

    def report(_: str, done: int, total: int, note: str = "", /) -> None:
        progress(phase, done, total, note)

    return report
