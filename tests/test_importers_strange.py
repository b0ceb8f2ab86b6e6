"""Sources with mistakes and traps: each is told, soon, and the files beside it are read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.importing import imported, reasons, shown

LM_EVAL = {
    "task": "mood",
    "doc_to_text": "'{{a}}'",
    "doc_to_target": "label",
    "doc_to_choice": "[no, yes]",
}
PROMPTSOURCE = {"name": "n", "jinja": "'{{a}} ||| {{answer_choices[label]}}'", "answer_choices": "no|||yes"}  # fmt: skip


def lm_eval(**fields: str) -> str:
    return "".join(f"{key}: {value}\n" for key, value in {**LM_EVAL, **fields}.items())


def promptsource(top: str = "", **fields: str) -> str:
    about = "".join(f"    {k}: {v}\n" for k, v in {**PROMPTSOURCE, **fields}.items())
    return f"{top}templates:\n  id: !Template\n{about}"


#: `*b`: a list that is endless when it is written out, of a few hundred bytes.
ALIASES = "z0: &z0 [a, a]\n" + "".join(
    f"z{i}: &{'b' if i == 40 else f'z{i}'} [*z{i - 1}, *z{i - 1}]\n" for i in range(1, 41)
)


# --- values of the wrong kind --------------------------------------------------------------


@pytest.mark.parametrize("key", ["task", "include", "doc_to_text", "doc_to_target", "doc_to_choice", "description",
                                 "gen_prefix", "target_delimiter", "dataset_path", "dataset_name"])  # fmt: skip
@pytest.mark.parametrize("value", ["{a: 1}", "*b", "!t {a: *b}", "!!set {a}", "2020-01-01", "5", "true"])  # fmt: skip
def test_lm_eval_values_of_the_wrong_kind(tmp_path: Path, key: str, value: str) -> None:
    files = {"good.yaml": lm_eval(task="good"), "odd.yaml": ALIASES + lm_eval(**{key: value})}
    made = imported(tmp_path, files, "lm-eval")
    assert "good" in made.tasks
    if value in ("5", "true", "2020-01-01") and key in ("task", "dataset_path", "dataset_name"):
        assert made.remarks == []  # a name all the same
    elif (key, value) != ("doc_to_choice", "{a: 1}"):
        ((_, reason),) = reasons(made).items()
        assert len(reason) < 100
        assert key in reason or reason.startswith(("it is a group of tasks", "the answers are not"))
    else:
        assert "the answers are not two or more" in reasons(made)[""]


@pytest.mark.parametrize("key", ["dataset", "subset", "templates", "name", "jinja", "answer_choices", "reference"])  # fmt: skip
@pytest.mark.parametrize("value", ["[a]", "*b", "!t {a: *b}"])
def test_promptsource_values_of_the_wrong_kind(tmp_path: Path, key: str, value: str) -> None:
    if key in ("dataset", "subset"):
        odd = promptsource(f"{key}: {value}\n")
    else:
        odd = f"{key}: {value}\n" if key == "templates" else promptsource(**{key: value})
    made = imported(tmp_path, {"a/templates.yaml": promptsource("dataset: good\n"), "b/templates.yaml": ALIASES + odd}, "promptsource")  # fmt: skip
    assert list(made.tasks) == ["good"]
    assert [Path(remark.source).parent.name for remark in made.remarks] == ["b"]
    (reason,) = (remark.reason for remark in made.remarks)
    assert key in reason or reason == "a mapping was expected."


@pytest.mark.parametrize(
    "value", ["!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "2024-13-45", f"{'1:' * 400}1.5", "9" * 5000],
)  # fmt: skip
def test_yaml_that_its_tags_do_not_fit(tmp_path: Path, value: str) -> None:
    files = {"good.yaml": lm_eval(), "odd.yaml": lm_eval(task="odd") + f"number: {value}\n"}
    made = imported(tmp_path, files, "lm-eval")
    assert list(made.tasks) == ["mood"]
    (reason,) = (remark.reason for remark in made.remarks)
    assert "not of the kind that its tag says" in reason


def test_a_file_name_that_no_disk_has(tmp_path: Path) -> None:
    files = {"good.yaml": lm_eval(), "odd.yaml": lm_eval(include="x" * 5000)}
    made = imported(tmp_path, files, "lm-eval")
    assert list(made.tasks) == ["mood"]
    assert "include: there is no file" in reasons(made)[""]


def test_a_number_that_jinja_does_not_read(tmp_path: Path) -> None:
    files = {"good.yaml": lm_eval(), "odd.yaml": lm_eval(doc_to_text=f"'{{{{ {'9' * 5000} }}}}'")}
    made = imported(tmp_path, files, "lm-eval")
    assert list(made.tasks) == ["mood"]
    assert "no Jinja that templates here can be" in reasons(made)[""]


def test_openprompt_numbers_of_soft_tokens(tmp_path: Path) -> None:
    lines = [
        '{"placeholder":"text_a"} {"mask"}',
        '{"soft": None, "soft_id": [1]} {"placeholder":"text_a"} {"mask"}',
    ]
    made = imported(tmp_path, {"t.txt": "\n".join(lines), "verbalizer.txt": "bad\ngood\n"})
    assert list(made.tasks["source"].patterns) == ["t-1"]
    assert reasons(made) == {"t-2": "the soft_id of a soft token is a number."}


def test_lm_bff_files_that_cannot_be_read_and_long_numbers(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_bytes(b"{'0': '\xff'}")
    lines = ["*cls**sent_0**mask*\t{'0': 'bad', '1': 'good'}", f"*cls**sent_{'1' * 5000}**mask*\t{{'0': 'bad', '1': 'good'}}"]  # fmt: skip
    made = imported(tmp_path, {"t.txt": "\n".join(lines), "more.md": ""}, "lm-bff")
    assert list(made.tasks["t"].patterns) == ["line-1"]
    assert "cannot be read as UTF-8" in reasons(made)[""]
    assert "no variable of LM-BFF" in reasons(made)["line-2"]


def test_pet_with_an_expression_that_is_too_deep(tmp_path: Path) -> None:
    good = PET.replace("MoodPVP", "GoodPVP")
    deep = PET.replace("self.pattern_id == 0", f"self.pattern_id == {'0 + ' * 400}0")
    made = imported(tmp_path, {"a.py": good, "b.py": deep})
    assert list(made.tasks) == ["good"]
    assert made.remarks[-1].reason == "an expression is nested too deeply."


def test_pet_returns_something_else(tmp_path: Path) -> None:
    source = """
class MoodPVP:
    VERBALIZER = {"0": ["bad"], "1": ["good"]}
    def get_parts(self, example):
        if self.pattern_id == 0:
            return [example.text_a, self.mask], []
        return [(example.text_a, True, 3), self.mask], []
    def verbalize(self, label):
        return MoodPVP.VERBALIZER[label]
"""
    made = imported(tmp_path, {"pvp.py": source})
    assert list(made.tasks["mood"].patterns) == ["pattern-0"]
    assert "this is something else" in reasons(made)["MoodPVP, pattern 1"]


# --- sources that would never end -----------------------------------------------------------

MERGED = "b0: &b0 {a0: 1, a1: 1, a2: 1, a3: 1}\n" + "".join(
    f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 10)}]}}\n" for i in range(1, 12)
)
DOUBLED = "        x = 'very '\n" + "        x = x + x\n" * 60
PET = f"""
class MoodPVP:
    VERBALIZER = {{"0": ["bad"], "1": ["good"]}}
    def get_parts(self, example):
        if self.pattern_id == 0:
            return [example.text_a, self.mask], []
        if self.pattern_id == 1:
            return [example.text_a, 'a' * 64 * 64 * 64 * 64 * 64 * 64 * 64, self.mask], []
{DOUBLED}        return [example.text_a, x, self.mask], []
    def verbalize(self, label):
        return MoodPVP.VERBALIZER[label]
"""
OPENPROMPT = """{"placeholder":"text_a"} {"mask"}
{"soft": None, "duplicate": 9000000000, "same": True} {"placeholder":"text_a"} {"mask"}
{"placeholder":"text_a"} {"text": "a", "post_processing": lambda x: x * 64 * 64 * 64 * 64 * 64 * 64 * 64} {"mask"}
"""


@pytest.mark.parametrize(
    ("importer", "files", "told"),
    [
        ("lm-eval", {
            "good.yaml": lm_eval(),
            "a.yaml": lm_eval(doc_to_choice="'{{ [9**(9**9)] }}'"),
            "b.yaml": lm_eval(doc_to_text="'{{ 9**(9**9) }} {{a}}'"),
            "c.yaml": lm_eval(doc_to_text="\"{% set x = 'a' | center(30000000000) %}{{a}}\""),
            "d.yaml": lm_eval(doc_to_target="'{{ [9**(9**9), 1][label] }}'"),
            "e.yaml": lm_eval(doc_to_target="'{{ label - 9**(9**9) }}'"),
            "f.yaml": MERGED + lm_eval(),
        }, ["answers differ", "a power above 64", "too large here", "nothing says which", "nothing says which", "more than 10,000 keys"]),
        ("promptsource", {
            "a/templates.yaml": promptsource(jinja="'{{a}} ||| {{answer_choices[label]}}'"),
            "b/templates.yaml": promptsource(jinja="'{{ 9**(9**9) }} {{a}} ||| {{answer_choices[label]}}'"),
            "c/templates.yaml": promptsource(jinja="'{{a}} ||| {{answer_choices[label - 9**(9**9)]}}'"),
        }, ["a power above 64", "nothing says which"]),
        ("pet", {"pvp.py": PET}, ["10,000 characters", "10,000 characters"]),
        ("openprompt", {"t.txt": OPENPROMPT, "verbalizer.txt": "bad\ngood\n"}, ["at most 512", "10,000 characters"]),
    ],
)  # fmt: skip
def test_nothing_in_a_source_is_worked_out_for_ever(
    tmp_path: Path, importer: str, files: Mapping[str, str], told: list[str]
) -> None:
    for name, text in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    asked = [sys.executable, "-m", "promptforge", "import-templates", str(tmp_path / "in"), "--importer", importer,
             "--output", str(tmp_path / "out"), "--json"]  # fmt: skip
    # In a process of its own: what does not end is ended.
    done = subprocess.run(asked, capture_output=True, text=True, timeout=100, check=True)
    made = json.loads(done.stdout)
    assert len(made["tasks"]) == 1
    found = [remark["reason"] for remark in made["remarks"]]
    assert len(found) == len(told)
    for reason, part in zip(found, told, strict=True):
        assert part in reason


def test_what_is_constant_is_still_read(tmp_path: Path) -> None:
    source = lm_eval(doc_to_choice='\'{{ ["no", "yes", 3] }}\'', doc_to_text="'{{ 2 ** 3 }} {{a}}'")
    task = imported(tmp_path, {"mood.yaml": source}).tasks["mood"]
    assert task.labels == {"0": ["no"], "1": ["yes"], "2": ["3"]}
    assert shown(task, "prompt", {"a": "x"}) == "8 x [MASK]"
