"""Plugins that misbehave are reported by name, and the program goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from promptforge import plugins
from promptforge.hookspecs import hookimpl
from promptforge.plugins import PluginManager

Command = Callable[..., Any]
Provide = Callable[..., None]


@pytest.fixture
def provide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Provide]:
    """Installs a distribution with one plugin: its name, and the module's source."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(name: str, source: str, *, distribution: str | None = None) -> None:
        distribution = distribution or f"dist-{name}"
        module = f"stranger_{tmp_path.name}_{distribution}".replace("-", "_")
        head = "from promptforge import hookimpl\n"
        (site / f"{module}.py").write_text(head + source, encoding="utf-8")
        info = site / f"{distribution.replace('-', '_')}-2.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {distribution}\nVersion: 2.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(
            f"[promptforge]\n{name} = {module}\n", encoding="utf-8"
        )
        plugins.manager.cache_clear()

    yield install
    plugins.manager.cache_clear()


FAULTY = {
    "import": ("import nothing_of_the_kind", "could not be loaded: ModuleNotFoundError"),
    "exit": ("raise SystemExit(3)", "could not be loaded: SystemExit"),
    "unknown-hook": (
        "@hookimpl\ndef promptforge_verbaliser(): ...",
        "implements an unknown hook 'promptforge_verbaliser'. Did you mean",
    ),
    "argument": (
        "@hookimpl\ndef promptforge_evaluated(nonsense): ...",
        "could not be loaded: PluginValidationError",
    ),
    "raises": (
        "@hookimpl\ndef promptforge_verbalizers(): raise RuntimeError('no luck')",
        "promptforge_verbalizers failed: RuntimeError: no luck",
    ),
    "exits": (
        "@hookimpl\ndef promptforge_verbalizers(): raise SystemExit(3)",
        "promptforge_verbalizers failed: SystemExit: 3",
    ),
    "raises-late": (
        "@hookimpl\ndef promptforge_template_filters():\n    yield 1\n    1 / 0",
        "promptforge_template_filters failed: ZeroDivisionError",
    ),
    "no-list": (
        "@hookimpl\ndef promptforge_scorers(): return 3",
        "promptforge_scorers failed: TypeError",
    ),
    "no-mapping": (
        "@hookimpl\ndef promptforge_template_globals(): return ['a']",
        "promptforge_template_globals failed: it returned no mapping",
    ),
    "no-component": (
        "@hookimpl\ndef promptforge_calibrations(): return [dict]",
        "which is not a Component class",
    ),
    "taken-component": (
        "@hookimpl\ndef promptforge_data_readers():\n"
        "    from promptforge import Reader\n"
        "    return [type('Mine', (Reader,), {'name': 'csv', '__module__': __name__})]",
        "provides the reader 'csv', a name that 'readers' has taken; ignored",
    ),
    "taken-filter": (
        "@hookimpl\ndef promptforge_template_filters(): return {'keep': str}",
        "provides 'keep', a name that 'jinja' has taken; ignored",
    ),
    "taken-command": (
        "import click\n@hookimpl\ndef promptforge_commands(): return [click.Command('predict'), 5]",
        "provides the command 'predict', a name that is taken; ignored",
    ),
    "no-folder": (
        "@hookimpl\ndef promptforge_task_folders(): return ['/not/here']",
        "provides task folders in",
    ),
    "event": (
        "@hookimpl\ndef promptforge_configure(settings): raise ValueError('bad day')",
        "promptforge_configure failed: ValueError: bad day",
    ),
    "prompt-event": (
        "@hookimpl\ndef promptforge_prompt_rendered(prompt, row): return row['nothing']",
        "promptforge_prompt_rendered failed: KeyError: 'nothing'",
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_plugin(command: Command, provide: Provide, name: str) -> None:
    source, expected = FAULTY[name]
    provide(name, source)
    for args in (
        ("plugins", "list"),
        ("render", "sentiment", "--set", "text=Fine", "--no-tokens", "--pattern", "it-was"),
        ("--help",),
    ):
        ran = command(*args)
        assert ran.code == 0, ran.err
        assert "Traceback" not in ran.err
    manager = plugins.manager()
    lines = [f"plugin {p.plugin!r} {p.message}" for p in manager.problems]
    assert any(line.startswith(f"plugin {name!r} ") and expected in line for line in lines), lines
    # Named as well where the command fails, and in the list.
    failed = command("render", "nope")
    assert failed.code == 2
    assert f"Warning: plugin {name!r}" in failed.err
    listed = next(p for p in command("plugins", "--json").json if p["name"] == name)
    assert any(expected in problem for problem in listed["problems"])


def test_an_event_that_raises_while_a_model_is_measured(
    command: Command, provide: Provide, tiny_model: Callable[[str], Path], reviews: Path
) -> None:
    source = (
        "@hookimpl\ndef promptforge_examples_loaded(examples, origin): 1 / 0\n"
        "@hookimpl\ndef promptforge_batch_encoded(batch): 1 / 0\n"
        "@hookimpl\ndef promptforge_evaluated(evaluation): 1 / 0\n"
    )
    base = ("evaluate", reviews, "--model", tiny_model("bert"), "--json")
    plain = command(*base).json
    provide("watcher", source)
    ran = command(*base)
    assert ran.json == plain
    for hook in ("examples_loaded", "batch_encoded", "evaluated"):
        assert ran.err.count(f"'watcher' promptforge_{hook} failed: ZeroDivisionError") == 1


def test_an_event_may_stop_the_run_with_a_message(command: Command, provide: Provide) -> None:
    provide("strict", "from promptforge import UserError\n@hookimpl\n"
            "def promptforge_configure(settings): raise UserError('Not on a Sunday.')")  # fmt: skip
    for asked in (
        ("render", "sentiment", "--set", "text=Fine", "--no-tokens"),
        ("fill", "It was {{ mask }}"),
    ):
        ran = command(*asked)
        assert ran.code == 2
        assert "Error: Not on a Sunday." in ran.err


def test_a_plugin_with_a_built_in_name(command: Command, provide: Provide) -> None:
    provide("jinja", "", distribution="evil-twin")
    ran = command("render", "{{ mask }} it is", "--no-tokens")
    assert ran.code == 0
    assert "plugin 'jinja' of the package 'evil-twin' has a name that 'promptforge'" in ran.err


def test_what_it_adds_works(command: Command, provide: Provide, tmp_path: Path) -> None:
    folder = tmp_path / "tasks" / "colours"
    folder.mkdir(parents=True)
    (folder / "task.toml").write_text(
        'name = "colours"\n[columns]\ninputs = ["thing"]\n[labels]\nred = ["red"]\nblue = ["blue"]\n',
        encoding="utf-8",
    )
    (folder / "it-is.jinja").write_text("{{ thing | shout }} is {{ mask }}", encoding="utf-8")
    provide(
        "adder",
        "@hookimpl\ndef promptforge_template_filters(): return {'shout': str.upper}\n"
        f"@hookimpl\ndef promptforge_task_folders(): return [{str(folder.parent)!r}]\n"
        "@hookimpl\ndef promptforge_configure(settings): settings['values'] += ('thing=sky',)\n",
    )
    assert "colours" in command("templates").out
    ran = command("render", "colours", "--set", "thing=sky", "--no-tokens", "--json")
    assert ran.json[0]["parts"][0]["text"] == "SKY"


def test_registering_an_object() -> None:
    class Watcher:
        seen: list[dict[str, Any]]

        @hookimpl
        def promptforge_configure(self, settings: dict[str, Any]) -> None:
            settings["seen"] = True

    manager = PluginManager()
    manager.register(Watcher(), "watcher")
    settings: dict[str, Any] = {}
    manager.pm.hook.promptforge_configure(settings=settings)
    assert settings == {"seen": True}
    assert manager.listens("promptforge_configure")
    assert next(p for p in manager.plugins if p.name == "watcher").hooks == [
        "promptforge_configure"
    ]


def test_a_reader_of_a_plugin(command: Command, provide: Provide) -> None:
    provide(
        "upper",
        "@hookimpl\ndef promptforge_data_readers():\n"
        "    from typing import ClassVar\n"
        "    from promptforge import Reader\n"
        "    class Lines(Reader):\n"
        "        name: ClassVar[str] = 'lines'\n"
        "        column: str = 'text'\n"
        "        def accepts(self, source): return source.endswith('.txt')\n"
        "        def rows(self, source, skip=0):\n"
        "            for n, line in enumerate(open(source, encoding='utf-8')):\n"
        "                if n >= skip: yield {self.column: line.strip()}\n"
        "    return [Lines]\n",
    )
    Path("a.txt").write_text("one\ntwo\n", encoding="utf-8")
    base = ("render", "--data", "a.txt", "--row", 2, "--no-tokens", "--json")
    ran = command(*base, "--template", "{{ text }} {{ mask }}")
    assert ran.json[0]["parts"][0]["text"] == "two"
    ran = command(*base, "--template", "{{ line }} {{ mask }}", "-o", "column=line")
    assert ran.json[0]["parts"][0]["text"] == "two"


def test_a_component_without_its_method_is_refused_by_name() -> None:
    from promptforge import Verbalizer
    from promptforge.components import Registry

    class Unfinished(Verbalizer):
        name = "unfinished"

    registry = Registry("verbalizer")
    refused = registry.add(Unfinished, "theirs")
    assert refused == "provides the verbalizer 'unfinished' without class_scores; ignored"
    assert registry.names() == []
