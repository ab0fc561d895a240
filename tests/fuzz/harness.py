"""Run mutants and count what happens to each: the table that `make fuzz` prints.

A mutant is a function that loads a damaged file and uses it. The harness classifies how it ends. Only the outcomes in
`GOOD` are acceptable.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

REFUSED = "refused"
"""A `ValueError` of one short line, as promised."""
EQUAL = "equal"
"""Loaded, and gives exactly what the undamaged file gives."""
VALID = "valid change"
"""Loaded as another file that is valid in itself, its hash recomputed, with finite results."""
DIFFERENT = "SILENTLY DIFFERENT"
FOREIGN = "FOREIGN EXCEPTION"
LONG = "LONG MESSAGE"
HANG = "HANG"
GOOD = (REFUSED, EQUAL, VALID)

SECONDS = 5
"""A mutant that takes more time of the processor hangs."""
MAX_MESSAGE = 1_000
"""Characters of an error message; paths of temporary folders are part of it."""
MAX_GIB = 2.0


class Different(Exception):
    """A mutant was loaded without a word and gives other results."""


@dataclass
class Tally:
    """Outcomes of the mutants of one kind.

    Attributes:
        kind: What was mutated.
        outcomes: Number of mutants by outcome.
        failures: One description for each bad outcome, at most twenty.
        slowest: Seconds of the slowest mutant.
    """

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def is_good(self) -> bool:
        """Return whether every outcome was acceptable."""
        return set(self.outcomes) <= set(GOOD)


def run(kind: str, mutants: Iterable[tuple[str, Callable[[], str]]]) -> Tally:
    """Run mutants.

    Args:
        kind: What is mutated, for the table.
        mutants: A label and a function each. The function returns `EQUAL` or `VALID`, raises `Different`, or raises
            whatever the code under test raises.
    """
    tally = Tally(kind)
    for label, use in mutants:
        start = time.perf_counter()
        outcome, detail = _outcome(use)
        tally.slowest = max(tally.slowest, time.perf_counter() - start)
        tally.outcomes[outcome] += 1
        if outcome not in GOOD and len(tally.failures) < 20:
            tally.failures.append(f"{outcome}: {label}: {detail}")
    return tally


def _outcome(use: Callable[[], str]) -> tuple[str, str]:
    try:
        with _time_limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return use(), ""
    except Different as error:
        return DIFFERENT, str(error)
    except _TimeLimit:
        return HANG, f"more than {SECONDS} s"
    except ValueError as error:
        message = str(error)
        if type(error).__module__.split(".")[0] not in ("builtins", "saqsam"):
            return FOREIGN, _describe(error)
        if len(message) > MAX_MESSAGE or "\n" in message:
            return LONG, f"{len(message)} characters: {message[:120]!r}"
        return REFUSED, ""
    except Exception as error:
        return FOREIGN, _describe(error)


def _describe(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]!r} at {last.filename.rpartition('/')[2]}:{last.lineno}"


class _TimeLimit(BaseException):
    """Raised by the timer; not an Exception, so that the code under test cannot catch it."""


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        raise _TimeLimit

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def report(tallies: Sequence[Tally]) -> int:
    """Print the table and every failure; return the exit code, 1 if an outcome was bad or memory exceeded the limit."""
    columns = [*GOOD, DIFFERENT, FOREIGN, LONG, HANG]
    print(f"{'mutated':<32}{'mutants':>9}" + "".join(f"{name:>20}" for name in columns) + f"{'slowest':>10}")
    for tally in tallies:
        counts = "".join(f"{tally.outcomes[name]:>20}" for name in columns)
        print(f"{tally.kind:<32}{tally.outcomes.total():>9}{counts}{tally.slowest:>8.1f} s")
    unit = 1 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    print(f"peak memory {peak:.2f} GiB")
    for tally in tallies:
        for failure in tally.failures:
            print(f"{tally.kind}: {failure}")
    return int(peak > MAX_GIB or not all(tally.is_good for tally in tallies))


def arguments(argv: Sequence[str] | None, *, count: int) -> argparse.Namespace:
    """Parse `--count` and `--seed`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=count, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)
