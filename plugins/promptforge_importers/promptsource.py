"""PromptSource (Bach et al. 2022, arXiv:2202.01279): `templates.yaml`, Jinja with `|||`.

A file holds the templates of one data set. Each is Jinja for input and target with `|||` between
them, both stripped; `answer_choices` is Jinja too, the answers with `|||` between them. A target
that names one of fixed answers becomes label words; one that is a column, a task that generates.
Input and target are stripped in the source; what a condition at their ends writes is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from promptforge.importing import Remark, TemplateImporter, slug, unique
from promptforge.task import Pattern, Task
from promptforge.template import RESERVED, Template
from promptforge_importers.answers import CHOICES, Answers, answers_of, variables, with_choices
from promptforge_importers.files import beginning
from promptforge_importers.writing import Unconvertible
from promptforge_importers.yaml_source import Tagged, read_yaml, text_of, yaml_files

BETWEEN = "|||"


class PromptSourceImporter(TemplateImporter):
    """`templates.yaml` files of PromptSource, or a folder of them."""

    name: ClassVar[str] = "promptsource"

    def accepts(self, source: Path) -> bool:
        """A YAML file with `templates:` and their `jinja:`, or a folder with `templates.yaml`."""
        if source.is_dir():
            return any(self.accepts(p) for p in source.rglob("templates.yaml"))
        text = beginning(source) if source.suffix in (".yaml", ".yml") else ""
        return "templates:" in text and "jinja:" in text

    def read(self, source: Path) -> Iterator[Task | Remark]:
        """One task for each set of labels, or column to be written, of each file."""
        for path in yaml_files(source):
            if path.name != "templates.yaml" and path != source:
                continue
            try:
                yield from self._file(path)
            except Unconvertible as reason:
                yield Remark(str(path), "", str(reason))

    def _file(self, path: Path) -> Iterator[Task | Remark]:
        data = _plain(read_yaml(path))
        templates = data.get("templates")
        if not isinstance(templates, dict):
            raise Unconvertible("it has no 'templates'.")
        origin = "/".join(filter(None, (text_of(data, key) for key in ("dataset", "subset"))))
        name = slug(origin or path.stem)
        groups: dict[tuple[str, tuple[str, ...]], list[tuple[Pattern, Answers]]] = {}
        for key, value in templates.items():
            title = str(key)
            try:
                about = _plain(value)
                title = text_of(about, "name") or title
                made, answers = _pattern(about, title, str(path))
            except Unconvertible as reason:
                yield Remark(str(path), title, str(reason))
                continue
            group = groups.setdefault((answers.column, tuple(answers.labels)), [])
            named = unique(made.name, [pattern.name for pattern, _ in group])
            words = made.words if group and answers.labels != group[0][1].labels else None
            group.append((Pattern(named, made.template, words, None, made.description), answers))
        for (column, labels), group in groups.items():
            answers = group[0][1]
            yield Task(
                name if len(groups) == 1 else f"{name}-{slug(column)}",
                {label: [word] for label, word in answers.labels.items()},
                {pattern.name: pattern for pattern, _ in group},
                (),
                label_column=column,
                description=f"Prompts of PromptSource for {origin}." if origin else "",
                values=dict(answers.values),
                generates=not labels,
            )


def _plain(value: Any) -> Mapping[str, Any]:
    """A mapping, its tag left off."""
    if isinstance(value, Tagged):
        value = value.value
    if not isinstance(value, dict):
        raise Unconvertible("a mapping was expected.")
    return value


def _pattern(about: Mapping[str, Any], title: str, path: str) -> tuple[Pattern, Answers]:
    """The pattern for one template, and what its target says."""
    source = about.get("jinja")
    if not isinstance(source, str):
        raise Unconvertible("it has no 'jinja'.")
    parts = source.split(BETWEEN)
    if len(parts) != 2:
        raise Unconvertible(
            f"it has {len(parts) - 1} times {BETWEEN} between input and target; one is read."
        )
    prompt, target = (part.strip() for part in parts)
    try:
        used = variables(prompt) | variables(target)
    except Unconvertible:
        variables(source)  # its reason is the better one, where the whole has one
        raise Unconvertible(
            "input and target stand in a condition or loop: it is for some rows only."
        ) from None
    written = text_of(about, CHOICES)
    choices = _choices(written)
    if choices is None and CHOICES in used:
        raise Unconvertible(
            "its answers differ from row to row." if written else "it has no answer_choices."
        )
    answers = answers_of(target, choices)
    words = {label: [word] for label, word in answers.labels.items()}
    reference = text_of(about, "reference").strip()
    description = f"{title} ({reference})" if reference else title
    source = f"{_renamed(with_choices(prompt, choices or []))} {{{{ mask }}}}".lstrip()
    name = slug(title)
    template = Template(source, name=name, origin=path)
    return Pattern(name, template, words or None, None, description), answers


def _choices(source: str) -> list[str] | None:
    """The answers where they are the same for all rows."""
    if not source or "{{" in source or "{%" in source:
        return None
    return [choice.strip() for choice in source.split(BETWEEN)]


def _renamed(source: str) -> str:
    """The template, its columns that are called like words of our templates read from the row."""
    taken = sorted(variables(source) & set(RESERVED))
    fixed = [name for name in taken if name in ("mask", "soft", "sep", "tail", "row")]
    if fixed:
        raise Unconvertible(f"its column {fixed[0]!r} is called like a word of our templates.")
    return "".join(f'{{% set {name} = row["{name}"] %}}' for name in taken) + source
