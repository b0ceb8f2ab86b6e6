"""Tasks: columns, labels, kind and patterns, read from a task folder.

A task folder holds `task.toml` and one template file per pattern. A pattern is a template
with label words of its own or the task's; the two always travel together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from promptforge.data import AnyReader, Example, Row, examples, labels_of, read_rows
from promptforge.errors import UserError, did_you_mean, listed, nearest
from promptforge.multilabel import LABEL, MultiLabel
from promptforge.plugins import manager
from promptforge.progress import Reporter
from promptforge.remote import expanded
from promptforge.scale import Scale
from promptforge.shots import sample_shots
from promptforge.template import Template
from promptforge.verbalizer import Words

TASK_FILE = "task.toml"
#: The tables of a task that commands look for by themselves.
SPLITS = ("train", "dev", "test", "unlabeled")


@dataclass(frozen=True)
class Pattern:
    """A template with, where it has them, label words of its own.

    Attributes:
        premise: text that the label word follows when there is no input (for PMI calibration).
    """

    name: str
    template: Template
    words: Words | None = None
    premise: str | None = None
    description: str = ""

    def decides(self) -> dict[str, Any]:
        """What a training on it depends on: all but where the template lies, so that it can be moved."""
        template = self.template
        return {
            "source": template.source, "renderer": template.renderer, "words": self.words,
            "premise": self.premise,
        }  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What to classify, into which labels, and how to ask.

    Attributes:
        name: the task's name.
        labels: label -> words, in the order of the labels; words may be empty until found.
        patterns: name -> pattern, in order.
        inputs: the columns that the templates use.
        label_column: the column of the labels.
        kind: what kind of task it is ("sentiment", "topic", ...); tasks of one kind are alike.
        values: value in the data -> label, where they differ.
        data: split -> path of its table.
        scale: where numbers are predicted: the labels are the poles of its low and high end.
        multi_label: where a row has several labels or none: the labels are the answers `yes` and
            `no`, and the templates ask about one candidate, `{{ label }}`.
        generates: a text is written where the mask stands: `label_column` is the column of the
            texts, and there are no labels.
    """

    name: str
    labels: Words
    patterns: dict[str, Pattern]
    inputs: tuple[str, ...]
    label_column: str = "label"
    kind: str = ""
    description: str = ""
    values: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None
    scale: Scale | None = None
    multi_label: MultiLabel | None = None
    generates: bool = False

    @classmethod
    def load(cls, name: str | Path, report: Reporter | None = None) -> Task:
        """A task from a folder, a `task.toml`, or the name of a shipped task.

        Args:
            name: which.
            report: where warnings go.

        Raises:
            UserError: no such task, or a mistake in its files, with file and key.
        """
        from promptforge.task_file import read_task

        path = expanded(name)
        if path.name == TASK_FILE and path.is_file():
            return read_task(path.parent, report)
        if path.is_dir():
            if not (path / TASK_FILE).is_file():
                from promptforge.tuning.run import no_task

                raise no_task(path)
            return read_task(path, report)
        folders = task_folders()
        if str(name) in folders:
            return read_task(folders[str(name)], report)
        raise UserError(
            f"There is no task {str(name)!r}: neither a folder nor a shipped task."
            f"{did_you_mean(str(name), list(folders))} Shipped: {listed(list(folders), 30)}."
        )

    @classmethod
    def inline(
        cls,
        templates: Sequence[Template],
        *,
        labels: Mapping[str, str | Sequence[str]] | Sequence[str],
        label_column: str = "label",
        inputs: Sequence[str] | None = None,
        name: str = "task",
        multi_label: MultiLabel | None = None,
        generates: bool = False,
    ) -> Task:
        """A task without a folder. Labels given without words have their own names as words.

        Raises:
            UserError: two templates of one name, a name that cannot be a folder's.
        """
        from promptforge.task_file import check_name

        check_name(name, "The task's name")
        words = labels if isinstance(labels, Mapping) else {label: [label] for label in labels}
        if inputs is None:
            inputs = list(dict.fromkeys(c for t in templates for c in t.columns))
            inputs = [c for c in inputs if not (multi_label and c == LABEL)]
        patterns: dict[str, Pattern] = {}
        for template in templates:
            check_name(template.name, "The template's name")
            if template.name in patterns:
                raise UserError(f"Two templates are called {template.name!r}.")
            patterns[template.name] = Pattern(template.name, template)
        return cls(
            name,
            _lists(words),
            patterns,
            tuple(inputs),
            label_column=label_column,
            multi_label=multi_label,
            generates=generates,
        )

    def to_json(self) -> dict[str, Any]:
        """All that is needed to make the task again, without its folder and data."""
        keep = ("name", "labels", "inputs", "label_column", "kind", "description", "values")
        patterns = {
            name: {**p.decides(), "origin": p.template.origin} for name, p in self.patterns.items()
        }
        made = {**{key: getattr(self, key) for key in keep}, "patterns": patterns}
        kinds = {"scale": self.scale, "multi_label": self.multi_label}
        made |= {name: vars(kind) for name, kind in kinds.items() if kind}
        return {**made, "generates": True} if self.generates else made

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Task:
        """The reverse of `to_json`."""
        patterns = {
            name: Pattern(
                name,
                Template(p["source"], name=name, origin=p["origin"], renderer=p["renderer"]),
                p["words"],
                p["premise"],
            )
            for name, p in data["patterns"].items()
        }
        made = {**data, "inputs": tuple(data["inputs"]), "patterns": patterns}
        scale = Scale.from_json(data.get("scale"))
        multi_label = MultiLabel.from_json(data.get("multi_label"))
        return cls(**{**made, "scale": scale, "multi_label": multi_label})

    @property
    def binary(self) -> Task:
        """Of a multi-label task: the one that the model sees, which asks about `label`; else itself."""
        if self.multi_label is None:
            return self
        inputs = (*self.inputs, LABEL)
        return replace(
            self, multi_label=None, inputs=inputs, label_column="answer", values={}, data={}
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that are predicted: the candidates of a multi-label task, else `labels`."""
        return self.multi_label.labels if self.multi_label else tuple(self.labels)

    def words_for(self, pattern: str) -> Words:
        """The label words of a pattern: its own, else the task's."""
        return self.patterns[pattern].words or self.labels

    def choose(self, names: str | Sequence[str]) -> Task:
        """The task with these patterns only, or this one (all when `names` is empty)."""
        names = [names] if isinstance(names, str) and names else names
        for name in names:
            if name not in self.patterns:
                known = list(self.patterns)
                raise UserError(
                    f"The task {self.name!r} has no pattern {name!r}.{did_you_mean(name, known)} It has {listed(known)}."
                )
        return replace(self, patterns={n: self.patterns[n] for n in names}) if names else self

    def with_words(self, words: Mapping[str, Mapping[str, str | Sequence[str]]]) -> Task:
        """The task with other label words per pattern ("*": for all without their own).

        Words of patterns that the task does not have are left out where all that it has get some.

        Raises:
            UserError: words of a pattern that is not there, and a pattern that gets none.
        """
        known = list(self.patterns)
        strange = [name for name in words if name not in known and name != "*"]
        if strange and "*" not in words and not words.keys() >= set(known):
            raise UserError(
                f"words: the task {self.name!r} has no pattern {strange[0]!r}."
                f"{did_you_mean(strange[0], known)} It has {listed(known)}: write "
                "{pattern: {label: words}}, with '*' for all patterns."
            )
        own = {name: _lists(some) for name, some in words.items() if name in known or name == "*"}
        patterns = {
            name: replace(p, words=own.get(name) or own.get("*") or p.words)
            for name, p in self.patterns.items()
        }
        return replace(self, patterns=patterns)

    def check(self, example: Row | None = None, *, family: str | None = None) -> None:
        """Find mistakes in the templates before any model is loaded; see `Template.check`."""
        columns = [c for c in example if c != self.label_column] if example else list(self.inputs)
        if self.generates:
            if self.label_column in self.inputs:
                raise UserError(
                    f"The task {self.name!r}: the column {self.label_column!r} holds the texts that are to be "
                    "written, so it cannot be an input of the template."
                )
            if family == "masked":
                raise UserError(
                    "A masked language model does not write from left to right. Generate with a causal "
                    "(GPT-2, Llama, smollm2) or an encoder-decoder model (T5, BART)."
                )
            family = "causal"  # what follows the mask is read by none
        if self.multi_label:
            columns = [*(c for c in columns if c != LABEL), LABEL]
            example = {**example, LABEL: self.classes[0]} if example else None
        for name, pattern in self.patterns.items():
            template = pattern.template
            if self.multi_label and not {LABEL, "row"} & template.compiled.variables.keys():
                raise UserError(
                    f"{template.origin} asks about no label: write {{{{ label }}}} where the one it asks "
                    "about belongs. The task has [multi_label]: each row is asked once for each label."
                )
            words = self.words_for(name)
            template.check(
                columns, example=example, family=family, labels=list(self.labels), words=words
            )

    def path(self, split: str) -> str:
        """The table of a split.

        Raises:
            UserError: the task has none.
        """
        if split not in self.data:
            near = did_you_mean(split, list(self.data))
            for name, meant in mistyped_splits(self.data).items():
                near = f" Is {name!r} a mistyped {split!r}?" if meant == split else near
            raise UserError(
                f"The task {self.name!r} has no {split!r} data.{near} Give a file, or add it to {TASK_FILE}, [data]. "
                f"It has: {listed(list(self.data)) or 'none'}."
            )
        return self.data[split]

    def examples(
        self,
        source: str | Path,
        report: Reporter | None = None,
        *,
        complete: bool = True,
        reader: AnyReader = None,
    ) -> list[Example]:
        """Labelled examples from a table or a split's name; see `promptforge.data.examples`."""
        self.need_labels()
        source = self._table(source)
        if self.multi_label:  # a row without a label is one with none of them
            return self.multi_label.examples(
                read_rows(source, self.inputs, reader=reader), self.label_column, str(source),
                self.values, report=report, text_columns=self.inputs, complete=complete,
            )  # fmt: skip
        rows = read_rows(source, [*self.inputs, self.label_column], reader=reader)
        column, scale, values = self.label_column, self.scale, self.values
        if scale:
            values = dict(scale.poles(rows, column, list(self.labels), str(source)))
        found = examples(
            rows,
            list(self.labels) or None,
            column,
            str(source),
            values,
            report=report,
            text_columns=self.inputs,
            complete=complete,
        )
        return [replace(e, value=scale.number(e.row[column])) for e in found] if scale else found

    def sample_shots(
        self, examples: Sequence[Example], shots: int, seed: int, *, dev: bool = True
    ) -> tuple[list[Example], list[Example]]:
        """`shots` rows of each label, and as many for dev; see `promptforge.sample_shots`."""
        if self.multi_label:
            return self.multi_label.sample_shots(examples, shots, seed, self.inputs, dev=dev)
        return sample_shots(
            examples, shots, seed, list(self.labels), dev=dev, text_columns=self.inputs
        )

    def shares(self, example: Example) -> tuple[float, ...]:
        """The probability that each label should get: all or nothing, or a number's place."""
        if self.multi_label:
            self.need_classes("A target")
        if self.scale and example.value is not None:
            return self.scale.shares(example.value)
        return tuple(float(label == example.label) for label in self.labels)

    def need_classes(self, what: str) -> None:
        """Raise a `UserError` where `what` counts right labels, and a row has not just one."""
        if self.multi_label:
            raise UserError(
                f"{what} wants one label a row, and the task {self.name!r} has several (its [multi_label])."
            )
        if self.scale:
            raise UserError(
                f"{what} counts right labels, and the task {self.name!r} predicts numbers (its [scale])."
            )

    def need_labels(self) -> None:
        """Raise a `UserError` where the task generates text."""
        if self.generates:
            raise UserError(
                f"The task {self.name!r} has no labels, it generates text (its [generate]): train it with "
                "'promptforge train --objective generate', and let it write with 'promptforge generate'."
            )

    def need_text(self, what: str) -> None:
        """Raise a `UserError` where `what` writes text, and the task classifies."""
        if not self.generates:
            raise UserError(
                f"{what} writes text, and the task {self.name!r} classifies. A task that generates has "
                f"no labels, and in its {TASK_FILE}: [generate], target = the column of the texts."
            )

    def texts(self, source: str | Path, *, reader: AnyReader = None) -> list[Row]:
        """Rows with the text that is to be written, of a task that generates.

        Raises:
            UserError: a missing column, a row without a value in one of them, no rows.
        """
        source = self._table(source)
        found = read_rows(source, [*self.inputs, self.label_column], reader=reader)
        if not found:
            raise UserError(f"{source} has no rows.")
        return found

    def rows(self, source: str | Path, *, reader: AnyReader = None) -> list[Row]:
        """Rows without labels from a table or a split's name."""
        return read_rows(self._table(source), list(self.inputs), reader=reader)

    def _table(self, source: str | Path) -> str | Path:
        """The table of a split where `source` is its name, else `source`.

        Raises:
            UserError: neither a split nor a file, and near the name of a split.
        """
        name = str(source)
        word = not Path(name).suffix and Path(name).name == name and not expanded(name).exists()
        if name in self.data or (word and nearest(name, list(self.data))):
            return self.path(name)
        return source


def _lists(words: Mapping[str, str | Sequence[str]]) -> Words:
    """Label -> its words; one word may be given as a text."""
    return {k: [some] if isinstance(some, str) else list(some) for k, some in words.items()}


def mistyped_splits(data: Mapping[str, str]) -> dict[str, str]:
    """Names in [data] that are one of `SPLITS` that is not there but for a slip, and that one."""
    absent = [split for split in SPLITS if split not in data]
    return {
        name: split
        for name in data
        if name not in SPLITS and name.isalpha()  # "test2" is one of the user's own
        for split in absent
        if _slip(name.lower(), split)
    }


def _slip(word: str, meant: str) -> bool:
    """Whether words differ in their letters' order, or one has a letter more."""
    short, long = sorted((word, meant), key=len)
    shortened = {long[:i] + long[i + 1 :] for i in range(len(long))}
    return sorted(word) == sorted(meant) or short in shortened


def task_from_data(
    source: str | Path,
    text_columns: Sequence[str],
    label_column: str,
    templates: Sequence[Template],
    report: Reporter,
    *,
    reader: AnyReader = None,
) -> tuple[Task, list[Example]]:
    """A task whose labels are those of a table, and the table's examples."""
    rows = read_rows(source, [*text_columns, label_column], reader=reader)
    found = examples(
        rows, None, label_column, str(source), report=report, text_columns=text_columns
    )
    task = Task.inline(
        templates,
        labels=labels_of(found),
        label_column=label_column,
        inputs=text_columns,
        name=Path(str(source)).stem,
    )
    return task, found


def task_folders() -> dict[str, Path]:
    """Every shipped task: PromptForge's own and the plugins', by folder name; the first wins."""
    here = Path(__file__).parent
    # In a wheel the folder lies in the package; in a checkout, beside it.
    own = next(p for p in (here / "templates", here.parent / "templates") if p.is_dir())
    roots = [("", own)]
    for plugin, paths in manager().provided("promptforge_task_folders"):
        for path in paths:
            with manager().tolerated(plugin, "promptforge_task_folders"):
                roots.append((plugin, Path(path)))
    found: dict[str, Path] = {}
    for plugin, root in roots:
        if not root.is_dir():
            manager().report(plugin, f"provides task folders in {root}, which is no folder")
            continue
        for folder in sorted(root.iterdir()):
            if not (folder / TASK_FILE).is_file():
                continue
            if folder.name in found:
                manager().report(
                    plugin, f"provides the task {folder.name!r}, a name that is taken; ignored"
                )
            found.setdefault(folder.name, folder)
    return found
