"""lm-evaluation-harness (EleutherAI): task YAML with `doc_to_text`, `doc_to_choice`, `doc_to_target`.

The harness shows `description`, then `doc_to_text`, then `target_delimiter` (a space by default)
and one of the choices. `doc_to_target` is the index of the right choice, or its text. Each is
Jinja or the name of a column; what a `!function` makes is code, and is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from promptforge.importing import Remark, TemplateImporter, slug
from promptforge.task import Pattern, Task
from promptforge.template import RESERVED, Template
from promptforge_importers.answers import Answers, answers_of, bare_column, constant_list, variables
from promptforge_importers.files import beginning
from promptforge_importers.writing import Unconvertible, column, literal
from promptforge_importers.yaml_source import Tagged, read_yaml, text_of, yaml_files

MOST_INCLUDES = 20


class LmEvalImporter(TemplateImporter):
    """Task YAML of lm-evaluation-harness, or a folder of them."""

    name: ClassVar[str] = "lm-eval"

    def accepts(self, source: Path) -> bool:
        """A YAML file with `doc_to_text:`, or with `task:` and `include:`; a folder with one."""
        for path in yaml_files(source):
            text = "\n" + beginning(path) if path.suffix in (".yaml", ".yml") else ""
            if "\ndoc_to_text:" in text or ("\ntask:" in text and "\ninclude:" in text):
                return True
        return False

    def read(self, source: Path) -> Iterator[Task | Remark]:
        """One task with one pattern for each file that says `task:`."""
        included: dict[Path, Mapping[str, Any]] = {}
        for path in yaml_files(source):
            try:
                data = _read(path, included)
                if isinstance(data.get("task"), list | dict):
                    raise Unconvertible("it is a group of tasks; the tasks are files of their own.")
                if not text_of(data, "task"):
                    if path == source:
                        raise Unconvertible("it has no 'task'.")
                    continue  # a file that others include
                yield from _task(data, str(path))
            except Unconvertible as reason:
                yield Remark(str(path), "", str(reason))


def _read(path: Path, known: dict[Path, Mapping[str, Any]], depth: int = 0) -> Mapping[str, Any]:
    """A file with what it includes; its own keys win."""
    path = path.resolve()
    if path in known:
        return known[path]
    if depth > MOST_INCLUDES:
        raise Unconvertible("its files include each other without end.")
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise Unconvertible("a mapping was expected.")
    merged: dict[str, Any] = {}
    names = data.get("include") or []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str):
            raise Unconvertible("include: the name of a file was expected.")
        if Path(name).is_absolute():
            raise Unconvertible(f"include: {name!r} is not a file beside it.")
        try:
            there = (path.parent / name).is_file()
        except OSError:  # no disk has so long a name
            there = False
        if not there:
            raise Unconvertible(f"include: there is no file {name} beside it.")
        base = _read(path.parent / name, known, depth + 1)
        merged |= {key: value for key, value in base.items() if key not in ("include", "task_list")}
    known[path] = merged | data
    return known[path]


def _task(data: Mapping[str, Any], path: str) -> Iterator[Task | Remark]:
    """The task that a file describes."""
    name = text_of(data, "task")
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix"):
        if isinstance(value := data.get(key), Tagged):
            raise Unconvertible(f"{key} is code ({value}), which is not run.")
    for key in ("doc_to_image", "doc_to_audio", "use_prompt", "class"):
        if data.get(key):
            raise Unconvertible(f"{key}: its prompt is more than this text.")
    if data.get("output_type") == "loglikelihood_rolling":
        raise Unconvertible(
            "it scores whole texts (loglikelihood_rolling): there is nothing to ask."
        )
    if data.get("doc_to_text") is None or data.get("doc_to_target") is None:
        raise Unconvertible("it has no doc_to_text and doc_to_target.")
    choices = _choices(data.get("doc_to_choice"))
    answers = _answers(data["doc_to_target"], choices)
    words = {label: [word] for label, word in answers.labels.items()}
    pattern = Pattern("prompt", Template(_prompt(data), name="prompt", origin=path))
    where = ", ".join(filter(None, (text_of(data, k) for k in ("dataset_path", "dataset_name"))))
    if isinstance(code := data.get("process_docs"), Tagged):
        yield Remark(
            path,
            name,
            f"process_docs is code ({code}), which is not run: the data must have the "
            "columns that it makes.",
            imported=True,
        )
    yield Task(
        slug(name),
        words,
        {"prompt": pattern},
        (),
        label_column=answers.column,
        description=f"Prompt of lm-evaluation-harness ({where})." if where else "",
        values=dict(answers.values),
        generates=not answers.labels,
    )


def _choices(value: Any) -> list[str] | None:
    """The answers, the same for every row; None: there are none to choose from."""
    if value is None:
        return None
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, str):
        value = constant_list(value)
        if value is None:
            raise Unconvertible(
                "doc_to_choice: the answers differ from row to row, or are worked out."
            )
    if not isinstance(value, list) or not all(isinstance(v, (str, int, float)) for v in value):
        raise Unconvertible("doc_to_choice: a list of texts was expected.")
    return [str(v) for v in value]


def _answers(target: Any, choices: list[str] | None) -> Answers:
    """The column of the answer, and what its values mean: an index or the text of a choice."""
    if isinstance(target, int | float):
        raise Unconvertible("doc_to_target: the answer is the same for every row.")
    if not isinstance(target, str):
        raise Unconvertible("doc_to_target: a text was expected.")
    source = f"{{{{ {target} }}}}" if target.isidentifier() else target
    if not choices:
        return answers_of(source, None)
    numbers = [str(i) for i in range(len(choices))]
    try:
        found = answers_of(source, numbers)
    except Unconvertible:
        return answers_of(source, choices)
    labels = {label: choices[int(number)] for label, number in found.labels.items()}
    if bare_column(source) is None:
        return Answers(found.column, labels, found.values)
    # The harness takes the text of a choice too, and True and False as numbers where it reads the
    # column itself; `{{ column }}` makes a text of them.
    binary = target.isidentifier() and set(labels) == {"0", "1"}
    values = {"false": "0", "true": "1"} if binary else {}
    values |= {text: label for label, text in labels.items() if text not in labels}
    return Answers(found.column, labels, values)


def _prompt(data: Mapping[str, Any]) -> str:
    """The template: description, text and delimiter as the harness joins them, then the mask."""
    delimiter = data.get("target_delimiter", " ")
    if not isinstance(delimiter, str):
        raise Unconvertible("target_delimiter: a text was expected.")
    text = _jinja(data["doc_to_text"], "doc_to_text")
    prefix = _jinja(data.get("gen_prefix") or "", "gen_prefix")
    if prefix:
        apart = text and not (text[-1].isspace() or prefix[0].isspace())
        text += (literal(delimiter) if apart else "") + prefix
        delimiter = "" if prefix[-1].isspace() else delimiter
    return f"{_jinja(data.get('description') or '', 'description')}{text}{literal(delimiter)}{{{{ mask }}}}"


def _jinja(source: Any, key: str) -> str:
    """A field as a template: Jinja, or the name of a column."""
    if not isinstance(source, str):
        raise Unconvertible(f"{key}: a text was expected.")
    if source.isidentifier() and key == "doc_to_text":
        return f"{{{{ {column(source).source} }}}}"
    if taken := sorted(variables(source) & set(RESERVED)):
        raise Unconvertible(f"its column {taken[0]!r} is called like a word of our templates.")
    return source
