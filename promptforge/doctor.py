"""What each plugin provides, what it costs, and what is wrong with it."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from promptforge import hookspecs
from promptforge._version import __version__
from promptforge.plugins import BUILT_IN, PluginInfo, PluginManager, manager

#: Modules that take too long for `promptforge --help`; a plugin imports them inside its hooks.
HEAVY = ("torch", "transformers", "datasets", "sklearn", "scipy", "pandas", "peft", "accelerate", "matplotlib")  # fmt: skip
#: Hooks that give values by name.
NAMED = {
    "promptforge_template_filters": "filter",
    "promptforge_template_globals": "global",
    "promptforge_feature_maps": "feature-map",
}
#: Each set of modules is imported by a process of its own, forked where the host's own imports are done.
_TIMED = """
import importlib, json, os, sys, time, traceback
import pluggy, rich_click, promptforge.hookspecs

def timed(names):
    began = time.perf_counter()
    try:
        for name in names:
            importlib.import_module(name)
    except BaseException as error:
        return {"error": traceback.format_exception_only(error)[-1].strip()}
    return {"seconds": time.perf_counter() - began, "modules": sorted({m.partition(".")[0] for m in sys.modules})}

def forked(names):
    reading, writing = os.pipe()
    if not os.fork():
        os.write(writing, json.dumps(timed(names)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    os.wait()
    return json.loads(said or '{"error": "the interpreter ended without a word"}')

sets = json.loads(sys.argv[1])
print("\\n" + json.dumps([forked(s) for s in sets] if hasattr(os, "fork") else [timed(s) for s in sets]))
"""


@dataclass
class Examination:
    """What was found of one plugin.

    Attributes:
        provides: "role name" of its components, filters, commands and so on.
        requires: what its distribution says of PromptForge's version; "" where nothing.
        import_seconds: of its module, in a fresh interpreter that has the host's own; None: it is off.
        heavy: modules of `HEAVY` that this import brought in.
        problems: what is wrong.
    """

    name: str
    module: str
    distribution: str
    version: str
    enabled: bool
    requires: str = ""
    hooks: list[str] = field(default_factory=list)
    provides: list[str] = field(default_factory=list)
    import_seconds: float | None = None
    heavy: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass
class Conflict:
    """A name that several plugins provide.

    Attributes:
        kind: a role, "filter", "global", "feature-map" or "command".
        name: what they all provide.
        plugins: who provides it; the first one's is used.
    """

    kind: str
    name: str
    plugins: list[str]


@dataclass
class Diagnosis:
    """What was found of all plugins.

    Attributes:
        promptforge, surface, python: versions: of the package, of the hooks, of the interpreter.
        plugins: one by one.
        conflicts: names that are provided twice.
        import_seconds: of the modules of all built-in plugins together, in a fresh interpreter.
    """

    promptforge: str
    surface: str
    python: str
    plugins: list[Examination]
    conflicts: list[Conflict]
    import_seconds: float

    @property
    def healthy(self) -> bool:
        """Nothing is wrong."""
        return not self.conflicts and not any(p.problems for p in self.plugins)

    def to_json(self) -> dict[str, Any]:
        """As `promptforge plugins doctor --json` prints it."""
        return {"healthy": self.healthy, **asdict(self)}


def diagnose(only: str | None = None) -> Diagnosis:
    """Examine the installed plugins: all hooks that provide something are asked.

    Args:
        only: the name of the one plugin to examine; conflicts are its own then.
    """
    found = manager()
    claims = list(_claims(found))
    _ask_the_rest(found)
    chosen = [info for info in found.plugins if only is None or info.name == only]
    timed = [info for info in chosen if info.enabled and info.distribution]
    built_in = [i.module for i in timed if i.distribution == BUILT_IN]
    *times, together = _timed([*([info.module] for info in timed), built_in])
    by_name = {info.name: time for info, time in zip(timed, times, strict=True)}
    examined = {info.name: _examined(info, claims, by_name.get(info.name)) for info in chosen}
    for problem in found.problems:
        if problem.plugin in examined:
            examined[problem.plugin].problems.append(problem.message)
    conflicts = [
        Conflict(kind, name, plugins)
        for (kind, name), plugins in _by_name(claims).items()
        if len(plugins) > 1 and (only is None or only in plugins)
    ]
    seconds = together.seconds or 0.0 if only is None else 0.0
    return Diagnosis(
        __version__, hookspecs.VERSION, platform.python_version(), list(examined.values()),
        conflicts, seconds,
    )  # fmt: skip


# --- what is provided ----------------------------------------------------------------------

#: kind, name, plugin
Claim = tuple[str, str, str]


def _claims(found: PluginManager) -> Iterator[Claim]:
    """All that plugins want to provide, taken names included."""
    from promptforge.cli import BUILT_IN as COMMANDS

    for role, hook in hookspecs.ROLES.items():
        for plugin, classes in found.provided(hook):
            for cls in classes:
                if name := getattr(cls, "name", ""):
                    yield role, name, plugin
    for hook, kind in NAMED.items():
        for plugin, mapping in found.provided(hook):
            if isinstance(mapping, Mapping):
                yield from ((kind, name, plugin) for name in mapping)
    for name in COMMANDS:
        yield "command", name, BUILT_IN
    for plugin, commands in found.provided("promptforge_commands"):
        for command in commands:
            if name := getattr(command, "name", None):
                yield "command", name, plugin


def _ask_the_rest(found: PluginManager) -> None:
    """Have the host take what is provided, so that what it refuses becomes a problem."""
    from promptforge.cli import cli

    for role in hookspecs.ROLES:
        found.registry(role)
    for hook in NAMED:
        found.named_values(hook)
    import click

    cli.list_commands(click.Context(cli))
    from promptforge.models import catalogue
    from promptforge.task import Task, task_folders

    catalogue()
    owners = {
        str(folder): plugin
        for plugin, paths in found.provided("promptforge_task_folders")
        for folder in paths
    }
    for name, folder in task_folders().items():
        with found.tolerated(owners.get(str(folder.parent), BUILT_IN), f"task {name!r}"):
            Task.load(folder)


def _by_name(claims: Sequence[Claim]) -> dict[tuple[str, str], list[str]]:
    out: dict[tuple[str, str], list[str]] = {}
    for kind, name, plugin in claims:
        out.setdefault((kind, name), []).append(plugin)
    return out


# --- one plugin ----------------------------------------------------------------------------


@dataclass
class Import:
    """What importing modules in a fresh interpreter took: seconds and the heavy modules that came, or an error."""

    seconds: float | None = None
    heavy: list[str] = field(default_factory=list)
    error: str = ""


def _examined(info: PluginInfo, claims: Sequence[Claim], took: Import | None) -> Examination:
    made = Examination(
        info.name, info.module, info.distribution, info.version, info.enabled, hooks=info.hooks,
        provides=[f"{kind} {name}" for kind, name, plugin in claims if plugin == info.name],
    )  # fmt: skip
    _check_version(made)
    if took:
        made.import_seconds, made.heavy = took.seconds, took.heavy
        if took.error:
            made.problems.append(f"cannot be imported by a fresh interpreter: {took.error}")
        if made.heavy:
            made.problems.append(
                f"imports {', '.join(made.heavy)} when it is loaded, so every command waits for it: "
                "import it inside the hooks"
            )
    return made


def _check_version(made: Examination) -> None:
    """Compare what the plugin's distribution asks of PromptForge with what is here."""
    if made.distribution in ("", "?", BUILT_IN):
        return
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        asked = [Requirement(text) for text in metadata.requires(made.distribution) or ()]
    except metadata.PackageNotFoundError:
        return
    for requirement in asked:
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if canonicalize_name(requirement.name) == BUILT_IN and applies:
            made.requires = str(requirement.specifier)
            if not requirement.specifier.contains(__version__, prereleases=True):
                made.problems.append(
                    f"needs promptforge{made.requires}, and this is {__version__}: update one of the two"
                )


def _timed(sets: Sequence[Sequence[str]]) -> list[Import]:
    """What it takes to import each set of modules in a fresh interpreter that has what the host imports."""
    if len(sets) > 1 and not hasattr(os, "fork"):
        return [found for one in sets for found in _timed([one])]
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", _TIMED, json.dumps(sets)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        error = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [Import(error=error) for _ in sets]
    return [
        Import(error=told["error"])
        if "error" in told
        else Import(told["seconds"], [name for name in HEAVY if name in told["modules"]])
        for told in json.loads(done.stdout.splitlines()[-1])
    ]
