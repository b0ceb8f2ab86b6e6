"""`promptforge plugins doctor`: what each plugin provides and costs, and what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from promptforge import __version__, diagnose, plugins
from promptforge.doctor import HEAVY
from promptforge.hookspecs import ROLES, VERSION
from promptforge.plugins import BUILT_IN
from tests.test_plugins import Provide, provide

__all__ = ["provide"]
Command = Callable[..., Any]


def test_the_built_in_plugins_are_healthy(command: Command) -> None:
    ran = command("plugins", "doctor", "--json")
    told = ran.json
    assert told["healthy"] is True and told["conflicts"] == []
    assert (told["promptforge"], told["surface"]) == (__version__, VERSION)
    by_name = {p["name"]: p for p in told["plugins"]}
    assert by_name.keys() == {info.name for info in plugins.manager().plugins}
    for role in ROLES:
        registry = plugins.manager().registry(role)
        for name in registry.names():
            assert f"{role} {name}" in by_name[registry.provider(name)]["provides"]
    assert "command export" in by_name["peft"]["provides"]
    assert "filter keep" in by_name["jinja"]["provides"]
    for plugin in by_name.values():
        assert plugin["problems"] == plugin["heavy"] == []
        assert 0 <= plugin["import_seconds"] < 0.5


def test_all_built_in_plugins_are_imported_in_a_fifth_of_a_second() -> None:
    """The best of three: others may be at work on this machine."""
    modules = [i.module for i in plugins.manager().plugins if i.distribution == BUILT_IN]
    code = (
        "import sys, time, importlib, promptforge.plugins, rich_click\n"
        "began = time.perf_counter()\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(time.perf_counter() - began, [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    found = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # fmt: skip
        seconds, heavy = done.stdout.strip().split(" ", 1)
        assert heavy == "[]"
        found.append(float(seconds))
    assert min(found) < 0.2, found


def test_on_the_terminal(command: Command) -> None:
    ran = command("plugins", "doctor")
    assert ran.code == 0
    assert f"promptforge {__version__}, hook surface {VERSION}" in ran.out
    assert "All built-in plugins together:" in ran.out
    assert "Nothing is wrong." in ran.out


#: name -> source, what is said of it
SICK = {
    "import": ("import nothing_of_the_kind", "could not be loaded: ModuleNotFoundError"),
    "hook": ("@hookimpl\ndef promptforge_verbaliser(): ...", "implements an unknown hook"),
    "raises": ("@hookimpl\ndef promptforge_strategies(): 1 / 0", "promptforge_strategies failed: ZeroDivisionError"),
    "heavy": ("import scipy", "imports scipy when it is loaded, so every command waits for it"),
    "task": ("@hookimpl\ndef promptforge_task_folders(): return ['/not/here']", "provides task folders in"),
    "no-folder": ("@hookimpl\ndef promptforge_task_folders(): return [None]", "promptforge_task_folders failed: TypeError"),
    "bad-task": (
        "from pathlib import Path\n"
        "@hookimpl\ndef promptforge_task_folders():\n"
        "    folder = Path(__file__).parent / 'tasks' / 'mine'\n"
        "    folder.mkdir(parents=True, exist_ok=True)\n"
        "    (folder / 'task.toml').write_text('labels = 5')\n"
        "    return [folder.parent]",
        "task 'mine' failed: ",
    ),
    "models": (
        "@hookimpl\ndef promptforge_model_sources():\n"
        "    from promptforge.models import ModelSource\n"
        "    class Far(ModelSource):\n"
        "        name = 'far'\n"
        "        def entries(self): raise ConnectionError('server down')\n"
        "        fetch = remove = entries\n"
        "    return [Far]",
        "model source 'far' failed: ConnectionError: server down",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SICK)
def test_a_sick_plugin(command: Command, provide: Provide, name: str) -> None:
    source, says = SICK[name]
    provide(name, source)
    ran = command("plugins", "doctor", "--json")
    assert ran.code == 1
    import json

    told = json.loads(ran.out)
    assert told["healthy"] is False
    # All else goes on.
    for args in (
        ("templates", "list"),
        ("models",),
        ("import-templates", "nowhere", "--output", "x"),
    ):
        assert "Traceback" not in (done := command(*args)).err
        assert done.code == 0 or "no file or folder nowhere" in done.err, done.err
    assert {p["name"] for p in told["plugins"] if p["problems"]} == {name}
    (sick,) = [p for p in told["plugins"] if p["name"] == name]
    assert any(says in problem for problem in sick["problems"]), sick
    shown = command("plugins", "doctor")
    assert shown.code == 1 and "(broken)" in shown.out and says[:30] in shown.out
    assert "Something is wrong" in shown.out


def test_conflicts(provide: Provide) -> None:
    provide(
        "rival",
        "import click\n"
        "@hookimpl\ndef promptforge_data_readers():\n"
        "    from promptforge import Reader\n"
        "    return [type('Mine', (Reader,), {'name': 'csv', '__module__': __name__})]\n"
        "@hookimpl\ndef promptforge_template_filters(): return {'keep': str}\n"
        "@hookimpl\ndef promptforge_commands(): return [click.Command('predict'), click.Command('export')]\n",
    )
    found = diagnose()
    assert not found.healthy
    assert [(c.kind, c.name, c.plugins) for c in found.conflicts] == [
        ("reader", "csv", ["readers", "rival"]),
        ("filter", "keep", ["jinja", "rival"]),
        ("command", "predict", ["promptforge", "rival"]),
        ("command", "export", ["peft", "rival"]),
    ]
    (rival,) = diagnose("rival").plugins
    assert len(rival.problems) == 4


def test_a_plugin_that_is_an_object(provide: Provide, tmp_path: Path) -> None:
    """An entry point may name what stands in a module."""
    provide(
        "thing",
        "class Thing:\n    @hookimpl\n    def promptforge_scorers(self): return []\nthing = Thing()",
    )
    points = next((tmp_path / "site").glob("*.dist-info")) / "entry_points.txt"
    points.write_text(points.read_text("utf-8").rstrip() + ":thing\n", encoding="utf-8")
    plugins.manager.cache_clear()
    (thing,) = diagnose("thing").plugins
    assert (thing.hooks, thing.problems) == (["promptforge_scorers"], [])
    assert thing.import_seconds is not None


@pytest.mark.parametrize("asked", ["PromptForge>=99", "promptforge>=99; python_version > '3'"])
def test_a_plugin_for_another_version(provide: Provide, tmp_path: Path, asked: str) -> None:
    provide("newer", "@hookimpl\ndef promptforge_configure(settings): ...")
    with (tmp_path / "site" / "dist_newer-2.0.dist-info" / "METADATA").open(
        "a", encoding="utf-8"
    ) as f:
        f.write(
            f"Requires-Dist: click\nRequires-Dist: {asked}\nRequires-Dist: promptforge; extra == 'x'\n"
        )
    (newer,) = diagnose("newer").plugins
    assert (newer.version, newer.requires) == ("2.0", ">=99")
    assert newer.problems == [
        f"needs promptforge>=99, and this is {__version__}: update one of the two"
    ]
