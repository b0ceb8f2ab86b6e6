"""`forge.toml`: every option of a command in a file; what is typed goes over it.

[train]
strategy = "pet"
shots = 16
learning-rate = [1e-5, 3e-5]
options = ["strategy.repetitions=2"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click
from click.types import FloatParamType, IntParamType

from promptforge.errors import UserError, did_you_mean, listed
from promptforge.remote import expanded

F = TypeVar("F", bound=Callable[..., Any])
FILE = "forge.toml"


def with_config(function: F) -> F:
    """Add `--config`; ./forge.toml is read where it is not given."""
    return click.option(
        "--config", type=click.Path(), is_eager=True, expose_value=False, callback=_read,
        help=f"Options in a TOML file, [COMMAND] of it. [default: {FILE} where there is one]",
    )(function)  # fmt: skip


def _reads(group: click.Context, name: str) -> bool:
    """Whether a command reads its section."""
    assert isinstance(group.command, click.Group)
    command = group.command.get_command(group, name)
    return command is not None and any(p.callback is _read for p in command.params)


def _read(context: click.Context, _: click.Parameter, value: str | None) -> None:
    path = Path(value or FILE)
    if not path.is_file():
        if value:
            raise UserError(f"There is no file {value}.")
        return
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    command = context.command
    group = context.find_root()
    commands = group.command.list_commands(group) if isinstance(group.command, click.Group) else []
    for name, section in data.items():
        if name in commands and not isinstance(section, dict):
            raise UserError(
                f"{path}: {name!r} is a command: write [{name}], and its options below it."
            )
        if name not in commands:
            raise UserError(
                f"{path}: {name!r} is no command with options.{did_you_mean(name, commands)} Write "
                f"[{command.name}], and the options below it."
            )
        if not _reads(group, name):
            raise UserError(
                f"{path}: [{name}] would never be read: {name!r} takes its options from the command line "
                "only. Take the section out, and type them."
            )
    section = data.get(command.name or "", {})
    known: dict[str, click.Parameter] = {}
    for parameter in command.params:
        for name in (parameter.name or "", *(o.lstrip("-") for o in parameter.opts)):
            known[name.replace("-", "_")] = parameter
    defaults: dict[str, Any] = {}
    for key, given in section.items():
        found = known.get(key.replace("-", "_"))
        if found is None or found.name in (None, "config", "help"):
            names = sorted({p.name.replace("_", "-") for p in command.params if p.name})
            raise UserError(
                f"{path}: [{command.name}] has no option {key!r}.{did_you_mean(key, names)} There are: {listed(names, 60)}."
            )
        several = getattr(found, "multiple", False) or found.nargs == -1
        values = given if isinstance(given, list) else [given]
        if (len(values) != 1 and not several) or any(isinstance(v, list | dict) for v in values):
            raise UserError(f"{path}: [{command.name}] {key} = {given!r}: write one value.")
        for value in values:
            _check_number(found, value, f"{path}: [{command.name}] {key} = {value!r}")
        values = [_at_home(value) for value in values]
        defaults[found.name or ""] = values if several else values[0]
    context.default_map = {**defaults, **(context.default_map or {})}


def _at_home(value: Any) -> Any:
    """A value with the home folder for "~/", as the shell has it of what is typed."""
    return str(expanded(value)) if isinstance(value, str) and value.startswith("~/") else value


def _check_number(option: click.Parameter, value: object, where: str) -> None:
    """Raise a `UserError` for what click would make a number of by itself: 3 of 3.7, 1 of true."""
    whole = isinstance(option.type, IntParamType)
    if whole and isinstance(value, bool | float):
        raise UserError(f"{where}: write a whole number.")
    if isinstance(option.type, FloatParamType) and isinstance(value, bool):
        raise UserError(f"{where}: write a number.")
