"""The plugin manager: discovery, order, enable and disable, who provides what.

Built-in plugins come first, then strangers in the order of their names. A plugin that fails
to import, or provides what is taken, becomes a `Problem`: it is reported by name and the
program goes on without it.
"""

from __future__ import annotations

import importlib.metadata as metadata
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import update_wrapper, wraps
from typing import TYPE_CHECKING, Any

import pluggy

from promptforge import hookspecs
from promptforge.errors import PromptForgeError, UserError, did_you_mean, listed

if TYPE_CHECKING:  # components need pydantic, which `--help` can do without
    from promptforge.components import Component, Registry

GROUP = "promptforge"
BUILT_IN = "promptforge"
DISABLE_VARIABLE = "PROMPTFORGE_DISABLE_PLUGINS"


@dataclass(frozen=True)
class Problem:
    """A plugin that could not do what it wanted to."""

    plugin: str
    message: str


@dataclass
class PluginInfo:
    """One discovered plugin, enabled or not."""

    name: str
    module: str
    distribution: str
    version: str
    enabled: bool
    hooks: list[str] = field(default_factory=list)


class PluginManager:
    """Loads the plugins of the entry-point group `promptforge` and asks them for components."""

    def __init__(self, disabled: frozenset[str] = frozenset()) -> None:
        self.pm = pluggy.PluginManager("promptforge")
        self.pm.add_hookspecs(hookspecs)
        self.problems: list[Problem] = []
        self.plugins: list[PluginInfo] = []
        self._registries: dict[str, Registry] = {}
        self._discover(disabled)

    def _discover(self, disabled: frozenset[str]) -> None:
        points = list(metadata.entry_points(group=GROUP))
        # One reading of each package's metadata, which has its whole README in it.
        packages = {dist: dist.metadata for dist in {point.dist for point in points} if dist}
        found = [
            (p, *((packages[p.dist]["Name"], packages[p.dist]["Version"]) if p.dist else "??"))
            for p in points
        ]
        owners: dict[str, str] = {}
        for point, dist, version in sorted(found, key=lambda f: (f[1] != BUILT_IN, f[0].name)):
            if point.name in owners:
                # An editable install beside a regular one lists a plugin twice; that is no news.
                if owners[point.name] != dist:
                    self.report(
                        point.name,
                        f"of the package {dist!r} has a name that {owners[point.name]!r} has "
                        "taken; ignored",
                    )
                continue
            owners[point.name] = dist
            info = PluginInfo(point.name, point.module, dist, version, point.name not in disabled)
            self.plugins.append(info)
            if not info.enabled:
                continue
            try:
                self.register(point.load(), point.name, info)
            except (Exception, SystemExit) as error:
                info.enabled = False
                if self.pm.has_plugin(point.name):
                    self.pm.unregister(name=point.name)
                self.report(point.name, f"could not be loaded: {type(error).__name__}: {error}")
        unknown = sorted(disabled - {info.name for info in self.plugins})
        if unknown:
            names = [info.name for info in self.plugins]
            raise UserError(
                f"There is no plugin called {unknown[0]!r} to switch off."
                f"{did_you_mean(unknown[0], names)} Plugins: {listed(names)}."
            )

    def register(self, plugin: Any, name: str, info: PluginInfo | None = None) -> None:
        """Add `plugin` (a module or object with hook implementations) under `name`."""
        unknown = [
            attribute
            for attribute in dir(plugin)
            if attribute.startswith("promptforge_")
            and self.pm.parse_hookimpl_opts(plugin, attribute) is not None
            and not hasattr(hookspecs, attribute)
        ]
        self.pm.register(plugin, name)
        self._guard_events(plugin, name)
        if info is None:
            info = PluginInfo(name, getattr(plugin, "__name__", repr(plugin)), "", "", True)
            self.plugins.append(info)
        info.hooks = sorted(caller.name for caller in self.pm.get_hookcallers(plugin) or ())
        for hook in unknown:
            near = did_you_mean(hook, [h for h in dir(hookspecs) if h.startswith("promptforge_")])
            self.report(name, f"implements an unknown hook {hook!r}.{near}")
        self._registries.clear()

    def unregister(self, name: str) -> None:
        """Take out again what `register` added under `name`."""
        self.pm.unregister(name=name)
        self.plugins[:] = [info for info in self.plugins if info.name != name]
        self._registries.clear()

    def _guard_events(self, plugin: Any, name: str) -> None:
        """A plugin whose event hook raises is reported, and the run goes on without it."""
        for caller in self.pm.get_hookcallers(plugin) or ():
            if caller.name in hookspecs.ROLES.values():
                continue
            for impl in caller.get_hookimpls():
                if impl.plugin is plugin and not (impl.hookwrapper or impl.wrapper):
                    guarded = self._guarded(impl.function, name, caller.name)
                    impl.function = guarded  # type: ignore[misc]  # pluggy has no door for this

    def _guarded(self, function: Callable[..., Any], plugin: str, hook: str) -> Callable[..., Any]:
        @wraps(function)
        def guarded(*args: Any) -> Any:
            try:
                return function(*args)
            except PromptForgeError:  # The plugin has something to say to the user.
                raise
            except Exception as error:
                self.report(plugin, f"{hook} failed: {type(error).__name__}: {error}")
                return None

        return guarded

    def provided(self, hook: str) -> Iterator[tuple[str, Any]]:
        """(plugin, result) of a role hook, built-ins first; one that fails is a problem."""
        # pluggy calls the last registered first; a role wants the built-ins first.
        for impl in getattr(self.pm.hook, hook).get_hookimpls():
            result = None
            with self.tolerated(impl.plugin_name, hook):
                made = impl.function()
                # A generator does its work, and fails, here.
                result = made if made is None or isinstance(made, Mapping) else list(made)
            if result is not None:
                yield impl.plugin_name, result

    def registry(self, role: str) -> Registry:
        """The components of `role`, gathered from the plugins at the first call."""
        if role not in self._registries:
            from promptforge.components import Registry

            registry = Registry(role)
            for plugin, classes in self.provided(hookspecs.ROLES[role]):
                for cls in classes:
                    refused = registry.add(cls, plugin)
                    if refused:
                        self.report(plugin, refused)
            self._registries[role] = registry
        return self._registries[role]

    def named_values(self, hook: str) -> dict[str, Any]:
        """The merged mappings of a hook that returns name -> value; the first name wins."""
        merged: dict[str, tuple[Any, str]] = {}
        for plugin, mapping in self.provided(hook):
            if not isinstance(mapping, Mapping):
                self.report(plugin, f"{hook} failed: it returned no mapping of names to values")
                continue
            for name, value in mapping.items():
                if name in merged:
                    self.report(
                        plugin,
                        f"provides {name!r}, a name that {merged[name][1]!r} has taken; ignored",
                    )
                else:
                    merged[name] = (value, plugin)
        return {name: value for name, (value, _) in merged.items()}

    def listens(self, event: str) -> bool:
        """True when a plugin implements the event hook, so that the host may skip the call."""
        return bool(getattr(self.pm.hook, event).get_hookimpls())

    @contextmanager
    def tolerated(self, plugin: str, what: str) -> Iterator[None]:
        """What `plugin` fails to do within is reported, and the program goes on without it."""
        try:
            yield
        except (Exception, SystemExit) as error:
            told = (
                str(error)
                if isinstance(error, PromptForgeError)
                else f"{type(error).__name__}: {error}"
            )
            self.report(plugin, f"{what} failed: {told}")

    def report(self, plugin: str, message: str) -> None:
        """Note that `plugin` could not do something; said once."""
        problem = Problem(plugin, message)
        if problem not in self.problems:
            self.problems.append(problem)


_disabled: set[str] = set()


class _Once:
    """A function whose value is made at the first call, by one thread while others wait for it."""

    def __init__(self, make: Callable[[], PluginManager]) -> None:
        update_wrapper(self, make)
        self._make, self._lock = make, threading.RLock()
        self.made: PluginManager | None = None

    def __call__(self) -> PluginManager:
        with self._lock:
            if self.made is None:
                self.made = self._make()
            return self.made

    def cache_clear(self) -> None:
        """Have it made anew at the next call."""
        self.made = None


@_Once
def manager() -> PluginManager:
    """The process's plugin manager, made at the first call."""
    from_env = {n.strip() for n in os.environ.get(DISABLE_VARIABLE, "").split(",") if n.strip()}
    return PluginManager(frozenset(_disabled | from_env))


def disable(names: set[str]) -> None:
    """Switch plugins off (`-p no:NAME`); call it before the manager is first used."""
    _disabled.update(names)
    manager.cache_clear()


@contextmanager
def switches_restored() -> Iterator[None]:
    """What is switched off while this lasts is on again afterwards."""
    disabled, made = set(_disabled), manager.made
    try:
        yield
    finally:
        if _disabled != disabled:
            _disabled.intersection_update(disabled)
            manager.made = made


def known_problems() -> list[Problem]:
    """What went wrong with plugins so far; nothing where no command has asked for any."""
    return manager.made.problems if manager.made else []


def build(role: str, name: str, **options: Any) -> Any:
    """The component `name` of `role` with `options`: `build("search", "petal", candidates=500)`."""
    return manager().registry(role).build(name, **options)


def component(role: str, name: str) -> type[Component]:
    """The component class `name` of `role`."""
    return manager().registry(role).get(name)
