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
from click.core import ParameterSource
from click.types import BoolParamType, FloatParamType, IntParamType, StringParamType

from promptforge.errors import UserError, did_you_mean, listed
from promptforge.remote import expanded

F = TypeVar("F", bound=Callable[..., Any])
FILE = "forge.toml"
_SECTION = "promptforge.section"


def with_config(function: F) -> F:
    """Add `--config`; ./forge.toml is read where it is not given."""
    return click.option(
        "--config", type=click.Path(), is_eager=True, expose_value=False, callback=_read,
        help=f"Options in a TOML file, [COMMAND] of it. [default: {FILE} where there is one]",
    )(function)  # fmt: skip


def typed(name: str) -> bool:
    """Whether an option stands on the command line, and not in a file alone."""
    context = click.get_current_context()
    assert context is not None
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def passed_over(name: str, other: str) -> bool:
    """Whether an option stands in the file alone, where another one was typed that switches it off.

    Args:
        name, other: the options by click's names.
    """
    context = click.get_current_context()
    assert context is not None
    own, typed = (context.get_parameter_source(option) for option in (name, other))
    return own is ParameterSource.DEFAULT_MAP and typed is not ParameterSource.DEFAULT_MAP


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
            names = sorted(
                _name(p) for p in command.params if p.name not in (None, "config", "help")
            )
            raise UserError(
                f"{path}: [{command.name}] has no option {key!r}.{did_you_mean(key, names)} There are: {listed(names, 60)}."
            )
        if found.name in defaults:
            raise UserError(f"{path}: [{command.name}] {key!r} is there twice, under two names.")
        several = getattr(found, "multiple", False) or found.nargs == -1
        values = given if isinstance(given, list) else [given]
        if (len(values) != 1 and not several) or any(isinstance(v, list | dict) for v in values):
            raise UserError(f"{path}: [{command.name}] {key} = {given!r}: write one value.")
        for value in values:
            _check_kind(found, value, f"{path}: [{command.name}] {key} = {value!r}")
        values = [_at_home(value) for value in values]
        defaults[found.name or ""] = values if several else values[0]
    context.default_map = {**defaults, **(context.default_map or {})}
    context.meta[_SECTION] = f"{path}, [{command.name}]"


def blamed(mistake: click.ClickException) -> click.ClickException:
    """An error about an option's value, with the file's name where the value stands in one."""
    if not isinstance(mistake, click.BadParameter) or not mistake.ctx or not mistake.param:
        return mistake
    context, option = mistake.ctx, mistake.param
    in_file = context.get_parameter_source(option.name or "") is ParameterSource.DEFAULT_MAP
    if not in_file or _SECTION not in context.meta:
        return mistake
    message = f"{mistake.message.rstrip('.')} (in {context.meta[_SECTION]})."
    return click.BadParameter(message, context, option, mistake.param_hint)


def _name(parameter: click.Parameter) -> str:
    """What an option is called in the file: as it is typed, where that is a word."""
    typed = [o.removeprefix("--") for o in parameter.opts if o.startswith("--")]
    return typed[0] if typed else (parameter.name or "").replace("_", "-")


def _at_home(value: Any) -> Any:
    """A value with the home folder for "~/", as the shell has it of what is typed."""
    return str(expanded(value)) if isinstance(value, str) and value.startswith("~/") else value


def _check_kind(option: click.Parameter, value: object, where: str) -> None:
    """Raise a `UserError` for what click would make another value of: 3 of 3.7, "True" of true."""
    if isinstance(option.type, BoolParamType) and not isinstance(value, bool | str):
        raise UserError(f"{where}: write true or false.")
    if isinstance(option.type, StringParamType) and isinstance(value, bool):
        raise UserError(f"{where}: write a text.")
    whole = isinstance(option.type, IntParamType)
    if whole and isinstance(value, bool | float):
        raise UserError(f"{where}: write a whole number.")
    if isinstance(option.type, FloatParamType) and isinstance(value, bool):
        raise UserError(f"{where}: write a number.")
