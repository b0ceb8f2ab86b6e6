"""The reference of the site, made from the code when the site is built.

Commands come from click, components from the registry, hooks from `promptforge.surface`, the Python
API from `promptforge.__all__`; nothing in it is written by hand, so nothing in it can be outdated.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

import promptforge
import promptforge.testing
from promptforge import plugins, surface
from promptforge.cli import cli
from promptforge.hookspecs import ROLES
from promptforge.plugins import BUILT_IN

#: page of the Python API -> its title and the modules whose names stand there; the rest is "more"
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tasks": ("Tasks, templates and data", ("task", "template", "data", "multilabel", "scale")),
    "models": ("Models and predictions", ("backbone", "model", "models", "classifier", "estimator", "evaluation", "readout", "merging", "bank")),
    "words": ("Label words and their search", ("verbalizer", "scoring", "calibration", "search", "template_search", "selection")),
    "tuning": ("Tuning", ("tuning",)),
    "generation": ("Writing text", ("generation",)),
    "layers": ("Early exit and long inputs", ("exits", "attention", "adapting")),
    "plugins": ("Plugins", ("components", "hookspecs", "importing", "exporting", "plugin_skeleton", "doctor")),
}  # fmt: skip
MORE = "more"
#: page -> functions on it that stand in a module of their own
MODULES = {"models": ("promptforge.artifact", ("load", "save"))}


def write(folder: Path) -> None:
    """Write all pages into `folder`; a file that is as it should be is left alone."""
    wanted = {folder / name: text for name, text in pages().items()}
    for old in folder.rglob("*.md"):
        if old not in wanted:
            old.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """Path below the reference's folder -> Markdown."""
    found = {f"commands/{name}.md": _command(name, c) for name, c in commands().items()}
    found |= {f"components/{role}.md": _role(role) for role in ROLES}
    for page, (title, names) in groups().items():
        found[f"python/{page}.md"] = _names(title, names, *MODULES.get(page, ("", ())))
    found["python/testing.md"] = _testing()
    found["hooks.md"] = _hooks()
    for part, title, text in (
        ("commands", "Commands", "Each has `--help`; what is wrong with a command line is said before a model loads."),
        ("components", "Components and their options", "What `promptforge plugins show NAME` prints, by role. "
         "Options are set with `-o role.key=value`, in `forge.toml`, or as keyword arguments in Python."),
        ("python", "Python", "All names are imported from `promptforge`, and only when they are used."),
    ):  # fmt: skip
        within = [Path(name).stem for name in found if name.startswith(f"{part}/")]
        found[f"{part}/index.md"] = f"# {title}\n\n{text}\n\n{_toctree(within)}"
    found["index.md"] = (
        "# Reference\n\nMade from the code of this version, "
        f"{promptforge.__version__}.\n\n"
        + _toctree(["commands/index", "components/index", "hooks", "python/index"], depth=2)
    )
    return found


def _toctree(entries: list[str], depth: int = 1) -> str:
    return "\n".join(["```{toctree}", f":maxdepth: {depth}", "", *entries, "```", ""])


# --- commands --------------------------------------------------------------------------------


def commands() -> dict[str, click.Command]:
    """Name -> command: PromptForge's own and those of its built-in plugins."""
    context = click.Context(cli)
    return {name: cli.get_command(context, name) for name in cli.list_commands(context)}  # type: ignore[misc]


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"promptforge {name}")
    return "\n".join(_command_lines(context, "#", f"command-{name}"))


def _command_lines(context: click.Context, level: str, label: str) -> Iterator[str]:
    command = context.command
    yield from (f"({label})=", f"{level} {context.info_name}", "")
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("```text", f"{context.info_name} {usage}", "```", "")
    yield _markdown(inspect.cleandoc(command.help or ""))
    options = [p for p in command.get_params(context) if isinstance(p, click.Option)]
    yield from ("", "**Options**", "")
    for option in options:
        record = option.get_help_record(context)
        if record:
            flags, text = record
            yield from (f"`{flags}`", f": {_escaped(' '.join(text.split())) or '(no help)'}", "")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            inside = click.Context(inner, info_name=f"{context.info_name} {name}")
            yield from _command_lines(inside, level + "#", f"{label}-{name}")


# --- components ------------------------------------------------------------------------------


def _role(role: str) -> str:
    told = surface.surface()
    hook = told["hooks"][ROLES[role]]
    registry = plugins.manager().registry(role)
    base = told["roles"][role]["base"]
    lines = [
        f"(role-{role})=", f"# {role}", "", _markdown(hook["doc"]), "",
        f"Base class {{py:class}}`promptforge.{base}`, hook {{ref}}`{ROLES[role]} <hook-{ROLES[role]}>`.", "",
    ]  # fmt: skip
    for name in registry.names():
        cls = registry.get(name)
        lines += [f"(component-{role}-{name})=", f"## {name}", "", _markdown(inspect.getdoc(cls) or ""), ""]  # fmt: skip
        if source := _source(cls):
            lines += [f"Source: {_escaped(source)}", ""]
        lines += [f"Provided by the plugin `{registry.provider(name)}`.", ""]
        for option in cls.option_table():
            lines += [
                f"`{option['name']}`: `{option['type']}` = `{option['default']}`",
                f": {_escaped(option['description']) or '(no description)'}", "",
            ]  # fmt: skip
    if not registry.names():
        lines += ["PromptForge itself brings none; plugins may.", ""]
    return "\n".join(lines)


def _source(cls: type) -> str:
    """The paper, which the module names where the class does not: "(Schick et al. 2020)"."""
    year = r"\([^()]*\b(?:19|20)\d\d[^()]*\)"
    if re.search(year, inspect.getdoc(cls) or ""):
        return ""
    said = inspect.getdoc(importlib.import_module(cls.__module__)) or ""
    found = re.search(year, said, re.DOTALL)
    return " ".join(found[0][1:-1].split()) if found else ""


# --- hooks -----------------------------------------------------------------------------------


def _hooks() -> str:
    text = re.sub(r"(?m)^### `(promptforge_\w+)`", r"(hook-\1)=\n### `\1`", surface.markdown())
    return re.sub(r"Role `([\w-]+)`", r"Role {ref}`\1 <role-\1>`", text)


# --- Python ----------------------------------------------------------------------------------


def groups() -> dict[str, tuple[str, list[str]]]:
    """Page -> title and the public names on it; every public name is on one."""
    out: dict[str, tuple[str, list[str]]] = {
        page: (title, []) for page, (title, _) in GROUPS.items()
    }
    out[MORE] = ("More names", [])
    for name in promptforge.__all__:
        home = _home(getattr(promptforge, name))
        page = next((p for p, (_, modules) in GROUPS.items() if home in modules), MORE)
        out[page][1].append(name)
    return out


def _home(value: Any) -> str:
    """The module of the package that a name is from: "task", "tuning", ..."""
    parts = str(getattr(value, "__module__", "")).split(".")
    return parts[1] if parts[0] == BUILT_IN and len(parts) > 1 else ""


def _names(title: str, names: list[str], module: str, functions: tuple[str, ...]) -> str:
    lines = [f"# {title}", "", "```{eval-rst}"]
    for name in sorted(names, key=str.lower):
        lines += [*_autodoc("promptforge", name, getattr(promptforge, name)), ""]
    for name in functions:
        lines += [f".. autofunction:: {module}.{name}", ""]
    return "\n".join([*lines, "```", ""])


def _testing() -> str:
    module = promptforge.testing
    lines = [
        "# promptforge.testing",
        "",
        _markdown(inspect.getdoc(module) or ""),
        "",
        "```{eval-rst}",
    ]
    for name in sorted(module.__all__, key=str.lower):
        lines += [*_autodoc("promptforge.testing", name, getattr(module, name)), ""]
    return "\n".join([*lines, "```", ""])


def _autodoc(module: str, name: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        members = [] if issubclass(value, Exception) else ["   :members:"]
        kind = "exception" if issubclass(value, Exception) else "class"
        return [f".. auto{kind}:: {module}.{name}", *members]
    if inspect.isroutine(value):
        return [f".. autofunction:: {module}.{name}"]
    return [f".. py:data:: {module}.{name}", "", f"   {_constant(value)}"]


def _constant(value: Any) -> str:
    if isinstance(value, dict):
        return f"One for each of {', '.join(f'``{key}``' for key in value)}."
    if isinstance(value, str):
        return f"``{value!r}`` in this version."
    return (inspect.getdoc(type(value)) or type(value).__name__).partition("\n\n")[0]


# --- text ------------------------------------------------------------------------------------


def _markdown(text: str) -> str:
    """A docstring as Markdown: paragraphs and indented blocks, no character of them markup."""
    out = []
    for block in re.split(r"\n{2,}", text.replace("\b\n", "")):
        indented = all(line.startswith("    ") for line in block.splitlines() if line)
        if indented and block:
            out.append("```text\n" + inspect.cleandoc(block) + "\n```")
        else:
            out.append(_escaped(block))
    return "\n\n".join(out)


def _escaped(text: str) -> str:
    """`code` stays code; outside of it nothing is markup."""
    parts = re.split(r"(`[^`]+`)", text)
    return "".join(
        part if part.startswith("`") and i % 2 else re.sub(r"([\\*_<>\[\]{}$|#])", r"\\\1", part)
        for i, part in enumerate(parts)
    )
