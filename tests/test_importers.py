"""Importing in general: finding the importer, what is written, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promptforge_importers.writing import Value, column, literal, template

from promptforge import TemplateImporter, UserError, hookimpl, import_templates, plugins
from promptforge.importing import Remark, slug, unique
from promptforge.task import Pattern, Task
from promptforge.template import COLUMN, RESERVED, Template, Text, of_column
from tests.importing import imported, shown

Command = Callable[..., Any]
LM_BFF = "*cls**sent_0*_It_was*mask*.*sep+*\t{'0':'terrible','1':'great'}\n"
LM_EVAL = """
task: mood
output_type: multiple_choice
doc_to_text: "{{sentence}}\\nMood:"
doc_to_target: label
doc_to_choice: [bad, good]
"""


# --- the command ---------------------------------------------------------------------------


def test_the_command_writes_task_folders_that_load(command: Command, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(LM_BFF, encoding="utf-8")
    done = command("import-templates", "t.txt", "--output", "made", "--json")
    data = done.json
    assert (data["importer"], data["remarks"]) == ("lm-bff", [])
    (task,) = data["tasks"]
    assert (task["name"], task["labels"]) == ("t", {"0": ["terrible"], "1": ["great"]})
    assert task["folder"] == str(tmp_path / "made" / "t")
    loaded = Task.load(task["folder"])
    assert shown(loaded, "line-1", {"text_a": "Great fun."}) == "Great fun. It was [MASK]."
    rendered = command("render", "made/t", "--set", "text_a=Fun.", "--no-tokens", "--json").json
    assert [part["text"] for part in rendered[0]["parts"] if "text" in part][:1] == ["Fun."]


def test_the_command_shows_what_was_left_out(command: Command, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(
        LM_BFF + "*cls**sent_0**sep+*\t{'0':'no','1':'yes'}\n", encoding="utf-8"
    )
    done = command("import-templates", "t.txt", "--output", "made")
    assert done.code == 0
    assert "Left out (1)" in done.out and "line-2: it has no mask." in done.out
    assert "Imported as lm-bff" in done.err


def test_a_task_of_each_file_of_a_folder(command: Command, tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        path = tmp_path / "tasks" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(LM_EVAL.replace("mood", slug(name)), encoding="utf-8")
    made = command("import-templates", "tasks", "--output", "made", "--json").json
    assert [task["name"] for task in made["tasks"]] == ["a", "b-c"]
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["a", "b-c"]


def test_options_of_an_importer(command: Command, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(LM_BFF, encoding="utf-8")
    made = command("import-templates", "t.txt", "--output", "made", "--json",
                   "-o", "columns.text_a=review", "-o", "importer.label_column=mood").json  # fmt: skip
    assert (made["tasks"][0]["inputs"], made["tasks"][0]["label_column"]) == (["review"], "mood")
    wrong = command("import-templates", "t.txt", "--output", "other", "-o", "colums=1")
    assert wrong.code == 2 and "no chosen component has 'colums'. Did you mean" in wrong.err


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "more", "says"),
    [
        ("nowhere", (), "There is no file or folder nowhere"),
        ("plain.txt", (), "holds no prompts that an importer knows. There are: 'promptsource'"),
        ("plain.txt", ("--importer", "lmbff"), "There is no importer called 'lmbff'. Did you mean 'lm-bff'"),
        ("both", (), "several importers: 'lm-bff', 'lm-eval'. Choose one with --importer"),
        ("plain.txt", ("--importer", "lm-bff"), "Nothing in plain.txt could be imported as 'lm-bff'"),
    ],
)  # fmt: skip
def test_mistakes_are_explained_and_nothing_is_written(
    command: Command, tmp_path: Path, source: str, more: tuple[str, ...], says: str
) -> None:
    (tmp_path / "plain.txt").write_text("Just words.\n", encoding="utf-8")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "a.txt").write_text(LM_BFF, encoding="utf-8")
    (tmp_path / "both" / "b.yaml").write_text(LM_EVAL, encoding="utf-8")
    done = command("import-templates", source, "--output", "made", *more)
    assert done.code == 2
    assert says in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["both", "plain.txt"]


@pytest.mark.parametrize("importer", ["lm-bff", "openprompt"])
@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("{a = ['x']}", "option 'labels': it has words for 1 label"),
        ("{a = ['x'], b = ['']}", "option 'labels': the label 'b' has no word"),
        ("3", "option 'labels': Input should be a valid dictionary"),
    ],
)
def test_labels_that_are_none(
    command: Command, tmp_path: Path, importer: str, labels: str, says: str
) -> None:
    (tmp_path / "t.txt").write_text(LM_BFF, encoding="utf-8")
    done = command("import-templates", "t.txt", "--output", "made", "--importer", importer, "-o", f"labels={labels}")  # fmt: skip
    assert done.code == 2 and says in done.err
    assert not (tmp_path / "made").exists()


def test_a_file_of_words_that_is_not_there(command: Command, tmp_path: Path) -> None:
    for name, text in (("t.txt", LM_BFF), ("o.txt", '{"placeholder":"text_a"} {"mask"}')):
        (tmp_path / name).write_text(text, encoding="utf-8")
        done = command("import-templates", name, "--output", "made", "-o", "words=gone.txt")
        assert done.code == 2 and "gone.txt" in done.err


def test_a_folder_in_use_is_left_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(LM_BFF, encoding="utf-8")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine.txt").write_text("mine", encoding="utf-8")
    done = command("import-templates", "t.txt", "--output", "made")
    assert done.code == 2 and "is there already" in done.err
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["mine.txt"]


# --- a stranger's importer -----------------------------------------------------------------


class Arrows(TemplateImporter):
    """`text -> good | bad`, one a line."""

    name: ClassVar[str] = "arrows"

    def accepts(self, source: Path) -> bool:
        return source.suffix == ".arrows"

    def read(self, source: Path) -> Iterator[Task | Remark]:
        for i, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
            name, words = f"line-{i}", line.partition("->")[2].split("|")
            if len(words) < 2:
                yield Remark(str(source), name, "it has no two words.")
                continue
            made = Template(line.partition("->")[0] + "{{ mask }}", name=name, origin=str(source))
            labels = {str(n): [word.strip()] for n, word in enumerate(words)}
            yield Task("arrows", labels, {name: Pattern(name, made)}, ())


@pytest.fixture
def arrows() -> Iterator[None]:
    class Plugin:
        @hookimpl
        def promptforge_template_importers(self) -> list[type[TemplateImporter]]:
            return [Arrows]

    plugins.manager().register(Plugin(), "arrows")
    yield
    plugins.manager.cache_clear()


@pytest.mark.usefixtures("arrows")
def test_a_plugin_brings_a_format(tmp_path: Path) -> None:
    source = tmp_path / "x.arrows"
    lines = ["{{ text }} It was -> bad | good", "no words", "{{ text }} {% for -> bad | good",
             "nothing from the row -> bad | good", "{{ label }}? -> bad | good", "{{ a.b }} -> no | yes"]  # fmt: skip
    source.write_text("\n".join(lines), encoding="utf-8")
    made = import_templates(source, tmp_path / "made")
    assert list(made.tasks) == ["arrows", "arrows-2"]
    assert made.tasks["arrows"].labels == {"0": ["bad"], "1": ["good"]}
    assert made.tasks["arrows"].inputs == ("text",)
    why = {remark.template: remark.reason for remark in made.remarks}
    assert why["line-2"] == "it has no two words."
    assert why["line-3"].startswith("line 1: expected token")
    assert why["line-4"] == "it uses no column of the data."
    assert why["line-5"] == "it shows 'label', the column of what is to be found."
    assert list(why) == ["line-2", "line-3", "line-4", "line-5"]


@pytest.mark.usefixtures("arrows")
def test_an_importer_itself_takes_no_options(tmp_path: Path) -> None:
    source = tmp_path / "x.arrows"
    source.write_text("{{ text }} -> bad | good", encoding="utf-8")
    assert import_templates(source, tmp_path / "made", Arrows()).importer == "arrows"
    with pytest.raises(UserError, match="Give the options"):
        import_templates(source, tmp_path / "other", Arrows(), colour="red")


# --- writing -------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
@settings(max_examples=300, deadline=None)
def test_any_words_stay_words(text: str) -> None:
    source = f"[{literal(text)}]{{{{ mask }}}}"
    assert "".join(getattr(p, "text", "") for p in Template(source).render({}).parts) == f"[{text}]"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
@settings(max_examples=200, deadline=None)
def test_any_column_can_be_read(name: str) -> None:
    source = template([column(name)])
    assert Template(source).render({name: "x"}).parts[0].text == "x"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name",
    [*RESERVED, "and", "caller", "dict", "elif", "false", "False", "for", "if", "in", "is", "loop", "namespace",
     "None", "not", "range", "self", "super", "true", 'say "x"', "it's", "a\\b", "{{ x }}", "%}", "2nd", "été"],
)  # fmt: skip
def test_a_column_that_is_called_like_something_else(name: str) -> None:
    made = Template(f"{{{{ {of_column(name)} }}}} {{{{ mask }}}}")
    assert made.columns == [name]
    made.check([name], example={name: "x"})
    assert made.render({name: "x"}).parts[0] == Text("x", name, COLUMN)


def test_steps_after_an_expression() -> None:
    joined = Value('texts | join(", ")').then("[:3]")
    parts = Template(template([joined])).render({"texts": ["ab", "cd"]}).parts
    assert parts[0].text == "ab,"  # type: ignore[union-attr]


def test_names_of_files() -> None:
    assert slug("Always/Sometimes or Never?") == "always-sometimes-or-never"
    assert slug("...") == "template"
    assert slug("Übergröße") == "übergröße"
    assert unique("a", ["a", "a-2"]) == "a-3"


def test_a_task_is_written_as_it_is_read(tmp_path: Path) -> None:
    """All that can stand in a task.toml comes back, for every shipped task."""
    from promptforge.task import task_folders
    from promptforge.task_file import write_task

    for name, folder in task_folders().items():
        task = Task.load(folder)
        write_task(task, tmp_path / name)
        again = Task.load(tmp_path / name)
        one, other = task.to_json(), again.to_json()
        for made in (one, other):
            for pattern in made["patterns"].values():
                del pattern["origin"]
        assert json.dumps(one) == json.dumps(other)


def test_awkward_label_names_and_words(tmp_path: Path) -> None:
    labels = {'say "no"': ["not at all", "né\x7f"], "1.5": ["\\ { }"], "sci/tech": ["x"]}
    made = imported(tmp_path, {"t.txt": "*cls**sent_0*_It_was*mask*.*sep+*"}, labels=labels)
    assert made.tasks["t"].labels == labels
