"""Commands that are imported when somebody asks for them: completion and one command's help need not wait for all the others."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, TypeVar

import typer
from typer._click.formatting import HelpFormatter
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command, get_group

T = TypeVar("T", TyperCommand, TyperGroup)
F = TypeVar("F", bound=Callable[..., Any])


class _Narrow(HelpFormatter):
    """Where there are few columns, long names of options stand on a line of their own."""

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write names and what they mean."""
        super().write_dl(rows, max(min(col_max, self.width // 4), 6) if self.width < 66 else col_max, col_spacing)


class NarrowContext(typer.Context):
    """What a command is called in; help in a form for few columns."""

    formatter_class = _Narrow


class Commands(MutableMapping[str, Any]):
    """What ``TyperGroup.commands`` has to be, filled as it is read; the order is that of --help.

    Args:
        package: where the modules are.
        commands: (module, function, name) of each command.
        groups: (module, name) of each group; the module has a ``typer.Typer`` called ``app``.
    """

    def __init__(self, package: str, commands: Sequence[tuple[str, str, str]], groups: Sequence[tuple[str, str]]) -> None:
        self._makers: dict[str, Callable[[], TyperCommand | TyperGroup]] = {}
        for module, function, name in commands:
            self._makers[name] = lambda module=module, function=function, name=name: _command(  # type: ignore[misc]
                getattr(importlib.import_module(f"{package}.{module}"), function), name
            )
        for module, name in groups:
            self._makers[name] = lambda module=module, name=name: _group(  # type: ignore[misc]
                importlib.import_module(f"{package}.{module}").app, name
            )
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._makers.setdefault(name, lambda: command)
        self._made[name] = command

    def __delitem__(self, name: str) -> None:
        del self._makers[name]
        self._made.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._makers

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def passing_on(function: F) -> F:
    """Mark a command that hands words on to another program: from the first that is no option of its own, all are the other's."""
    function.context_settings = {"allow_interspersed_args": False}  # type: ignore[attr-defined] # a mark, read below
    return function


def _command(function: Callable[..., Any], name: str) -> TyperCommand:
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(name, context_settings=getattr(function, "context_settings", None))(function)
    made = get_command(alone)
    assert isinstance(made, TyperCommand)  # noqa: S101 - an application of one command is that command
    return formed(made)


def _group(app: typer.Typer, name: str) -> TyperGroup:
    made = formed(get_group(app))
    made.name = name
    return made


def formed(command: T) -> T:
    """The command, with help that reads well at 40 columns, in a pipe and without colours: no boxes, whole sentences in lists."""
    command.rich_markup_mode = None
    command.context_class = NarrowContext
    command.short_help = first_sentence(command.help or "")
    for one in command.params:
        if isinstance(one, TyperOption) and one.metavar is None and not one.is_flag:
            one.metavar = _metavar(one)
    if isinstance(command, TyperGroup):
        for inner in command.commands.values():
            formed(inner)  # type: ignore[type-var] # of typer's two kinds, as everywhere
    return command


def _metavar(option: TyperOption) -> str:
    """What stands for an option's value: `worker|etcd`, N, FILE; typer would say `<list[worker|etcd]>`."""
    kind = option.type_descriptor
    if kind.is_choice:
        return "|".join(str(getattr(choice, "value", choice)) for choice in kind.choices or ())
    return "N" if kind.annotation in (int, float) or kind.is_ranged else "PATH" if kind.is_path else "TEXT"


def first_sentence(text: str) -> str:
    """What stands for a command in a list."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[a-z0-9)`])\.(?:\s|$)", paragraph, maxsplit=1)[0].rstrip(".")
