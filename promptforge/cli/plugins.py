"""`promptforge plugins`, `install` and `uninstall`."""

from __future__ import annotations

import sys

import rich_click as click

from promptforge.cli.common import ListingGroup, console, json_option, print_json
from promptforge.errors import PromptForgeError, UserError, did_you_mean, listed


@click.group(cls=ListingGroup)
def plugins() -> None:
    """List the plugins and show what they provide."""


@plugins.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List plugins with version, provider and hooks."""
    from rich.table import Table

    from promptforge.hookspecs import ROLES
    from promptforge.plugins import manager

    found = manager()
    provides: dict[str, list[str]] = {info.name: [] for info in found.plugins}
    for role in ROLES:
        registry = found.registry(role)
        for name in registry.names():
            provides[registry.provider(name)].append(f"{role} {name}")
    if as_json:
        problems: dict[str, list[str]] = {}
        for problem in found.problems:
            problems.setdefault(problem.plugin, []).append(problem.message)
        print_json(
            [
                {**vars(i), "provides": provides[i.name], "problems": problems.get(i.name, [])}
                for i in found.plugins
            ]
        )
        return
    table = Table(show_edge=False)
    for head in ("plugin", "version", "provider", "provides", "hooks"):
        table.add_column(head, style="bold" if head == "plugin" else None)
    for info in found.plugins:
        hooks = ", ".join(h.removeprefix("promptforge_") for h in info.hooks)
        failed = any(p.plugin == info.name for p in found.problems)
        state = "" if info.enabled else " [red](failed)[/]" if failed else " [red](off)[/]"
        name = f"{info.name}{state}"
        table.add_row(name, info.version, info.distribution, "\n".join(provides[info.name]), hooks)
    console().print(table)


@plugins.command()
@click.argument("name")
@json_option
def show(name: str, as_json: bool) -> None:
    """Show a plugin, or a component with its options and documentation."""
    import inspect

    from rich.table import Table

    from promptforge.hookspecs import ROLES
    from promptforge.plugins import manager

    found = manager()
    registries = {role: found.registry(role) for role in ROLES}
    everything = [(role, n) for role, registry in registries.items() for n in registry.names()]
    plugin_names = [info.name for info in found.plugins]
    # NAME is a component, role.component, or a plugin (all that it provides).
    role_wanted, dot, short = name.partition(".")
    chosen = [
        (r, n) for r, n in everything if n == name or (dot and r == role_wanted and n == short)
    ]
    if not chosen:
        chosen = [(r, n) for r, n in everything if registries[r].provider(n) == name]
    if not chosen and name not in plugin_names:
        known = [*(n for _, n in everything), *plugin_names]
        raise UserError(
            f"There is no plugin or component {name!r}.{did_you_mean(name, known)} There are: {listed(known, 40)}."
        )
    if as_json:
        print_json(
            [
                {
                    "role": role, "name": n, "plugin": registries[role].provider(n),
                    "doc": inspect.getdoc(registries[role].get(n)), "options": registries[role].get(n).option_table(),
                }
                for role, n in chosen
            ]
        )  # fmt: skip
        return
    out = console()
    for info in found.plugins:
        if info.name == name:
            out.print(
                f"[bold]{name}[/] {info.version} ({info.distribution}), module {info.module}\n"
            )
    for role, n in chosen:
        cls = registries[role].get(n)
        out.print(
            f"[bold cyan]{n}[/], a {role} of the plugin [bold]{registries[role].provider(n)}[/]\n"
        )
        out.print(inspect.getdoc(cls) or "", markup=False)
        table = Table(show_edge=False)
        for head in ("option", "type", "default", "description"):
            table.add_column(head, style="bold" if head == "option" else None)
        for row in cls.option_table():
            table.add_row(
                row["name"],
                row["type"].replace("[", r"\["),
                row["default"].replace("[", r"\["),
                row["description"],
            )
        if table.row_count:
            out.print("", table)
        out.print()


@click.command()
@click.argument("packages", nargs=-1, required=True)
@click.option("-U", "--upgrade", is_flag=True, help="Upgrade what is installed.")
def install(packages: tuple[str, ...], upgrade: bool) -> None:
    """Install plugin packages with pip, into the environment PromptForge runs in."""
    _pip("install", *(["--upgrade"] if upgrade else []), *packages)


@click.command()
@click.argument("packages", nargs=-1, required=True)
def uninstall(packages: tuple[str, ...]) -> None:
    """Uninstall plugin packages."""
    if any(p.lower() == "promptforge" for p in packages):
        raise UserError("PromptForge does not uninstall itself: run pip uninstall promptforge.")
    _pip("uninstall", "--yes", *packages)


def _pip(*arguments: str) -> None:
    import importlib.util
    import subprocess

    if importlib.util.find_spec("pip") is None:
        raise PromptForgeError(
            f"This environment has no pip. Add it with: {sys.executable} -m ensurepip"
        )
    code = subprocess.run([sys.executable, "-m", "pip", *arguments], check=False).returncode
    if code:
        raise PromptForgeError(
            f"pip {arguments[0]} failed (exit code {code}); its messages are above."
        )
