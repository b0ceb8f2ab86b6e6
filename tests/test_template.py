"""Templates become parts: text from the data stays text, and every mistake is said in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptforge import hookimpl
from promptforge.errors import PromptForgeError, UserError
from promptforge.plugins import manager
from promptforge.template import (
    COLUMN,
    FIRST,
    KEEP,
    LAST,
    RESERVED,
    Mask,
    Part,
    Prompt,
    Sep,
    Soft,
    Template,
    TemplateError,
    Text,
)

ROW = {"text": "Great fun."}
WORDS = {"neg": ["bad", "awful"], "pos": ["good"]}
DEMOS = [({"text": "Dull."}, "neg"), ({"text": "A joy."}, "pos")]
HOSTILE = [
    "{{ 7*7 }}",
    "[MASK]",
    "</s>",
    "{% endfor %}",
    "{# x #}",
    "<mask>",
    "\x00",
    "\r\n",
    "▁▁▁",
]


def parts(source: str, row: Mapping[str, Any] = ROW, **scope: Any) -> list[Part]:
    return list(Template(source).render(row, **scope).parts)


def shown(source: str, row: Mapping[str, Any] = ROW, **scope: Any) -> str:
    found = parts(source, row, **scope)
    assert all(isinstance(p, Text) for p in found)
    return "".join(p.text for p in found if isinstance(p, Text))


def error(source: str, row: Mapping[str, Any] = ROW, **scope: Any) -> str:
    with pytest.raises(TemplateError) as caught:
        Template(source, name="t").render(row, **scope)
    return str(caught.value)


# --- parts ---------------------------------------------------------------------------------


def test_a_template_renders_to_parts() -> None:
    source = '{{ text }} It{{ sep }}{{ soft("was") }} {{ mask(2) }}{{ tail(".") }}{{ soft(n=3, id="a") }}'
    assert parts(source) == [
        Text("Great fun.", "text", COLUMN),
        Text(" It"),
        Sep(),
        Soft("was"),
        Text(" "),
        Mask(2),
        Text(".", tail=True),
        Soft(n=3, id="a"),
    ]


@pytest.mark.parametrize(
    ("expression", "part"),
    [
        ("text", Text("Great fun.", "text", COLUMN)),
        ("row.text", Text("Great fun.", "text", COLUMN)),
        ('row["text"]', Text("Great fun.", "text", COLUMN)),
        ("text | upper", Text("GREAT FUN.", "text", COLUMN)),
        ("text.upper()", Text("GREAT FUN.", "text", COLUMN)),
        ("text[:5] | trim", Text("Great", "text", COLUMN)),
        ("text | replace('fun', 'joy')", Text("Great joy.", "text", COLUMN)),
        ("text | keep", Text("Great fun.", "text", KEEP)),
        ("text | upper | keep", Text("GREAT FUN.", "text", KEEP)),
        ("text | truncate_here", Text("Great fun.", "text", FIRST)),
        ("text | truncate_here('left')", Text("Great fun.", "text", FIRST, "left")),
        ("text ~ '!'", Text("Great fun.!", "expression", LAST)),
        ("'a'", Text("a", "expression", LAST)),
        ("n", Text("3", "expression", LAST)),
        ("x", Text("2.5", "expression", LAST)),
        ("yes", Text("True", "expression", LAST)),
        ("missing or 'none'", Text("none", "expression", LAST)),
        ("'{}: {}'.format(n, text)", Text("3: Great fun.", "expression", LAST)),
        ("'%d%%' % n", Text("3%", "expression", LAST)),
        ("'%d' | format(5000000)", Text("5000000", "expression", LAST)),
        ("5000000 | int + 1", Text("5000001", "expression", LAST)),
    ],
)
def test_what_an_expression_becomes(expression: str, part: Text) -> None:
    row = {**ROW, "n": 3, "x": 2.5, "yes": True, "missing": None}
    assert parts(f"{{{{ {expression} }}}}", row) == [part]


@given(text=st.text(), hostile=st.sampled_from(HOSTILE))
def test_any_text_stays_what_it_is(text: str, hostile: str) -> None:
    data = text + hostile + text
    found = parts('{{ text }}|{{ row["text"] | keep }}|{{ mask }}', {"text": data})
    assert found == [
        Text(data, "text", COLUMN),
        Text("|"),
        Text(data, "text", KEEP),
        Text("|"),
        Mask(),
    ]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_passes_loops_macros_and_demonstrations(hostile: str) -> None:
    source = (
        "{% macro show(x) %}<{{ x }}>{% endmacro %}"
        "{% for d in demos %}{{ d.prompt }}{% endfor %}{{ show(text) }}{{ mask }}"
    )
    row = {"text": hostile}
    found = Template(source).render(row, words=WORDS, demos=[(row, "pos")])
    assert str(found) == f"<{hostile}>good<{hostile}>▁▁▁"
    assert len(found.masks) == 1


def test_parts_pass_macros_set_blocks_and_calls() -> None:
    source = (
        "{% macro ask(x) %}[{{ x }}: {{ mask }}]{% endmacro %}"
        "{% set q %}Was it {{ mask(2) }}?{% endset %}{% set m = mask %}"
        "{% macro twice() %}{{ caller() }}{{ caller() }}{% endmacro %}"
        "{{ ask(text) }}{{ q }}{{ m }}{% call twice() %}{{ sep }}{% endcall %}"
    )
    assert parts(source) == [
        Text("["), Text("Great fun.", "text", COLUMN), Text(": "), Mask(), Text("]"),
        Text("Was it "), Mask(2), Text("?"), Mask(), Sep(), Sep(),
    ]  # fmt: skip


def test_a_block_of_plain_text_can_be_filtered_and_joined() -> None:
    block = "{% set q %}It was {{ text }}{% endset %}"
    assert shown(block + "{{ q | upper }}") == "IT WAS GREAT FUN."
    assert shown(block + "{{ q ~ '!' }}") == "It was Great fun.!"
    assert parts(block + "{{ q | truncate_here }}")[0].cut == FIRST  # type: ignore[union-attr]
    assert shown("{% set q %}{% endset %}{{ 'full' if q else 'empty' }}") == "empty"


def test_demonstrations() -> None:
    source = "{% for d in demos %}{{ d.text }}={{ d.word }} ({{ d.label }}); {% endfor %}{{ mask }}"
    found = Template(source).render(ROW, words=WORDS, demos=DEMOS)
    assert str(found) == "Dull.=bad (neg); A joy.=good (pos); ▁▁▁"

    source = "{% for d in demos %}{{ d.prompt }}\n{% endfor %}{{ text }} It was {{ mask }}{{ tail('.') }}"
    found = Template(source).render(ROW, words=WORDS, demos=DEMOS)
    assert str(found) == "Dull. It was bad.\nA joy. It was good.\nGreat fun. It was ▁▁▁."
    assert [p.tail for p in found.parts if isinstance(p, Text)].count(True) == 1
    assert shown("{{ demos[0].prompt ~ '!' if demos else '' }}", words=WORDS, demos=DEMOS) == "!"
    with pytest.raises(TemplateError, match="'x', which has no words"):
        Template(source).render(ROW, words=WORDS, demos=[(ROW, "x")])


def test_labels_and_words_are_in_scope() -> None:
    source = "{{ labels | join('/') }}: {{ words.neg[1] }}"
    assert shown(source, labels=["neg", "pos"], words=WORDS) == "neg/pos: awful"


def test_columns_called_like_words_of_the_language() -> None:
    row = {name: f"<{name}>" for name in RESERVED}
    source = "".join(f'{{{{ row["{name}"] }}}}' for name in RESERVED)
    assert shown(source, row) == "".join(row.values())
    assert parts("{{ mask }}{{ sep }}{{ soft(n=1) }}", row) == [Mask(), Sep(), Soft(n=1)]


# --- mistakes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        '"a" ~ mask', 'mask ~ "a"', '"a" + mask', "mask + mask", "mask * 2", "mask | upper", "mask | length",
        "[mask] | join", '"%s" % mask', '"{}".format(mask)', '"%s" | format(mask)', "mask | string",
    ],
)  # fmt: skip
def test_a_mask_cannot_be_glued_to_a_string(expression: str) -> None:
    message = error(f"{{{{ text }}}}\n{{{{ {expression} }}}}")
    assert message.startswith("<t>, line 2: mask is not a string")
    assert 'Write {{ "a" }}{{ mask }} instead of {{ "a" ~ mask }}' in message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('{{ "a" ~ sep }}', "sep is not a string"),
        ("{{ soft(n=2) | upper }}", "soft is not a string"),
        ("{% filter upper %}It was {{ mask }}{% endfilter %}", "mask is not a string"),
        ("{% set q %}It was {{ mask }}{% endset %}{{ q | upper }}", "mask is not a string"),
        ("{% set q %}It was {{ mask }}{% endset %}{{ q ~ '.' }}", "mask is not a string"),
        ("{% for x in mask %}{% endfor %}", "cannot be looped over"),
        ("{{ [mask, text] }}", "a list that holds parts is not text"),
        ("{{ text | keep | upper }}", "come last"),
        ('{{ (text | truncate_here) ~ "." }}', "come last"),
        ("{{ demos[0] }}", "write {{ demo.prompt }}"),
        ("{{ demos[0] ~ '' }}", "write {{ demo.prompt }}"),
        ("{{ mask(0) }}", "a whole number from 1 to 64"),
        ("{{ mask('x') }}", "a whole number from 1 to 64"),
        ("{{ soft() }}", "either a text"),
        ("{{ soft('a', n=2) }}", "either a text"),
        ("{{ soft(' ') }}", "empty"),
        ("{{ soft(n=0) }}", "from 1 to 512"),
        ("{{ soft }}", "'soft' is a function: call it with ()"),
        ("{{ tail(mask) }}", "tail takes text, not mask"),
        ("{{ text | truncate_here('top') }}", "side is 'right' or 'left'"),
        ("{{ none }}", "missing (None)"),
        ("{{ missing }}", "missing (None)"),
        ("{{ nothing }}", "'nothing' is undefined. The row has: text, missing"),
        ("{{ nothing }}", f"missing. It begins: {ROW['text'][:10]!r}"[:-1]),
        ("{{ 1 // 0 }}", "ZeroDivisionError: integer division or modulo by zero. It begins: "),
        ("{{ binary }}", "a value is bytes and no text"),
        ("{{ range }}", "A column of that name is {{ row['range'] }}"),
        ("{{ row.nothing }}", "the row has no column 'nothing'. The row has: text, missing"),
        ("{{ row['nothing'] or '' }}", "the row has no column 'nothing'"),
        ("{% filter upper %}{{ mask }}{% endfilter %}", "mask is not a string"),
        ("{% for x in text %}", "not closed"),
        ("{{ text", "not closed"),
        ("{{ text | nofilter }}", "No filter named 'nofilter'"),
        ("{% bogus %}", "unknown tag 'bogus'"),
    ],
)  # fmt: skip
def test_mistakes_name_file_line_and_remedy(source: str, said: str) -> None:
    row = {**ROW, "missing": None}
    row |= {"binary": b"a film"} if "binary" in source else {}
    message = error(f"one\n\n{source}", row, words=WORDS, demos=DEMOS)
    assert message.startswith("<t>, line 3: ")
    assert said in message


def test_the_line_of_a_mistake_in_a_macro() -> None:
    message = error("{% macro m(x) %}\n{{ x | upper }}\n{% endmacro %}\n\n{{ m(mask) }}")
    assert message.startswith("<t>, line 2: mask is not a string")


def test_check_finds_unknown_columns_before_rendering() -> None:
    with pytest.raises(
        TemplateError, match=r"line 2: 'txt' is neither a column.*Did you mean 'text'"
    ):
        Template("a\n{{ txt }}").check(["text"])
    with pytest.raises(TemplateError, match="has no mask"):
        Template("{{ text }}").check(["text"], example=ROW)
    Template("{{ text }}{{ mask }}{{ row.x }}").check(["text"])


# --- files and plugins ---------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "it-was.jinja"
    path.write_text("﻿{{ text }} It was {{ mask }}\n", encoding="utf-8")
    template = Template.from_file(path)
    assert (template.name, template.origin) == ("it-was", str(path))
    assert template.render(ROW) == Prompt(
        (Text("Great fun.", "text", COLUMN), Text(" It was "), Mask())
    )
    with pytest.raises(UserError, match="no template file"):
        Template.from_file(tmp_path / "none.jinja")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UserError, match=r"\.jinja"):
        Template.from_file(tmp_path / "x.txt")
    (tmp_path / "latin.jinja").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        Template.from_file(tmp_path / "latin.jinja")


class Extras:
    @hookimpl
    def promptforge_template_filters(self) -> Mapping[str, Callable[..., Any]]:
        return {"shout": lambda value, mark="!": f"{value}{mark}".upper(), "keep": str.lower}

    @hookimpl
    def promptforge_template_globals(self) -> Mapping[str, Any]:
        return {"house": "PromptForge", "two_masks": lambda: Mask(2)}

    @hookimpl
    def promptforge_prompt_rendered(self, prompt: Prompt, row: Mapping[str, Any]) -> Prompt | None:
        return Prompt((*prompt.parts, Text("§"))) if row["text"] == "mark" else None


@pytest.fixture
def extras() -> Iterator[None]:
    before = list(manager().problems), list(manager().plugins)
    manager().register(Extras(), "extras")
    yield
    manager().pm.unregister(name="extras")
    manager().problems[:], manager().plugins[:] = before


@pytest.mark.usefixtures("extras")
def test_plugins_bring_filters_globals_and_change_prompts() -> None:
    assert parts("{{ text | shout }}") == [Text("GREAT FUN.!", "text", COLUMN)]
    assert parts("{{ house }}{{ two_masks() }}") == [
        Text("PromptForge", "expression", LAST),
        Mask(2),
    ]
    assert parts("{{ text | keep }}")[0] == Text("Great fun.", "text", KEEP)  # the first name wins
    assert any(p.plugin == "extras" and "'keep'" in p.message for p in manager().problems)
    assert shown("{{ text }}", {"text": "mark"}) == "mark§"
    assert "is a function" in error("{{ two_masks }}")


@pytest.mark.parametrize("wrong", ["a text", Prompt(("a text",))])  # type: ignore[arg-type]
def test_a_plugin_that_gives_back_no_prompt_is_told_so(
    monkeypatch: pytest.MonkeyPatch, extras: None, wrong: Any
) -> None:
    class Wrong:
        @hookimpl
        def promptforge_prompt_rendered(self, prompt: Prompt, row: Mapping[str, Any]) -> Any:
            return wrong

    manager().register(Wrong(), "wrong")
    try:
        with pytest.raises(PromptForgeError, match="prompt_rendered returned something else than"):
            Template("{{ text }} {{ mask }}").render(ROW)
    finally:
        manager().pm.unregister(name="wrong")


def test_without_the_plugin_its_names_are_gone() -> None:
    assert "No filter named 'shout'" in error("{{ text | shout }}")


@pytest.mark.parametrize(
    "source", ['{% include "a" %}', '{% import "a" as b %}', '{% extends "a" %}']
)
def test_a_template_reads_no_other_file(source: str) -> None:
    with pytest.raises(TemplateError, match=r"line 2: a template is one file"):
        Template(f"{{{{ mask }}}}\n{source}").check(["text"])


def test_a_check_without_a_row_does_not_judge_values() -> None:
    template = Template("{% if stars > 3 %}Good. {% endif %}{{ mask }}")
    template.check(["stars"])
    assert str(template.render({"stars": 4})).startswith("Good.")
    with pytest.raises(TemplateError, match="'>' not supported"):
        template.check(["stars"], example={"stars": "many"})


def test_an_if_without_an_else_is_nothing() -> None:
    assert shown("{{ 'Long. ' if text | length > 5 }}{{ text }}") == "Long. Great fun."
    assert shown("{{ 'Long. ' if text | length > 50 }}{{ text }}") == "Great fun."
    assert "'nothing' is undefined" in error("{{ 'Long. ' if nothing }}")


def test_text_in_a_filter_block_can_be_cut() -> None:
    source = "Of {% filter upper %}{{ text }} It was{% endfilter %} {{ mask }}"
    words, text, *_ = parts(source)
    assert words == Text("Of ") and text == Text("GREAT FUN. IT WAS", "expression", LAST)
    kept = parts("{% filter upper | keep %}{{ text }}{% endfilter %}")
    assert kept == [Text("GREAT FUN.", "expression", KEEP)]


@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan")])
def test_a_value_that_is_missing_is_no_text(missing: Any) -> None:
    row = {"text": "Fun.", "title": missing}
    assert "a value is missing" in error("{{ title }}: {{ text }}", row)
    assert "a value is missing" in error("{{ row.title }}: {{ text }}", row)
    assert shown("{{ title or 'No title' }}: {{ text }}", row) == "No title: Fun."


def test_a_check_for_a_causal_model() -> None:
    template = Template("{{ text }} It was {{ mask }}, truly")
    template.check(["text"], family="masked")
    with pytest.raises(TemplateError, match="the mask must come last"):
        template.check(["text"], family="causal")
    Template("{{ text }} It was {{ mask }}{{ tail('.') }}").check(["text"], family="causal")
