"""Options of all commands for their progress reports: `--quiet` and `--log-json`."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from saqsam._version import __version__
from saqsam.cli import reporting
from saqsam.cli.option_groups import OptionGroup
from saqsam.cli.terminal import print_message


@dataclass(frozen=True)
class LogOptions(OptionGroup):
    """Choose what a command reports beside its results."""

    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show no progress: only results, warnings and errors.")
    ] = False
    log_json: Annotated[
        str | None,
        typer.Option(
            "--log-json",
            metavar="FILE",
            help="Append events to a file as they happen, one JSON object per line; - for standard error, instead of "
            "progress and messages.",
        ),
    ] = None


def with_log_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add `LogOptions` to a command, and report as they say while it runs."""

    @functools.wraps(command)
    def logged(**values: Any) -> None:
        options = LogOptions.collect(values)
        current = reporting.current()
        current.quiet = options.quiet
        # Of the processes that torchrun starts, one alone keeps the log, as it alone prints results.
        if options.log_json is not None and current.is_first:
            current.log = reporting.EventLog(options.log_json, _complain)
        reporting.emit("start", command=command.__name__, version=__version__, arguments=sys.argv[1:])
        command(**values)

    own = inspect.signature(command)
    logged.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), *LogOptions.parameters()]
    )
    logged.__annotations__ = {p.name: p.annotation for p in logged.__signature__.parameters.values()}  # type: ignore[attr-defined]
    return logged


def _complain(message: str) -> None:
    print_message("note:", "yellow", message)
