"""A template can neither reach what it was not given nor run for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from promptforge.template import Template, TemplateError

ROW = {"text": "Great fun."}
WORDS = {"neg": ["bad", "awful"], "pos": ["good"]}
DEMOS = [({"text": "Dull."}, "neg"), ({"text": "A joy."}, "pos")]


def error(source: str, row: Mapping[str, Any] = ROW) -> str:
    with pytest.raises(TemplateError) as caught:
        Template(source, name="t").render(row, words=WORDS, demos=DEMOS)
    return str(caught.value)


@pytest.mark.parametrize(
    "expression",
    [
        "mask.__class__", "text.__class__.__mro__", "soft.__globals__", "keep.__globals__", "row.__init__",
        "''.__class__.__base__.__subclasses__()", "text | attr('__class__')", "soft['__globals__']",
        "'{0.__class__}'.format(mask)", "'{x.__class__}'.format_map({'x': mask})", "text['__class__']",
        "soft.__code__", "row.update({'a': 1})", "row.clear()", "demos.append(1)", "words.pop('neg')",
        "demos[0].row.clear()", "demos[0]._template", "demos[0]['_scope']", "demos[0].template.source",
        "demos[0].prompt.__class__", "(text | keep).__class__", "self.__class__", "range.__self__",
    ],
)  # fmt: skip
def test_nothing_leaves_the_sandbox(expression: str) -> None:
    row = dict(ROW)
    message = error(f"{{{{ {expression} }}}}{{% if demos %}}{{% endif %}}", row)
    assert "<class" not in message and "subclasses" not in message
    assert row == ROW


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for d in demos %}{{ d.prompt }}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ text | replace('e', 'ee' * 999) }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        *(
            f"{{% set ns = namespace(s={start}) %}}{{% for i in range(99) %}}{{% set ns.s = {grow} %}}{{% endfor %}}"
            for start, grow in [
                ("'a'", "ns.s ~ ns.s"), ("'a'", "ns.s + ns.s"), ("[1]", "ns.s + ns.s"), ("3", "ns.s * ns.s"),
                ("'a'", "ns.s | replace('a', 'aaaa')"), ("'a'", "ns.s.replace('a', 'aaaa')"),
            ]
        ),
        "{% set ns = namespace(s='') %}{% for i in range(99) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}x{% endset %}{% endfor %}",
        "{{ 'a' * 999999999 }}", "{{ 999999999 * [1] }}", "{{ 9 ** 9 ** 9 ** 9 ** 9 }}", "{{ range(999999999) | join }}",
        "{{ 'a'.center(999999999) }}", "{{ 'a' | center(999999999) }}", "{{ 'a'.zfill(999999999) }}",
        "{{ '%999999999d' % 1 }}", "{{ '%*d' % (999999999, 1) }}", "{{ '%999999999d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}", "{{ '{:{}}'.format('a', 999999999) }}",
    ],
)  # fmt: skip
def test_endless_and_exploding_templates_stop_quickly(source: str) -> None:
    assert error(source).startswith("<t>, line 1: ")
