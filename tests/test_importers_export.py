"""Patterns as plain Jinja: what is written says what the pattern says, in a Jinja of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pytest

from promptforge import UserError, export_templates, import_templates
from promptforge.task import Pattern, Task, task_folders
from promptforge.template import Template
from tests.importing import shown

Command = Callable[..., Any]
#: What any other toolkit has: Jinja, strict about names.
JINJA = jinja2.Environment(undefined=jinja2.StrictUndefined)
ROW = {"text": "A fine film.", "title": "The {{ end }}", "n": 2}


def task(*sources: str, labels: Mapping[str, list[str]] | None = None, **more: Any) -> Task:
    patterns = {
        f"p{i}": Pattern(f"p{i}", Template(source, name=f"p{i}", origin=f"p{i}.jinja"))
        for i, source in enumerate(sources)
    }
    return Task("moods", dict(labels or {"a": ["bad"], "b": ["very good"]}), patterns,
                more.pop("inputs", tuple(ROW)), **more)  # fmt: skip


def written(folder: Path, source: str, **options: Any) -> str:
    export_templates(task(source), folder, **options)
    return (folder / "p0.jinja").read_text(encoding="utf-8").rstrip("\n")


# --- every shipped task --------------------------------------------------------------------


@pytest.mark.parametrize("name", task_folders())
def test_shipped_tasks(tmp_path: Path, name: str) -> None:
    found = Task.load(name)
    made = export_templates(name, tmp_path / "out")
    assert set(made.files) == {*(f"{pattern}.jinja" for pattern in found.patterns), "words.json"}
    row = {column: f"The {column}." for column in found.inputs}
    for pattern in found.patterns:
        source = (tmp_path / "out" / f"{pattern}.jinja").read_text(encoding="utf-8")
        text = JINJA.from_string(source).render(**row, mask="[MASK]")
        assert text == shown(found, pattern, row).replace("[SEP]", "\n")
    words = json.loads((tmp_path / "out" / "words.json").read_text(encoding="utf-8"))
    assert words == {pattern: found.words_for(pattern) for pattern in found.patterns}


# --- word by word --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "plain"),
    [
        ("{{ text | truncate_here }} It was {{ mask }}.", "{{ text }} It was {{ mask }}."),
        ("{{ text|truncate_here(side='left') }}{{mask}}", "{{ text }}{{mask}}"),
        ("{{ text | upper | keep }} {{ mask }}", "{{ text | upper }} {{ mask }}"),
        ('{{ text }} {{ mask(3) }}{{ tail(".") }}', "{{ text }} {{ (mask * 3) }}."),
        ("{% set n = 2 %}{{ text }} {{ mask(n) }}", "{% set n = 2 %}{{ text }} {{ (mask * (n)) }}"),
        ("{{ text }} {{ mask(length=n + 1 - 1) }}", "{{ text }} {{ (mask * (n + 1 - 1)) }}"),
        ("{{ text }} {{ mask() }}{{ tail('\\x21') }}", "{{ text }} {{ mask }}{{ '\\x21' }}"),
        ('{{ text }} {{ mask }}{{ tail("\\x21") }}', '{{ text }} {{ mask }}{{ "\\x21" }}'),
        ("{{ text }} {{ soft('It was') }} {{ mask }}", "{{ text }} It was {{ mask }}"),
        ('{{ soft(n=5) }}{{ soft("So, well", id="x") }} {{ text }} {{ mask }}', "So, well {{ text }} {{ mask }}"),
        ("{{ text }}{{ sep }}{{ title }} {{ mask }}", "{{ text }}\n{{ title }} {{ mask }}"),
        ('{{ row["text"] }} {{ row.title }} {{ mask }}', "{{ text }} {{ title }} {{ mask }}"),
        ("{{ text }} {{ labels | join(', ') }}? {{ mask }}", "{{ text }} {{ [\"a\", \"b\"] | join(', ') }}? {{ mask }}"),
        ("{{ text }} {{ words.a[0] }}? {{ mask }}", '{{ text }} {{ {"a": ["bad"], "b": ["very good"]}.a[0] }}? {{ mask }}'),
        ("{% for demo in demos %}{{ demo.prompt }}\n{% for x in [1] %}{% endfor %}{% endfor %}{{ text }} {{ mask }}", "{{ text }} {{ mask }}"),
        ("{% if demos %}Examples:{% endif %}{{ text }} {{ mask }}", "{% if [] %}Examples:{% endif %}{{ text }} {{ mask }}"),
        ("{% if n > 1 %}{{ text | keep }}{% else %}{{ title }}{% endif %} {{ mask }}", "{% if n > 1 %}{{ text }}{% else %}{{ title }}{% endif %} {{ mask }}"),
        ("{# mask #}{{ text }} mask {{ 'mask' }} {{ mask }}", "{# mask #}{{ text }} mask {{ 'mask' }} {{ mask }}"),
        ("{{ text }} {{ tail(' }} {{ x') }}{{ mask }}", "{{ text }} {% raw %} }} {{ x{% endraw %}{{ mask }}"),
    ],
)  # fmt: skip
def test_what_is_written(tmp_path: Path, source: str, plain: str) -> None:
    assert written(tmp_path / "out", source) == plain
    found = task(source)
    text = JINJA.from_string(plain).render(**ROW, mask="[MASK]")
    pattern = shown(found, "p0", ROW).replace("[SEP]", "\n")
    for soft, said in (("[5]", ""), ("[So, well#x]", "So, well"), ("[It was]", "It was")):
        pattern = pattern.replace(soft, said)
    assert text == pattern


def test_the_mask_as_a_text(tmp_path: Path) -> None:
    source = "{{ text }}{{ sep }}{{ mask(2) }}{{ tail('.') }}"
    made = written(tmp_path / "a", source, mask="<mask>", separator=" </s> ")
    assert made == "{{ text }} </s> <mask><mask>."
    assert written(tmp_path / "b", "{{ text }} {{ mask }}", mask="{{ x }}").count("raw") == 2
    assert written(tmp_path / "c", "{{ text }} It was {{ mask }}", mask="") == "{{ text }} It was "
    made = written(tmp_path / "d", "{% set n = 2 %}{{ text }} {{ mask(n) }}", mask="<mask>")
    assert JINJA.from_string(made).render(text="So") == "So <mask><mask>"


def test_notes_say_what_was_left_out(tmp_path: Path) -> None:
    source = "{% for d in demos %}{{ d.word }} {% endfor %}{{ soft(n=2) }}{{ soft('a') }}{{ text }} {{ mask }}"
    made = export_templates(task(source), tmp_path / "out")
    assert [(r.template, r.imported, r.reason) for r in made.remarks] == [
        ("p0", True, "demonstrations are left out: other toolkits show them in their own way."),
        ("p0", True, "soft tokens without words are left out."),
        ("p0", True, "soft tokens are written as their words."),
    ]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for d in demos %}{{ d.word }}{% else %}None.{% endfor %}{{ text }} {{ mask }}", "where there are no demonstrations"),
        ("{{ row['my column'] }} {{ text }} {{ mask }}", "whose name is no variable"),
        ("{% for c in row %}{{ row[c] }}{% endfor %} {{ mask }}", "whose name is no variable"),
        ("{{ text }} {{ mask(words | length) }}", "'words', which only templates here have"),
        ("{{ text }} {{ mask }}{% if mask.length == 1 %}.{% endif %}", "plain Jinja cannot render it"),
        ("{{ text }} {{ mask", "is not closed"),
        ("{{ (" + "(" * 3000 + "text" + ")" * 3000 + ") }} {{ mask }}", "recursion"),
        ("{% set m = mask %}{{ text }} {{ demos | length }} {{ row }} {{ mask }}", "'row', which only templates here have"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported(tmp_path: Path, source: str, reason: str) -> None:
    made = export_templates(task("{{ text }} {{ mask }}", source), tmp_path / "out")
    assert made.files == ["p0.jinja", "words.json"]
    (remark,) = made.remarks
    assert (remark.template, remark.imported) == ("p1", False) and reason in remark.reason
    with pytest.raises(UserError, match="No pattern of 'moods' could be exported"):
        export_templates(task(source), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_nothing_is_worked_out_for_ever(tmp_path: Path) -> None:
    """In a process of its own: what does not end is ended."""
    asked = (
        "from promptforge.template import Template; from promptforge import Task, export_templates;"
        "sources = ['{{ 9 ** (9 ** 9) }}{{ text }} {{ mask }}', '{{ text }} {{ mask }}'];"
        "made = [Template(s, name=f'p{i}') for i, s in enumerate(sources)];"
        "export_templates(Task.inline(made, labels=['a', 'b']), 'out')"
    )
    subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, timeout=100, check=True)
    assert (tmp_path / "out" / "p1.jinja").is_file()


def test_a_task_that_generates_has_no_words(tmp_path: Path) -> None:
    made = export_templates(
        task("{{ text }} {{ mask }}", labels={}, generates=True, label_column="summary"),
        tmp_path / "out",
    )
    assert made.files == ["p0.jinja"]


# --- the command, and there and back -------------------------------------------------------


def test_the_command(command: Command, tmp_path: Path) -> None:
    done = command("export-templates", "nli", "--output", "out", "--pattern", "pair", "-o", "mask=[MASK]", "--json")  # fmt: skip
    assert done.json == {
        "exporter": "jinja", "output": str(tmp_path / "out"), "files": ["pair.jinja", "words.json"], "remarks": [],
    }  # fmt: skip
    assert (tmp_path / "out" / "pair.jinja").read_text(encoding="utf-8") == (
        "{{ hypothesis }}\n{{ premise }} So the answer is [MASK].\n"
    )
    again = command("export-templates", "nli", "--output", "out")
    assert again.code == 2 and "is there already" in again.err
    shown = command("export-templates", "nli", "--output", "all")
    assert "Changed (2)" in shown.out and "demonstrations are left out" in shown.out
    for wrong, says in (
        (("nowhere",), "There is no task 'nowhere'"),
        (("nli", "--pattern", "pairs"), "Did you mean 'pair'"),
        (("nli", "--exporter", "yaml"), "There is no exporter called 'yaml'"),
        (("nli", "-o", "masc=x"), "Did you mean 'mask'"),
    ):
        failed = command("export-templates", *wrong, "--output", "new")
        assert failed.code == 2 and says in failed.err
    assert not (tmp_path / "new").exists()


def test_there_and_back(tmp_path: Path) -> None:
    """A harness task that is imported and exported is the text that the harness shows."""
    (tmp_path / "mood.yaml").write_text(
        'task: mood\ndoc_to_text: "{{sentence}}\\nMood:"\ndoc_to_target: label\ndoc_to_choice: [bad, good]\n',
        encoding="utf-8",
    )
    made = import_templates(tmp_path / "mood.yaml", tmp_path / "in")
    export_templates(made.tasks["mood"], tmp_path / "out")
    plain = (tmp_path / "out" / "prompt.jinja").read_text(encoding="utf-8")
    assert JINJA.from_string(plain).render(sentence="Fun.", mask="good") == "Fun.\nMood: good"
