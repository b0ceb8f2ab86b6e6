"""A component is a name plus typed options; a registry builds one from both.

Every piece that a plugin provides for a role (a verbalizer, a search, a scorer, ...) is a
`Component`: a pydantic model whose fields are its options, so options are checked before any
model loads, and the same names work on the command line (`-o search.candidates=500`), in
`forge.toml` and in Python (`build("search", "petal", candidates=500)`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from promptforge.errors import UserError, did_you_mean, listed


class Component(BaseModel):
    """Base of everything a plugin provides. Fields are options; `name` is how users choose it.

    Subclass the role's base class (`Verbalizer`, `VerbalizerSearch`, ...), set `name`, and
    annotate the options with `pydantic.Field(default, description=...)`. Users may write one of
    `aliases` too; what is listed and recorded is `name`.
    """

    # An option with a pydantic alias is written and kept by its field's name, and read by both.
    model_config = ConfigDict(
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_assignment=True,
        populate_by_name=True,
    )

    role: ClassVar[str] = ""
    name: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def option_table(cls) -> list[dict[str, str]]:
        """One row per option: name, type, default and description, all as text."""
        rows = []
        for name, field in cls.model_fields.items():
            default = (
                "required"
                if field.is_required()
                else repr(field.get_default(call_default_factory=True))
            )
            kind = inspect.formatannotation(field.annotation).replace("typing.", "")
            rows.append(
                {
                    "name": name,
                    "type": kind,
                    "default": default,
                    "description": field.description or "",
                }
            )
        return rows

    @classmethod
    def build(cls, **options: Any) -> Any:
        """The component with `options`, checked; a `UserError` names the option that is wrong."""
        try:
            return cls(**options)
        except ValidationError as error:
            raise UserError(_explain(cls, error)) from None


def changed(component: BaseModel, option: str) -> bool:
    """Whether an option has another value than its default.

    What an artifact or a run tells of a component names every option, so having one named says nothing.
    """
    field = type(component).model_fields[option]
    return bool(getattr(component, option) != field.get_default(call_default_factory=True))


def _explain(cls: type[Component], error: ValidationError) -> str:
    lines = []
    known = list(cls.model_fields)
    for problem in error.errors():
        option = ".".join(str(part) for part in problem["loc"]) or "options"
        if problem["type"] == "extra_forbidden":
            has = f"Its options: {listed(known)}." if known else "It has no options."
            lines.append(
                f"{cls.role} {cls.name!r} has no option {option!r}.{did_you_mean(option, known)} {has}"
            )
        elif isinstance(told := problem.get("ctx", {}).get("error"), UserError):
            lines.append(f"{cls.role} {cls.name!r}: {told}")
        elif problem["type"] == "missing":
            lines.append(f"{cls.role} {cls.name!r} needs the option {option!r}.")
        else:
            lines.append(
                f"{cls.role} {cls.name!r}: option {option!r}: {problem['msg']} (given: {problem['input']!r})."
            )
    return "\n".join(lines)


#: (role, name) -> where to find what is looked for under that name, and is no component
_ELSEWHERE = {
    ("strategy", "multitask"): " 'promptforge train-multitask' trains one model on many tasks."
}


class Registry:
    """The components of one role, by name. The first provider of a name keeps it."""

    def __init__(self, role: str) -> None:
        self.role = role
        self._classes: dict[str, tuple[type[Component], str]] = {}
        self._aliases: dict[str, str] = {}

    def add(self, cls: type[Component], provider: str) -> str | None:
        """Take `cls` from the plugin `provider`; a text says why it was refused."""
        if not (isinstance(cls, type) and issubclass(cls, Component)):
            return f"provides {cls!r} for the role {self.role!r}, which is not a Component class"
        if not cls.name:
            return f"provides {cls.__name__} for the role {self.role!r} without a name"
        if cls.role != self.role:
            return f"provides {cls.name!r} for the role {self.role!r}, but its base class is for {cls.role!r}"
        for word in (cls.name, *cls.__dict__.get("aliases", ())):
            taken = self._aliases.get(word, word)
            if taken in self._classes:
                what = "a name" if word == cls.name else f"and the alias {word!r} of it, a name"
                by = f" as an alias of {taken!r}" if word in self._aliases else ""
                return (
                    f"provides the {self.role} {cls.name!r}, {what} that {self._classes[taken][1]!r} "
                    f"has taken{by}; ignored"
                )
        lacking = sorted(getattr(cls, "__abstractmethods__", ()))
        if lacking:
            return f"provides the {self.role} {cls.name!r} without {', '.join(lacking)}; ignored"
        self._classes[cls.name] = (cls, provider)
        # A subclass has a name of its own, and not the aliases of what it is made from.
        self._aliases |= dict.fromkeys(cls.__dict__.get("aliases", ()), cls.name)
        return None

    def __contains__(self, name: str) -> bool:
        """Whether a component has that name or that alias."""
        return self._aliases.get(name, name) in self._classes

    def names(self) -> list[str]:
        """The names in the order in which they were provided."""
        return list(self._classes)

    def provider(self, name: str) -> str:
        """The plugin that provides `name`."""
        return self._classes[self.get(name).name][1]

    def get(self, name: str) -> type[Component]:
        """The class called `name`, or with that alias; a `UserError` lists the names there are."""
        if name not in self:
            raise UserError(
                f"There is no {self.role} called {name!r}.{did_you_mean(name, self.names())} "
                f"Available: {listed(self.names())}.{_ELSEWHERE.get((self.role, name), '')} "
                f"A plugin may bring more: see 'promptforge plugins'."
            )
        return self._classes[self._aliases.get(name, name)][0]

    def build(self, name: str, **options: Any) -> Any:
        """The component called `name` with `options`."""
        return self.get(name).build(**options)


def parse_options(
    pairs: list[str], chosen: Mapping[str, type[BaseModel]]
) -> dict[str, dict[str, Any]]:
    """`["search.candidates=500", "mu=2"]` to `{"search": {"candidates": 500}, ...}`.

    `chosen` maps each role in use to its component class. The role may be left out when only
    one of them has the key. Values are read as TOML-like literals (numbers, true/false,
    lists, tables) or as JSON, else as text. A key of a table can be set alone, behind another
    dot: `"method.methods.prefix.length=20"`.

    Raises:
        UserError: no `=`, an unknown role, or a key that no or several components have.
    """
    out: dict[str, dict[str, Any]] = {role: {} for role in chosen}
    for pair in pairs:
        key, eq, text = pair.partition("=")
        if not eq:
            raise UserError(f"-o {pair!r}: write it as key=value or role.key=value.")
        role, dot, option = key.strip().partition(".")
        if not dot or (role not in chosen and any(role in c.model_fields for c in chosen.values())):
            option, path = role, option
            owners = [r for r, cls in chosen.items() if option in cls.model_fields]
            if len(owners) != 1:
                keys = [f"{r}.{f}" for r, cls in chosen.items() for f in cls.model_fields]
                if owners:
                    choices = listed([f"{r}.{option}" for r in owners])
                    raise UserError(
                        f"-o {pair!r}: several components have {option!r}: write one of {choices}."
                    )
                near = did_you_mean(option, [k.split(".")[1] for k in keys])
                raise UserError(
                    f"-o {pair!r}: no chosen component has {option!r}.{near} There are: {listed(keys, 30)}."
                )
            role = owners[0]
        else:
            option, _, path = option.partition(".")
        if role not in chosen:
            raise UserError(
                f"-o {pair!r}: there is no {role!r} in this command. Roles: {listed(list(chosen))}."
            )
        table = out[role]
        for inner in path.split(".") if path else ():
            table = table.setdefault(option, {})
            if not isinstance(table, dict):
                raise UserError(f"-o {pair!r}: {option!r} has a value already and is no table.")
            option = inner
        table[option] = _literal(text.strip())
    return out


def _literal(text: str) -> Any:
    import json
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return json.loads(text) if text.startswith(("{", "[")) else text
    except json.JSONDecodeError:
        return text
