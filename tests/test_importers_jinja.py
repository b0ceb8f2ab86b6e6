"""Importers whose sources are Jinja in YAML: PromptSource and lm-evaluation-harness.

The expected texts come from plain Jinja and the source's own rule, written down here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from promptforge_importers.answers import answers_of
from promptforge_importers.writing import Unconvertible

from promptforge import UserError
from tests.importing import imported, reasons, shown

ROW = {"premise": "It rains | pours.", "hypothesis": "{{ 7*7 }} It is wet.", "sentence": "Fun.", "options": ["a", "b"]}  # fmt: skip


# --- PromptSource --------------------------------------------------------------------------


def promptsource(*templates: dict[str, Any], dataset: str = "weather", subset: str = "") -> str:
    """A `templates.yaml` as PromptSource writes it, with its two tags."""
    lines = [f"dataset: {dataset}", *([f"subset: {subset}"] if subset else []), "templates:"]
    for i, about in enumerate(templates):
        lines.append(f"  id-{i}: !Template")
        lines += [f"    {key}: {json.dumps(value)}" for key, value in about.items()]
        lines += ["    metadata: !TemplateMetadata", "      choices_in_prompt: true"]
    return "\n".join(lines) + "\n"


def rule(template: dict[str, Any], row: dict[str, Any]) -> tuple[str, str]:
    """Input and target by PromptSource's rule: render, split at |||, strip."""
    choices = [c.strip() for c in (template.get("answer_choices") or "").split("|||")]
    text = jinja2.Environment().from_string(template["jinja"]).render(answer_choices=choices, **row)
    prompt, target = (part.strip() for part in text.split("|||"))
    return prompt, target


CLASSIFY: dict[str, dict[str, Any]] = {
    "index": {"jinja": "{{premise}} Is it true that {{hypothesis}} ||| {{ answer_choices[label] }}", "answer_choices": "Yes ||| Maybe ||| No"},
    "shown": {"jinja": "{{premise}}\n{% for c in answer_choices %}- {{c}}\n{% endfor %}Which? ||| {{answer_choices[label]}}", "answer_choices": "Yes ||| Maybe ||| No"},
    "words": {"jinja": "{{premise}} {{\"quoted\"}}\n\n{{hypothesis}} ||| \n{{ answer_choices [label] }}\n", "answer_choices": "quite so ||| not clear at all ||| by no means"},
    "guarded": {"jinja": "{{premise}} {{hypothesis}}? ||| {% if label != -1 %}{{ answer_choices[label] }}{% endif %}", "answer_choices": "a ||| b ||| c"},
}  # fmt: skip


def test_promptsource_classifies(tmp_path: Path) -> None:
    templates = [{"name": name, **about} for name, about in CLASSIFY.items()]
    made = imported(tmp_path, {"templates.yaml": promptsource(*templates, subset="nli")})
    assert (made.importer, made.remarks, list(made.tasks)) == ("promptsource", [], ["weather-nli"])
    task = made.tasks["weather-nli"]
    assert (task.label_column, list(task.labels)) == ("label", ["0", "1", "2"])
    assert set(task.inputs) == {"premise", "hypothesis"}
    for template in templates:
        for label in task.labels:
            row = {key: ROW[key] for key in task.inputs}
            prompt, target = rule(template, {**row, "label": int(label)})
            assert shown(task, template["name"], row) == f"{prompt} [MASK]"
            assert task.words_for(template["name"])[label] == [target]


@pytest.mark.parametrize(
    ("target", "choices", "labels", "values"),
    [
        ("{{ answer_choices[label-1] }}", "a|||b|||c", {"1": "a", "2": "b", "3": "c"}, {}),
        ("{{ answer_choices[1 - label] }}", "a|||b", {"1": "a", "0": "b"}, {"false": "0", "true": "1"}),
        ("{% if label %}{{ answer_choices[0] }}{% else %}{{answer_choices[1]}}{% endif %}", "y|||n", {"1": "y", "0": "n"}, {"false": "0", "true": "1"}),
        ("{% if label == 2 %}{{ answer_choices[1] }}{% else %}{{answer_choices[0]}}{% endif %}", "y|||n", {"1": "y", "2": "n"}, {}),
        ('{{ answer_choices[{"A":0,"B":1}[label]] }}', "x|||y", {"A": "x", "B": "y"}, {}),
        ('{{ answer_choices[["w", "v"].index(label)] }}', "x|||y", {"w": "x", "v": "y"}, {}),
        ("{{ label }}", "up|||down", {"up": "up", "down": "down"}, {}),
        ("{{ label }}", "1|||2|||3", {"1": "1", "2": "2", "3": "3"}, {}),
        ("{{ ['x', 'y'][label] }}", None, {"0": "x", "1": "y"}, {"false": "0", "true": "1"}),
    ],
)  # fmt: skip
def test_what_the_values_of_the_answer_mean(
    target: str, choices: str | None, labels: dict[str, str], values: dict[str, str]
) -> None:
    found = answers_of(target, choices.split("|||") if choices else None)
    assert (found.column, found.labels, found.values) == ("label", labels, values)


@pytest.mark.parametrize(
    ("target", "choices"),
    [
        ("{% if label == 'x' %}a{% else %}b{% endif %}", ["a", "b"]),  # which other value there is
        ("{{ a }}{{ b }}", ["a", "b"]),
        ("always", ["always", "never"]),
        ("{{ label[0].text }}", None),
        ("{{ answer_choices[label] }}", ["same", "same"]),
        ("{{ ''.__class__.__mro__[label] }}", ["a", "b"]),
        ("{% for i in range(10 ** 9) %}{{ answer_choices[label] }}{% endfor %}", ["a", "b"]),
    ],
)
def test_answers_that_cannot_be_told(target: str, choices: list[str] | None) -> None:
    with pytest.raises(Unconvertible):
        answers_of(target, choices)


def test_promptsource_generates(tmp_path: Path) -> None:
    templates = (
        {"name": "Sum up", "jinja": "{{premise}}\nIn short: ||| {{ summary }}"},
        {"name": "Ask", "jinja": "Is {{hypothesis}} so? ||| {{ answer_choices[label] }}", "answer_choices": "no|||yes"},
    )  # fmt: skip
    made = imported(tmp_path, {"templates.yaml": promptsource(*templates)})
    assert set(made.tasks) == {"weather-summary", "weather-label"}
    task = made.tasks["weather-summary"]
    assert (task.generates, task.label_column, task.labels) == (True, "summary", {})
    assert shown(task, "sum-up", {"premise": "Rain."}) == "Rain.\nIn short: [MASK]"


LEFT_OUT = {
    "random": ("{{ ['a', 'b'] | choice }} {{premise}} ||| {{ answer_choices[label] }}", "it draws something at random (choice)."),
    "some rows": ("{% if label == 1 %}{{premise}} ||| yes{% endif %}", "it is for some rows only"),
    "no bars": ("{{premise}}", "it has 0 times |||"),
    "zip": ("{% for a, b in zip(x, y) %}{{a}}{% endfor %} ||| {{ answer_choices[label] }}", "it calls zip()"),
    "shows it": ("{{premise}} is {{answer_choices[label]}} ||| {{ answer_choices[label] }}", "it shows 'label'"),
    "worked out": ("{{premise}} ||| {{ text.split()[-1] }}", "nothing says which values of 'text'"),
    "broken": ("{{premise} ||| {{ answer_choices[label] }}", "no Jinja"),
    "two columns": ("{{premise}} ||| {{ a[b] }}", "several columns (a, b)"),
    "mask": ("{{mask}} {{premise}} ||| {{ answer_choices[label] }}", "its column 'mask' is called like a word"),
    "no column": ("What? ||| {{ answer_choices[label] }}", "it uses no column of the data."),
}  # fmt: skip


def test_promptsource_says_what_it_leaves_out(tmp_path: Path) -> None:
    templates = [
        {"name": n, "jinja": j, "answer_choices": "no|||yes"} for n, (j, _) in LEFT_OUT.items()
    ]
    templates.append({"name": "rows", "jinja": "{{a}} ||| {{ answer_choices[label] }}", "answer_choices": "{{a}}|||{{b}}"})  # fmt: skip
    templates.append({"name": "good", "jinja": "{{labels}} {{premise}} ||| {{ answer_choices[label] }}", "answer_choices": "no|||yes"})  # fmt: skip
    made = imported(tmp_path, {"templates.yaml": promptsource(*templates)})
    why = reasons(made)
    assert set(why) == {*LEFT_OUT, "rows"}
    for name, (_, reason) in LEFT_OUT.items():
        assert reason in why[name], name
    assert why["rows"] == "its answers differ from row to row."
    (task,) = made.tasks.values()
    # A column that is called like a word of ours is read from the row.
    assert shown(task, "good", {"labels": "L", "premise": "P"}) == "L P [MASK]"


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!mkdir"]
)
def test_yaml_tags_are_never_constructed(tmp_path: Path, tag: str) -> None:
    trap = tmp_path / "trap"
    good = promptsource({"name": "good", "jinja": "{{a}} ||| {{answer_choices[label]}}", "answer_choices": "n|||y"})  # fmt: skip
    bad = f"  bad: !Template\n    name: bad\n    jinja: {tag} [{json.dumps(str(trap))}]\n  worse: {tag} [1]\n"
    made = imported(tmp_path, {"templates.yaml": good + bad})
    assert reasons(made) == {"bad": "it has no 'jinja'.", "worse": "a mapping was expected."}
    assert not trap.exists()


def test_a_broken_file_does_not_stop_the_others(tmp_path: Path) -> None:
    good = promptsource({"name": "g", "jinja": "{{a}} ||| {{answer_choices[label]}}", "answer_choices": "n|||y"})  # fmt: skip
    deep = "templates: " + "[" * 3000 + "\n"
    files = {"a/templates.yaml": good, "b/templates.yaml": "templates:\n  - {unclosed\njinja:\n",
             "c/templates.yaml": "templates: 3\njinja: 4\n", "d/templates.yaml": deep}  # fmt: skip
    made = imported(tmp_path, files)
    assert list(made.tasks) == ["weather"]
    why = {Path(remark.source).parent.name: remark.reason for remark in made.remarks}
    assert why["b"].startswith("line 3: no valid YAML") and why["c"] == "it has no 'templates'."
    assert why.keys() == {"b", "c", "d"}


# --- lm-evaluation-harness -----------------------------------------------------------------


def harness(text: str, row: dict[str, Any], *, description: str = "", delimiter: str = " ") -> str:
    """The context by the harness's rule, and where the choice follows."""
    env = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    shown = row[text] if text in row else env.from_string(text).render(**row)
    return f"{description}{shown}{delimiter}[MASK]"


def lm_eval(**fields: Any) -> str:
    base = {"task": "mood", "output_type": "multiple_choice", "dataset_path": "acme/moods"}
    return "\n".join(f"{k}: {json.dumps(v)}" for k, v in {**base, **fields}.items()) + "\n"


@pytest.mark.parametrize("text", ["{{sentence}}\nMood:", "{{sentence}}\n", "sentence", "{% if sentence %}{{sentence}}{% endif %}?"])  # fmt: skip
@pytest.mark.parametrize("delimiter", [" ", "", "\n-> "])
def test_lm_eval_shows_what_the_harness_shows(tmp_path: Path, text: str, delimiter: str) -> None:
    row = {"sentence": "{{ x }} Fun."}
    source = lm_eval(doc_to_text=text, doc_to_target="label", doc_to_choice=["very bad", "good"],
                     target_delimiter=delimiter, description="Judge.\n\n")  # fmt: skip
    made = imported(tmp_path, {"mood.yaml": source})
    task = made.tasks["mood"]
    assert (made.importer, made.remarks) == ("lm-eval", [])
    assert task.labels == {"0": ["very bad"], "1": ["good"]}
    assert task.values == {"very bad": "0", "good": "1", "false": "0", "true": "1"}
    expected = harness(text, row, description="Judge.\n\n", delimiter=delimiter)
    assert shown(task, "prompt", row) == expected


@pytest.mark.parametrize(
    ("target", "choices", "column", "labels"),
    [
        ("{{label}}", ["no", "yes"], "label", {"0": ["no"], "1": ["yes"]}),
        ("{{['yes', 'no'][label]}}", ["no", "yes"], "label", {"1": ["no"], "0": ["yes"]}),
        ("{{['A', 'B'].index(key)}}", ["A", "B"], "key", {"A": ["A"], "B": ["B"]}),
        ("{{key - 1}}", ["A", "B"], "key", {"1": ["A"], "2": ["B"]}),
        ("{{label}}", {"x": "no", "y": "yes"}, "label", {"0": ["no"], "1": ["yes"]}),
        ("label", "{{['no', 'yes']}}", "label", {"0": ["no"], "1": ["yes"]}),
    ],
)
def test_lm_eval_targets(
    tmp_path: Path, target: str, choices: Any, column: str, labels: dict[str, list[str]]
) -> None:
    source = lm_eval(doc_to_text="{{sentence}}", doc_to_target=target, doc_to_choice=choices)
    task = imported(tmp_path, {"mood.yaml": source}).tasks["mood"]
    assert (task.label_column, task.labels) == (column, labels)


@pytest.mark.parametrize(
    ("target", "values"),
    [
        ("answer", {"A": "0", "B": "1", "C": "2"}),
        ("{{answer}}", {"A": "0", "B": "1", "C": "2"}),
        (" {{ answer }} ", {"A": "0", "B": "1", "C": "2"}),
        ("{{answer|int}}", {}),
    ],
)
def test_lm_eval_answers_are_numbers_or_texts(
    tmp_path: Path, target: str, values: dict[str, str]
) -> None:
    source = lm_eval(
        doc_to_text="{{sentence}}", doc_to_target=target, doc_to_choice=["A", "B", "C"]
    )
    task = imported(tmp_path, {"mood.yaml": source}).tasks["mood"]
    assert (task.label_column, task.labels) == ("answer", {"0": ["A"], "1": ["B"], "2": ["C"]})
    assert task.values == values


def test_lm_eval_true_and_false_are_numbers_of_a_column_by_name_only(tmp_path: Path) -> None:
    """`{{ label }}` writes "True", which is none of the choices."""
    for name, target in (("a", "label"), ("b", "{{label}}")):
        source = lm_eval(doc_to_text="{{sentence}}", doc_to_target=target, doc_to_choice=["no", "yes"])  # fmt: skip
        task = imported(tmp_path / name, {"mood.yaml": source}).tasks["mood"]
        truth = {"false": "0", "true": "1"} if target == "label" else {}
        assert task.values == {**truth, "no": "0", "yes": "1"}


def test_lm_eval_generates(tmp_path: Path) -> None:
    source = lm_eval(output_type="generate_until", doc_to_text="Q: {{sentence}}\nA:",
                     doc_to_target="{{answer}}", gen_prefix="So")  # fmt: skip
    task = imported(tmp_path, {"mood.yaml": source}).tasks["mood"]
    assert (task.generates, task.label_column) == (True, "answer")
    assert shown(task, "prompt", {"sentence": "Why?"}) == "Q: Why?\nA: So [MASK]"


def test_lm_eval_includes_what_lies_beside_it(tmp_path: Path) -> None:
    base = "doc_to_text: '{{sentence}} Mood:'\ndoc_to_target: label\ndoc_to_choice: [bad, good]\n"
    files = {
        "base_yaml": base,
        "more/a.yaml": "include: ../base_yaml\ntask: a\n",
        "more/b.yaml": "include: [../base_yaml]\ntask: b\ndoc_to_choice: [dull, fine]\n",
        "c.yaml": "include: gone.yaml\ntask: c\n",
        "d.yaml": "include: d.yaml\ntask: d\n",
        "e.yaml": "include: /etc/hostname\ntask: e\n",
        "group.yaml": "group: moods\ntask: [a, b]\ndoc_to_text: x\n",
        "part.yaml": base,
    }
    made = imported(tmp_path, files)
    assert {name: list(task.labels.values()) for name, task in made.tasks.items()} == {
        "a": [["bad"], ["good"]], "b": [["dull"], ["fine"]],
    }  # fmt: skip
    why = {Path(remark.source).name: remark.reason for remark in made.remarks}
    assert why == {
        "c.yaml": "include: there is no file gone.yaml beside it.",
        "d.yaml": "its files include each other without end.",
        "e.yaml": "include: '/etc/hostname' is not a file beside it.",
        "group.yaml": "it is a group of tasks; the tasks are files of their own.",
    }


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("doc_to_text: !function utils.text\ndoc_to_target: label\n", "doc_to_text is code (!function utils.text)"),
        ("doc_to_text: '{{a}}'\ndoc_to_target: !function utils.t\n", "doc_to_target is code"),
        ("doc_to_text: '{{a}}'\ndoc_to_target: label\ndoc_to_choice: '{{[sol1, sol2]}}'\n", "the answers differ from row to row"),
        ("doc_to_text: '{{a}}'\ndoc_to_target: label\ndoc_to_choice: choices\n", "the answers differ from row to row"),
        ("doc_to_text: '{{a}}'\ndoc_to_target: 0\ndoc_to_choice: [a, b]\n", "the answer is the same for every row"),
        ("doc_to_text: '{{a}}'\ndoc_to_target: '{{b.c[0]}}'\n", "the text to be written is worked out"),
        ("doc_to_text: ''\ndoc_to_target: '{{a}}'\noutput_type: loglikelihood_rolling\n", "there is nothing to ask"),
        ("doc_to_text: '{{a | regex_replace(1, 2)}}'\ndoc_to_target: label\ndoc_to_choice: [a, b]\n", "No filter named 'regex_replace'"),
        ("doc_to_text: [1]\ndoc_to_target: label\ndoc_to_choice: [a, b]\n", "doc_to_text: a text was expected"),
        ("doc_to_text: '{{a}}'\ndoc_to_target: label\ndoc_to_choice: [[a], b]\n", "a list of texts was expected"),
    ],
)  # fmt: skip
def test_lm_eval_says_what_it_leaves_out(tmp_path: Path, lines: str, reason: str) -> None:
    with pytest.raises(UserError, match="could be imported as 'lm-eval'") as caught:
        imported(tmp_path, {"mood.yaml": f"task: mood\n{lines}"})
    assert reason in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_lm_eval_names_code_that_prepares_the_rows(tmp_path: Path) -> None:
    source = lm_eval(doc_to_text="{{query}}", doc_to_target="label", doc_to_choice=["a", "b"])
    made = imported(tmp_path, {"mood.yaml": source + "process_docs: !function utils.docs\n"})
    (remark,) = made.remarks
    assert (remark.template, remark.imported) == ("mood", True)
    assert "process_docs is code (!function utils.docs)" in remark.reason
