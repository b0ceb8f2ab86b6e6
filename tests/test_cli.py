"""Every command as a user types it, on tiny random models."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import rich_click as click

from promptforge import PromptForgeError, UserError, plugins
from promptforge.cli import cli
from promptforge.cli.later import LaterCommand

Command = Callable[..., Any]
Folder = Callable[[str], Path]
IT_WAS = "{{ text }} It was {{ mask }}"


@pytest.fixture
def switched_on() -> Any:
    """Plugins that a command switched off are on again."""
    yield
    plugins._disabled.clear()
    plugins.manager.cache_clear()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_help_and_mistakes_import_nothing_heavy() -> None:
    done = python(
        """
import sys
from promptforge.cli import BUILT_IN, run
for args in [[], ["--help"], ["--version"], *([name, "--help"] for name in BUILT_IN)]:
    assert run(args) in (0, 2), args
heavy = {"torch", "transformers", "pydantic", "datasets", "sklearn", "pyarrow"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
for args in [["evaluate", "nope"], ["search-verbalizer", "--data", "nope.csv", "--template", "{{ mask }}"],
             ["predict", "sentiment", "--data", "nope.csv"], ["render", "{{ text"], ["fill", "no mask {{ text }}"],
             ["evaluate", "sentiment"], ["models", "where", "nope"], ["templates", "show", "nope"]]:
    assert run(args) == 2, args
heavy = {"torch", "transformers", "datasets", "sklearn"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Error:") == 8


def test_help_says_of_each_command_what_the_command_says() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        cli._listing = True
        listed = cli.get_command(context, name)
        cli._listing = False
        made = cli.get_command(context, name)
        assert made is not None and listed is not None and made.name == listed.name == name
        assert isinstance(listed, LaterCommand) and not isinstance(made, LaterCommand)
        assert " ".join((made.help or "").split("\n\n")[0].split()) == listed.help


def test_quiet_and_debug_stand_anywhere(
    command: Command, tiny_model: Folder, reviews: Path
) -> None:
    base = ("evaluate", reviews, "--model", tiny_model("bert"), "--pattern", "it-was")
    noisy, first, last = command(*base), command("-q", *base), command(*base, "--quiet")
    progress = "Evaluating: 40/40 rows"
    assert progress in noisy.err and progress not in first.err and progress not in last.err
    assert noisy.out == first.out == last.out
    assert "No such option" in command(*base, "--quite").err
    with pytest.raises(UserError, match="no pattern"):
        command("evaluate", reviews, "--pattern", "nope", "--debug")


def test_the_process_goes_on_as_it_was(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("transformers")
    names = ("TOKENIZERS_PARALLELISM", "TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(names[2], "0")
    level, manager, inside = log.level, plugins.manager(), []

    def imports_transformers(**_: Any) -> int:
        inside.extend(os.environ.get(name) for name in names)
        log.setLevel(level + 10)
        return 0

    assert command("-p", "no:nope", "plugins").code == 2
    assert command("-p", "no:demonstrations", "plugins").code == 0
    assert plugins.manager() is manager and not plugins._disabled
    monkeypatch.setattr(cli, "main", imports_transformers)
    assert command("plugins").code == 0
    assert inside == ["true", "error", "0"]
    assert [os.environ.get(name) for name in names] == [None, None, "0"]
    assert log.level == level


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_callers_own_output_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from promptforge.cli import run

    full = Path("/dev/full").open("w")  # noqa: SIM115 - closing it fails too
    before = os.fstat(full.fileno())
    monkeypatch.setattr(sys, "stdout", full)
    assert run(["templates", "list", "--json"]) == 1
    assert os.path.samestat(os.fstat(full.fileno()), before)
    with suppress(OSError):  # where it holds something that is not written yet
        full.close()


def test_a_command_that_is_not_where_it_should_be() -> None:
    for target in ("promptforge_gone.cli:x", "promptforge.cli:gone", "promptforge.cli:BUILT_IN"):
        with pytest.raises(PromptForgeError, match=target):
            LaterCommand("x", target, "Says.").load()


def test_as_a_module_and_in_a_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "promptforge", "templates"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "sentiment" in done.stdout
    words = {"COMP_WORDS": "promptforge search", "COMP_CWORD": "1"}
    done = python(
        "from promptforge.cli import main; main()",
        _PROMPTFORGE_COMPLETE="bash_complete",
        **words,
    )
    assert done.stdout == "plain,search-verbalizer\nplain,search-template\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(command: Command, shell: str) -> None:
    script = command("completion", shell).out
    assert "_PROMPTFORGE_COMPLETE" in script
    assert shell in script or shell == "zsh"


def test_bash_completes_commands_and_subcommands(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.shell_completion import ShellComplete

    made = ShellComplete(cli, {}, "promptforge", "_PROMPTFORGE_COMPLETE")
    assert [c.value for c in made.get_completions([], "pre")] == ["predict", "predict-many"]
    assert {c.value for c in made.get_completions(["plugins"], "")} == {
        "doctor",
        "hooks",
        "list",
        "show",
    }
    assert "--template" in {c.value for c in made.get_completions(["render"], "--t")}


# --- search-verbalizer -----------------------------------------------------------------------


def test_search_in_a_task_folder(command: Command, tiny_model: Folder, reviews: Path) -> None:
    ran = command("search-verbalizer", reviews, "--model", tiny_model("bert"),
                  "--pattern", "it-was", "--pattern", "tone")  # fmt: skip
    assert ran.code == 0, ran.err
    for shown in ("negative", "it-was", "tone", "chance", "50.0 %", "verbalizer.json"):
        assert shown in ran.out
    written = json.loads(Path("verbalizer.json").read_text(encoding="utf-8"))
    assert list(written["patterns"]) == ["it-was", "tone"]
    assert all(len(w) == 10 for words in written["patterns"].values() for w in words.values())


def test_search_options(command: Command, tiny_model: Folder, reviews: Path) -> None:
    ran = command("search-verbalizer", reviews, "--model", tiny_model("gpt2"), "--joint",
                  "--pattern", "review", "--pattern", "tone", "--words-per-label", 3,
                  "--candidates", 50, "--max-words", 200, "-o", "score=ce", "-o", "search.balanced=false",
                  "--shots", 8, "--seed", 21, "--json", "--output", "words.json")  # fmt: skip
    made = ran.json
    assert list(made) == ["output", "verbalizer", "results"]
    assert list(made["verbalizer"]["patterns"]) == ["*"]
    origin = made["verbalizer"]["origin"]
    assert origin["options"] == {
        "words_per_label": 3, "candidates": 50, "score": "ce", "balanced": False
    }  # fmt: skip
    assert (origin["rows"], origin["shots"], origin["seed"]) == (16, 8, 21)
    assert all(len(w) == 3 for w in made["verbalizer"]["patterns"]["*"].values())
    assert list(made["results"]) == ["dev", "test"]
    assert list(made["results"]["test"]) == ["found", "task"]
    assert json.loads(Path("words.json").read_text(encoding="utf-8")) == made["verbalizer"]
    again = command("evaluate", reviews, "--model", tiny_model("gpt2"), "--pattern", "tone",
                    "--verbalizer", "words.json", "--json").json  # fmt: skip
    assert again["tone"] == made["results"]["test"]["found"]["tone"]


def test_seeds_draw_other_rows(command: Command, tiny_model: Folder, reviews: Path) -> None:
    def found(seed: int) -> Any:
        args = ("--pattern", "it-was", "--shots", 4, "--seed", seed, "--json")
        return command(
            "search-verbalizer", reviews, "--model", tiny_model("bert"), *args
        ).json["verbalizer"]["patterns"]  # fmt: skip

    assert found(13) == found(13) != found(42)


@pytest.mark.parametrize("search", ["petal", "lm-bff"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_search_a_table(
    command: Command, tiny_model: Folder, reviews: Path, search: str, architecture: str
) -> None:
    table = Path("mine.tsv")
    lines = (reviews / "train.csv").read_text(encoding="utf-8").replace("\t", " ").splitlines()
    rows = [line.rpartition(",") for line in lines[1:]]
    table.write_text(
        "review\tstars\n" + "".join(f"{t.strip(chr(34))}\t{label}\n" for t, _, label in rows),
        encoding="utf-8",
    )
    Path("cloze.jinja").write_text("{{ review }} All in all {{ mask }}", encoding="utf-8")
    ran = command(
        "search-verbalizer", "--data", table, "--text-column", "review", "--label-column", "stars",
        "--template", "cloze.jinja", "--template", "It was {{ review }} So {{ mask }}",
        "--search", search, "--model", tiny_model(architecture), "--shots", 8, "--json", "-o", "reader.quote=",
    )  # fmt: skip
    assert set(ran.json["verbalizer"]["patterns"]) == {"cloze", "inline-2"}
    assert set(ran.json["verbalizer"]["labels"]) == {"negative", "positive"}
    assert list(ran.json["results"]) == ["dev"]


def test_columns_are_found_in_any_template(command: Command, tiny_model: Folder) -> None:
    """Without --text-column: `row["..."]` names one, `labels` and `demos` are none."""
    Path("mine.csv").write_text("my text,label\ngood,a\nbad,b\nfine,a\n", encoding="utf-8")
    for source in (
        '{{ row["my text"] }} {{ labels | join(" or ") }}? {{ mask }}',
        '{% for d in demos %}{{ d }} {% endfor %}{{ row["my text"] }} {{ mask }}',
    ):
        ran = command("evaluate", "--data", "mine.csv", "--template", source,
                      "--model", tiny_model("bert"), "--json")  # fmt: skip
        assert ran.code == 0 and ran.json


def test_search_with_six_labels(command: Command, tiny_model: Folder, reviews: Path) -> None:
    texts = (reviews / "unlabeled.csv").read_text(encoding="utf-8").splitlines()[1:61]
    Path("six.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": i % 6}) + "\n" for i, t in enumerate(texts)),
        encoding="utf-8",
    )
    for search in ("petal", "lm-bff"):
        ran = command("search-verbalizer", "--data", "six.jsonl", "--template", IT_WAS,
                      "--search", search, "--model", tiny_model("bert"), "--json")  # fmt: skip
        assert ran.json["verbalizer"]["labels"] == list("012345")
        words = [w for ws in ran.json["verbalizer"]["patterns"]["inline"].values() for w in ws]
        if search == "lm-bff":
            assert len(set(words)) == 6


# --- evaluate --------------------------------------------------------------------------------


def test_evaluate(command: Command, tiny_model: Folder, reviews: Path) -> None:
    base = ("evaluate", reviews, "--model", tiny_model("bert"), "--pattern", "it-was")
    figures = command(*base, "--json").json
    assert list(figures) == ["it-was"]
    assert set(figures["it-was"]) == {
        "labels", "rows", "accuracy", "macro_f1", "per_label", "confusion", "calibration_error", "chance", "majority",
        "interval",
    }  # fmt: skip
    assert figures["it-was"]["rows"] == 40
    assert sum(map(sum, figures["it-was"]["confusion"])) == 40
    assert command(*base, "--limit", 7, "--json").json["it-was"]["rows"] == 7
    assert command(*base, "--split", "dev", "--json").json["it-was"]["rows"] == 32
    data = ("--data", reviews / "dev.csv", "--json")
    assert command(*base, *data).json["it-was"]["rows"] == 32
    shown = command(*base)
    for text in ("accuracy", "macro-F1", "calibration error", "negative", "as positive"):
        assert text in shown.out
    both = command("evaluate", reviews, "--model", tiny_model("bert"), "--json").json
    assert {"it-was", "review", "all patterns"} <= both.keys()


@pytest.mark.parametrize("calibration", ["contextual", "pmi-dc", "batch"])
def test_calibrations(
    command: Command, tiny_model: Folder, reviews: Path, calibration: str
) -> None:
    base = ("evaluate", reviews, "--model", tiny_model("gpt2"), "--pattern", "it-was", "--json")
    plain = command(*base).json
    ran = command(*base, "--calibration", calibration)
    assert ran.json["it-was"]["rows"] == 40
    assert ran.json != plain


def test_options_reach_components(command: Command, tiny_model: Folder, reviews: Path) -> None:
    base = ("evaluate", reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--json")
    command("search-verbalizer", *base[1:])
    base = (*base, "--verbalizer", "verbalizer.json")
    mean = command(*base).json
    assert mean == command(*base, "-o", "aggregate=mean").json
    assert mean != command(*base, "-o", "verbalizer.aggregate=first").json
    inputs = ("-o", 'calibration.inputs=["nothing"]', "-o", "aggregate=max")
    assert command(*base, "--calibration", "contextual", *inputs).json != mean
    demos = command(*base, "--demonstrations", "fixed", "-o", "demonstrations.per_label=1")
    assert demos.code == 0, demos.err


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("agregate=mean", "no chosen component has 'agregate'. Did you mean 'aggregate'"),
        ("verbalizer.agregate=mean", "no option 'agregate'. Did you mean 'aggregate'"),
        ("verbaliser.aggregate=mean", "there is no 'verbaliser' in this command"),
        ("aggregate", "write it as key=value"),
        ("aggregate=median", "option 'aggregate'"),
        ("search.candidates=3", "Roles: 'verbalizer', 'reader'"),
        ("reader.delimiter=;;", "it must be one character"),
        ("reader.sheet=2", "reader 'csv' has no option 'sheet'"),
    ],
)
def test_wrong_options(command: Command, reviews: Path, option: str, expected: str) -> None:
    ran = command("evaluate", reviews, "--model", "./not-here", "-o", option)
    assert ran.code == 2
    assert expected in ran.err


def test_an_option_of_two_components(command: Command, reviews: Path) -> None:
    from promptforge.components import parse_options
    from promptforge.plugins import component

    chosen = {"reader": component("reader", "csv"), "other": component("reader", "tsv")}
    with pytest.raises(ValueError, match=r"write one of 'reader.quote', 'other.quote'"):
        parse_options(["quote='"], chosen)


def test_readers_take_options(command: Command, tiny_model: Folder, reviews: Path) -> None:
    text = (reviews / "dev.csv").read_text(encoding="utf-8").replace(",", ";")
    Path("semi.csv").write_text(text, encoding="utf-8")
    Path("semi.dat").write_text(text, encoding="utf-8")
    base = (reviews, "--model", tiny_model("bert"), "--pattern", "it-was")
    ran = command("evaluate", *base, "--data", "semi.csv")
    assert ran.code == 2
    assert "-o reader.delimiter=';'" in ran.err
    for given in (("semi.csv",), ("semi.dat", "--reader", "csv")):
        option = ("-o", "reader.delimiter=;", "--data", *given)
        assert command("evaluate", *base, *option, "--json").json["it-was"]["rows"] == 32
        assert command("predict", *base, *option).out.count("\n") == 33
        assert command("render", *base, *option, "--no-tokens").code == 0
        assert command("fill", *base, *option).code == 0
    assert "no reader called 'cvs'" in command("evaluate", *base, "--reader", "cvs").err


# --- render and fill -------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_render(command: Command, tiny_model: Folder, reviews: Path, architecture: str) -> None:
    model = ("--model", tiny_model(architecture))
    ran = command("render", reviews, "--pattern", "it-was", "--row", 3, *model)
    assert ran.code == 0, ran.err
    assert " mask " in ran.out
    assert re.search(r"\d+ of \d+ tokens; mask at \d+", ran.out)
    (made,) = command("render", reviews, "--pattern", "it-was", "--json", *model).json
    assert [p["part"] for p in made["parts"]].count("mask") == 1
    assert len(made["tokens"]) == len(made["ids"])
    assert made["slots"][0]["start"] > 0


def test_render_without_a_model(command: Command, reviews: Path) -> None:
    inline = command("render", "{{ a }} or {{ b }}? {{ mask }}", "--no-tokens", "--json",
                     "--set", "a=left", "--set", "b=right")  # fmt: skip
    (made,) = inline.json
    assert [p.get("text") for p in made["parts"]] == ["left", " or ", "right", "? ", None]
    assert "tokens" not in made
    given = command("render", reviews, "--set", "text=Mine", "--no-tokens")
    assert "Mine" in given.out
    shown = command("render", reviews, "--no-tokens", "--pattern", "it-was",
                    "--template", "{{ text }} {{ soft('It was') }} {{ mask(2) }}")  # fmt: skip
    assert shown.code == 2  # --template replaces the task's patterns
    assert "'inline'" in shown.err
    table = command("render", "--data", reviews / "unlabeled.csv", "--template", IT_WAS,
                    "--row", 2, "--no-tokens", "--json")  # fmt: skip
    assert table.json[0]["parts"][0]["source"] == "text"


def test_fill(command: Command, tiny_model: Folder, reviews: Path) -> None:
    model = ("--model", tiny_model("gpt2"))
    ran = command("fill", "The film was {{ mask }}", "--top", 4, *model)
    assert ran.code == 0, ran.err
    assert "probability" in ran.out
    made = command("fill", reviews, "--pattern", "tone", "--top", 3, "--json", *model).json
    (place,) = made["tone"]
    assert [set(word) for word in place] == [{"word", "token", "probability"}] * 3
    assert place[0]["probability"] >= place[1]["probability"]


# --- templates, plugins, models ----------------------------------------------------------------


def test_templates(command: Command) -> None:
    listed = command("templates", "list", "--json").json
    assert {"sentiment", "news-topics", "nli"} <= {t["name"] for t in listed}
    assert command("templates").out == command("templates", "list").out
    shown = command("templates", "show", "sentiment")
    assert "{{ mask }}" in shown.out
    assert "wonderful" in shown.out
    assert list(command("templates", "show", "nli", "--json").json["inputs"])
    assert command("templates", "copy", "sentiment", "own").code == 0
    assert tomllib.loads(Path("own/task.toml").read_text(encoding="utf-8"))["kind"] == "sentiment"
    assert command("render", "own", "--set", "text=Fine", "--no-tokens").code == 0
    assert "exists already" in command("templates", "copy", "sentiment", "own").err


def test_plugins(command: Command) -> None:
    listed = command("plugins", "list", "--json").json
    verbalizers = next(p for p in listed if p["name"] == "verbalizers")
    assert verbalizers["distribution"] == "promptforge"
    assert verbalizers["version"]
    assert "search petal" in verbalizers["provides"]
    assert "promptforge_verbalizers" in verbalizers["hooks"]
    assert command("plugins", "--json").json == listed
    assert "verbalizers" in command("plugins").out
    shown = command("plugins", "show", "petal")
    assert "balanced" in shown.out
    assert "words_per_label" in shown.out
    (petal,) = command("plugins", "show", "search.petal", "--json").json
    assert {"role", "name", "plugin", "doc", "options"} == petal.keys()
    assert len(command("plugins", "show", "verbalizers", "--json").json) > 5
    assert "Did you mean 'petal'" in command("plugins", "show", "pteal").err


@pytest.mark.usefixtures("switched_on")
def test_a_plugin_switched_off(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.manager.cache_clear()
    listed = command("-p", "no:demonstrations", "plugins", "--json").json
    assert not next(p for p in listed if p["name"] == "demonstrations")["enabled"]
    plugins._disabled.clear()
    plugins.manager.cache_clear()
    monkeypatch.setenv(plugins.DISABLE_VARIABLE, "demonstrations, local-models")
    listed = command("plugins", "--json").json
    assert [p["name"] for p in listed if not p["enabled"]] == ["demonstrations", "local-models"]
    assert "(off)" in command("plugins").out
    assert "write no:NAME" in command("-p", "demonstrations", "plugins").err
    monkeypatch.setenv(plugins.DISABLE_VARIABLE, "demonstration")
    plugins.manager.cache_clear()
    ran = command("plugins")
    assert ran.code == 2
    assert "Did you mean 'demonstrations'" in ran.err


def test_models_are_listed(command: Command) -> None:
    assert "smollm2" in command("models").out
    assert any(m["default"] for m in command("models", "--json").json)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("install",), "Missing argument"),
        (("uninstall",), "Missing argument"),
        (("uninstall", "PromptForge"), "does not uninstall itself"),
        (("uninstall", "emoji", "promptforge==0.1"), "'promptforge==0.1' is no name of a package"),
        (("frobnicate",), "No such command"),
        (("evaluate", "--nonsense"), "No such option"),
        (("predict", "sentiment", "--chunk", "0"), "--chunk"),
        (("completion", "cmd"), "not one of"),
    ],
)
def test_wrong_arguments(command: Command, args: tuple[str, ...], expected: str) -> None:
    ran = command(*args)
    assert ran.code == 2
    assert expected in ran.err
    assert "Traceback" not in ran.err


def test_brackets_in_data_are_no_markup(command: Command, tiny_model: Folder) -> None:
    model = ("--model", tiny_model("bert"))
    shown = command("fill", "{{ text }} {{ mask }}", "--set", "text=[bold]loud[/] [/x]", *model)
    assert shown.code == 0 and "[bold]loud[/] [/x]" in shown.out, shown.err
    done = command("render", "{{ text }} {{ mask }}", "--set", "text=[red]a[/] [/x]", *model)
    assert done.code == 0 and "[red]a[/] [/x]" in done.out, done.err
