"""`promptforge plugins`, `install` and `uninstall`."""

from __future__ import annotations

import sys

import rich_click as click

from promptforge.cli.common import ListingGroup, console, json_option, plain, print_json
from promptforge.errors import PromptForgeError, UserError, did_you_mean, listed


@click.group(cls=ListingGroup)
def plugins() -> None:
    """List the plugins, show what they provide, and examine them."""


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
        known = [*dict.fromkeys(n for _, n in everything), *plugin_names]
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
            f"[bold cyan]{n}[/], {'an' if role[0] in 'aeiou' else 'a'} {role} of the plugin [bold]{registries[role].provider(n)}[/]\n"
        )
        out.print(inspect.getdoc(cls) or "", markup=False)
        table = Table(show_edge=False)
        for head in ("option", "type", "default", "description"):
            table.add_column(head, style="bold" if head == "option" else None)
        for row in cls.option_table():
            table.add_row(
                row["name"],
                *(plain(row[key]) for key in ("type", "default", "description")),
            )
        if table.row_count:
            out.print("", table)
        out.print()


@plugins.command()
@click.option("--markdown", "as_markdown", is_flag=True, help="Print documentation as Markdown.")
@json_option
def hooks(as_markdown: bool, as_json: bool) -> None:
    """Document the hooks: all that a plugin can provide, watch and change."""
    from rich.table import Table

    from promptforge.surface import markdown, surface

    if as_json:
        print_json(surface())
        return
    if as_markdown:
        click.echo(markdown(), nl=False)
        return
    told = surface()
    out = console()
    out.print(f"Hooks of PromptForge, version {told['version']} of the surface\n")
    table = Table(show_edge=False)
    for head in ("hook", "what it is for", "base class, what it must have"):
        table.add_column(head, style="bold" if head == "hook" else None)
    for name, hook in told["hooks"].items():
        given = f"({', '.join(hook['arguments'])})" if hook["arguments"] else ""
        role = told["roles"].get(hook["role"])
        base = f"{role['base']}: {', '.join(role['abstract']) or '-'}" if role else ""
        table.add_row(plain(name.removeprefix("promptforge_") + given), plain(hook["doc"]), base)
    out.print(table)
    out.print("\nEach name begins with promptforge_. --markdown documents them in full.")


@plugins.command()
@json_option
def doctor(as_json: bool) -> int:
    """Examine the plugins: what each provides, what its import costs, and what is wrong.

    The exit code is 1 where something is wrong. Imports are timed in fresh interpreters.
    """
    from promptforge.doctor import diagnose

    found = diagnose()
    if as_json:
        print_json(found.to_json())
        return int(not found.healthy)
    from rich.table import Table

    out = console()
    out.print(
        f"promptforge {found.promptforge}, hook surface {found.surface}, Python {found.python}\n"
    )
    table = Table(show_edge=False)
    for head in ("plugin", "version", "needs", "provides", "hooks", "import"):
        right = "right" if head == "import" else "left"
        table.add_column(head, style="bold" if head == "plugin" else None, justify=right)  # type: ignore[arg-type]
    for one in found.plugins:
        state = "" if one.enabled else " [red](off)[/]"
        if one.problems:
            state = " [red](broken)[/]"
        seconds = "" if one.import_seconds is None else f"{1000 * one.import_seconds:.0f} ms"
        shown = ", ".join(h.removeprefix("promptforge_") for h in one.hooks)
        table.add_row(
            f"{plain(one.name)}{state}", one.version, one.requires, plain(_grouped(one.provides)),
            shown, seconds,
        )  # fmt: skip
    out.print(table)
    out.print(f"\nAll built-in plugins together: {1000 * found.import_seconds:.0f} ms")
    for one in found.plugins:
        for problem in one.problems:
            out.print(f"[red]{plain(one.name)}[/]: {plain(problem)}", soft_wrap=True)
    for conflict in found.conflicts:
        out.print(
            f"[red]conflict[/]: {listed(conflict.plugins)} provide the {conflict.kind} "
            f"{plain(conflict.name)!r}; the first one's is used",
            soft_wrap=True,
        )
    out.print("Nothing is wrong." if found.healthy else "Something is wrong, see above.")
    return int(not found.healthy)


def _grouped(provides: list[str]) -> str:
    """ "role name" of each as a line for each role."""
    by_kind: dict[str, list[str]] = {}
    for one in provides:
        kind, _, name = one.partition(" ")
        by_kind.setdefault(kind, []).append(name)
    return "\n".join(f"{kind}: {', '.join(names)}" for kind, names in by_kind.items())


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
    from packaging.utils import InvalidName, canonicalize_name

    for package in packages:
        try:
            name = canonicalize_name(package, validate=True)
        except InvalidName:
            raise UserError(
                f"{package!r} is no name of a package: 'promptforge plugins list' says which each is of."
            ) from None
        if name == "promptforge":
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
