"""Groups of options: a dataclass that commands take as one parameter, and the command line as single options."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Self, get_type_hints

import typer

from saqsam.evaluation.registry import TaskOption, task_options, tasks_with

MOST = 2**31 - 1
"""Largest count and seed; larger ones would overflow the integers of libraries."""
TASK_PANEL = "Task options"


def check_most(value: int | None) -> int | None:
    """Refuse numbers above `MOST`. The `max` of an option would do the same, but show up in its help.

    Raises:
        typer.BadParameter: The number is larger.
    """
    if value is not None and value > MOST:
        raise typer.BadParameter(f"expected at most {MOST}, got {value}")
    return value


class OptionGroup:
    """Base of dataclasses whose fields are options, annotated as typer wants them."""

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return one keyword-only parameter per option."""
        hints = get_type_hints(cls, include_extras=True)
        return [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=hints[field.name],
            )
            for field in fields(cls)  # type: ignore[arg-type]
        ]

    @classmethod
    def collect(cls, values: dict[str, Any]) -> Self:
        """Create the group from values by name, removing those that it takes."""
        return cls(**{parameter.name: values.pop(parameter.name) for parameter in cls.parameters()})


class TaskOptions(OptionGroup):
    """The options of all tasks in the registry.

    Attributes:
        panel: Panel of the help that lists the options; None for that of the other options.
        names_tasks: Whether the help of an option names the tasks that take it.
        values: Value of each option that was given, by name.
    """

    panel: ClassVar[str | None] = TASK_PANEL
    names_tasks: ClassVar[bool] = True

    def __init__(self, **values: Any) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}

    @classmethod
    def declared(cls) -> Sequence[TaskOption]:
        """Return the options of the group."""
        return tuple(task_options().values())

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """Return one keyword-only parameter per option, None where it is not given."""
        return [
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[option.type | None, cls._declare(option)],
            )
            for option in cls.declared()
        ]

    @classmethod
    def _declare(cls, option: TaskOption) -> Any:
        tasks = tasks_with(option.name)
        owners = f" (task{'s' if len(tasks) > 1 else ''} {', '.join(tasks)})" if cls.names_tasks else ""
        shown = option.shown_default or (None if option.default is None else str(option.default))
        return typer.Option(
            option_name(option.name),
            metavar=option.metavar,
            help=f"{option.help.removesuffix('.')}{owners}.",
            show_default=shown or False,
            min=option.minimum,
            max=option.maximum,
            callback=check_most if option.type is int else None,
            rich_help_panel=cls.panel,
        )


def option_name(name: str) -> str:
    """Return the name of an option on the command line: `--pred-iou` for `pred_iou`."""
    return f"--{name.replace('_', '-')}"


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter of a command that is an `OptionGroup` by the options of the group."""
    hints = get_type_hints(command, include_extras=True)
    groups = {
        name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, OptionGroup)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        parameters += (
            groups[name].parameters() if name in groups else [parameter.replace(annotation=hints[name])]
        )

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        collected = {name: group.collect(values) for name, group in groups.items()}
        command(**values, **collected)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded
