"""A prompt model from end to end, as the README uses it, on tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from promptforge import (
    PromptForgeError,
    PromptModel,
    Settings,
    Task,
    UserError,
    load_model,
    sample_shots,
    search_verbalizer,
    train,
)
from promptforge.classifier import ENSEMBLE
from promptforge.data import Example
from promptforge.plugins import build
from promptforge.template import Template
from promptforge.verbalizer import LabelWords
from tests import reference, tiny

each = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
REVIEWS = tiny.EXAMPLES


def counted(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the rows of each pass through the body."""
    read: list[int] = []
    hidden = backbone.hidden
    monkeypatch.setattr(backbone, "hidden", lambda b: read.append(len(b.indices)) or hidden(b))
    return read


# --- as in the README ----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_from_a_folder_to_found_words(architecture: str, tmp_path: Path) -> None:
    backbone = load_model(str(tiny.save(architecture, tmp_path / "model")))
    assert backbone.family == tiny.backbone(architecture).family
    task = Task.load(REVIEWS).choose(["tone", "it-was"])
    model = PromptModel(backbone, task)
    train = task.examples("train")
    shots, _ = sample_shots(train, 4, 0, list(task.labels))
    words = search_verbalizer(model, shots, words_per_label=3)
    words.save(tmp_path / "verbalizer.json")

    found = model.with_words(LabelWords.load(tmp_path / "verbalizer.json"))
    results = found.evaluate(shots)
    assert list(results) == ["tone", "it-was", ENSEMBLE]
    assert results[ENSEMBLE].rows == 8
    # Words chosen for these very rows tell them apart better than words chosen for none.
    assert results["tone"].accuracy >= model.evaluate(shots)["tone"].accuracy
    rows = [e.row for e in shots]
    assert set(found.predict(rows)) <= set(task.labels)
    assert found.predict_proba(rows).sum(1) == pytest.approx(1)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_a_model_that_was_loaded_in_inference_mode_can_be_trained(
    architecture: str, tiny_model: Callable[[str], Path]
) -> None:
    with torch.inference_mode():
        loaded = load_model(str(tiny_model(architecture)))
        made = tiny.fresh(architecture)
    for backbone in (loaded, made):
        task = Task.load(tiny.EXAMPLES).choose(["it-was"])
        rows = task.examples("train")[::5]
        run = train(task, rows, backbone=backbone, settings=Settings(steps=1))
        assert run.trained


def test_models_loaded_by_threads_at_once_are_whole(tmp_path: Path) -> None:
    """transformers alone leaves the process without tied weights: `lm_head` of every later model is missing."""
    folder = str(tiny.save("gpt2", tmp_path / "model"))
    with ThreadPoolExecutor(8) as threads:
        loaded = list(threads.map(load_model, [folder] * 32))
    loaded.append(load_model(folder))
    assert len({backbone.checksum for backbone in loaded}) == 1


@each
def test_several_patterns_are_averaged(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    a, b, c, d = reference.some_words(backbone, 4)
    templates = [
        Template(f"{{{{ text }}}} {w} {{{{ mask }}}}", name=w) for w in ("It was", "Really")
    ]
    task = Task.inline(templates, labels={"x": [a, b], "y": [c]})
    task = task.with_words({"Really": {"x": [d], "y": [a]}})  # a pattern's own words stay with it
    rows = [{"text": t} for t in ("good", "a dull film", "good", "no")]
    model = PromptModel(backbone, task)
    expected = []
    for row in rows:
        each_pattern = []
        for name, words in [("It was", {"x": [a, b], "y": [c]}), ("Really", {"x": [d], "y": [a]})]:
            encoded = model.encode(name, [task.patterns[name].template.render(row)])[0]
            log_p = reference.full_logits(backbone, encoded)[encoded.reads[0]].log_softmax(-1)
            ids = [
                [backbone.text.word(w, space_before=True)[0] for w in ws] for ws in words.values()
            ]
            scores = np.array([float(log_p[i].double().mean()) for i in ids])
            each_pattern.append(np.exp(scores) / np.exp(scores).sum())
        expected.append(np.mean(each_pattern, axis=0))
    assert model.predict_proba(rows) == pytest.approx(np.array(expected), abs=1e-5)
    assert model.predict(rows) == ["xy"[int(p.argmax())] for p in np.array(expected)]
    truth = [Example(row, "xyxx"[i], i) for i, row in enumerate(rows)]
    accuracy = np.mean([p == t.label for p, t in zip(model.predict(rows), truth, strict=True)])
    assert model.evaluate(truth)[ENSEMBLE].accuracy == pytest.approx(accuracy)


@each
def test_known_prompts_are_never_read_again(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny.backbone(architecture)
    read = counted(backbone, monkeypatch)
    templates = [
        Template(f"{{{{ text }}}} {w} {{{{ mask }}}}", name=w) for w in ("It was", "Really")
    ]
    task = Task.inline(templates, labels={"x": [], "y": []})
    model = PromptModel(backbone, task)
    train = [Example({"text": t}, "xy"[i % 2], i) for i, t in enumerate(tiny.corpus()[:10])]
    words = search_verbalizer(model, train)
    assert sum(read) == 20
    found = model.with_words(words)
    proba = found.predict_proba([e.row for e in train])
    found.evaluate(train)
    search_verbalizer(model, train, search="lm-bff")
    assert sum(read) == 20
    fresh = PromptModel(backbone, task, words=words, remember=False)
    assert fresh.predict_proba([e.row for e in train]) == pytest.approx(proba, abs=1e-5)
    assert sum(read) == 40


def test_other_words_keep_the_verbalizer_and_its_options() -> None:
    backbone = tiny.backbone("bert")
    a, b, c, d = reference.some_words(backbone, 4)
    task = Task.inline(
        [Template("{{ text }} It was {{ mask }}", name="p")], labels={"x": [a], "y": [b]}
    )
    words = {"p": {"x": [a, b], "y": [c, d]}}
    rows = [{"text": "good"}, {"text": "dull"}]
    direct = PromptModel(backbone, task, words=words, options={"aggregate": "max"}).predict_proba(
        rows
    )
    other = PromptModel(backbone, task, options={"aggregate": "max"})
    other.predict_proba(rows)
    assert other.with_words(words).predict_proba(rows) == pytest.approx(direct)
    assert PromptModel(backbone, task, words=words).predict_proba(rows) != pytest.approx(direct)
    named = LabelWords(["x", "y"], words, options={"aggregate": "max"})
    assert PromptModel(backbone, task).with_words(named).predict_proba(rows) == pytest.approx(
        direct
    )


@pytest.mark.parametrize("verbalizer", ["soft", "knowledgeable"])
def test_other_words_leave_what_was_learned_for_the_old_ones(verbalizer: str) -> None:
    backbone = tiny.backbone("bert")
    a, b, c, d = reference.some_words(backbone, 4)
    sources = {"p": "{{ text }} It was {{ mask }}", "q": "{{ mask }} {{ text }}"}
    task = Task.inline([Template(s, name=n) for n, s in sources.items()], labels={"x": [a], "y": [b]})  # fmt: skip
    rows = [{"text": t} for t in ("good", "dull", "a long day", "claws")]
    plain = PromptModel(backbone, task, verbalizer=verbalizer)
    plain.predict_proba(rows)
    learned = {
        pattern: {
            name: p.detach() + torch.rand(p.shape)
            for name, p in plain.verbalizer(pattern, plain.read(pattern, rows).encoded[0]).parameters().items()
        }
        for pattern in sources
    }  # fmt: skip
    model = PromptModel(backbone, task, verbalizer=verbalizer, tuned=learned)
    words = {"p": {"x": [a, c], "y": [b, d]}}
    with pytest.warns(UserWarning, match="verbalizer of 'p' has learned was for other words"):
        found = model.with_words(words).part_probabilities(rows)
    fresh = PromptModel(backbone, task, words=words, verbalizer=verbalizer)
    assert found["p"] == pytest.approx(fresh.part_probabilities(rows)["p"])
    assert found["q"] == pytest.approx(model.part_probabilities(rows)["q"])
    assert found["q"] != pytest.approx(plain.part_probabilities(rows)["q"])


@each
@pytest.mark.parametrize("source", ["{{ text }} ({{ mask }}", "{{ text }} It was {{ mask }}"])
def test_the_longest_word_always_fits(architecture: str, source: str) -> None:
    backbone = tiny.backbone(architecture)
    task = Task.inline([Template(source)], labels={"x": ["incomprehensibilities"], "y": ["good"]})
    model = PromptModel(backbone, task)
    proba = model.predict_proba([{"text": "film " * 200}, {"text": "a"}])
    assert np.isfinite(proba).all()
    assert model.cut["text"] > 100


# --- demonstrations ------------------------------------------------------------------------


@pytest.mark.parametrize("selector", ["fixed", "random"])
def test_demonstrations_never_show_the_row_itself(selector: str) -> None:
    task = Task.load(REVIEWS).choose(["review"])
    train = task.examples("train")
    demos = build("demonstrations", selector, per_label=2)
    demos.fit(train, list(task.labels))
    model = PromptModel(tiny.backbone("bert"), task, demonstrations=demos)
    for example in train:
        shown = demos.select(dict(example.row))
        assert [d.label for d in shown] == ["negative"] * 2 + ["positive"] * 2
        assert example.row not in [d.row for d in shown]
        assert demos.select(dict(example.row)) == shown
        prompt = str(model.prompt("review", example.row))
        lines = prompt.splitlines()
        asked = [line for line in lines if line.startswith("Sentiment of the review:")]
        assert [a.rstrip(".").split()[-1] for a in asked] == ["negative"] * 2 + ["positive"] * 2 + [
            "▁▁▁"
        ]
        assert prompt.count(example.row["text"]) == 1
    if selector == "random":
        other = build("demonstrations", selector, per_label=2, seed=1)
        other.fit(train, list(task.labels))
        assert any(other.select(e.row) != demos.select(e.row) for e in train)


# --- label words in files ------------------------------------------------------------------


def test_label_words_round_trip(tmp_path: Path) -> None:
    words = LabelWords(
        ["x", "ÿ"], {"*": {"x": ["gut", "schön"], "ÿ": ["😀"]}}, {"*": {"x": [1.5, 0.25], "ÿ": [-3.0]}},
        options={"aggregate": "max"}, origin={"search": "petal"},
    )  # fmt: skip
    path = tmp_path / "new" / "verbalizer.json"
    words.save(path)
    assert LabelWords.load(path) == words
    assert [p.name for p in path.parent.iterdir()] == ["verbalizer.json"]
    assert words.words_for("any") == words.patterns["*"]
    with pytest.raises(UserError, match=r"no words for the pattern 'q'.*Only for 'p'"):
        LabelWords(["x"], {"p": {"x": ["a"]}}).words_for("q")
    with pytest.raises(UserError, match="'x', 'ÿ', and the task has 'x', 'y'"):
        words.check_labels(["x", "y"], "It")


GOOD: dict[str, Any] = {
    "format": "promptforge-verbalizer", "version": 1, "labels": ["x"], "patterns": {"*": {"x": ["a"]}},
}  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "3", "null", '{"labels": []}', b"\xff\xfe".decode("latin-1"),
        json.dumps({**GOOD, "format": "other"}), json.dumps({**GOOD, "version": 2}),
        json.dumps({**GOOD, "more": 1}), json.dumps({**GOOD, "patterns": {"*": {}}}),
        json.dumps({**GOOD, "patterns": {"*": {"x": [1]}}}), json.dumps({**GOOD, "patterns": 3}),
        json.dumps({**GOOD, "patterns": {"*": {"x": "word"}}}), json.dumps({**GOOD, "labels": "x"}),
    ],
)  # fmt: skip
def test_bad_verbalizer_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "verbalizer.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=r"verbalizer\.json is not a verbalizer file"):
        LabelWords.load(path)
    with pytest.raises(UserError, match="There is no verbalizer file"):
        LabelWords.load(tmp_path / "none.json")


# --- task folders --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str, str], Path]:
    def changed(old: str, new: str) -> Path:
        path = tmp_path / "task"
        shutil.copytree(REVIEWS, path)
        text = (path / "task.toml").read_text(encoding="utf-8")
        assert old in text
        (path / "task.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
        return path

    return changed


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind =", "knd =", r"task\.toml: knd: "),
        ('inputs = ["text"]', 'inputs = "text"', r"task\.toml: columns\.inputs: "),
        ('negative = ["awful"]', "negative = [1]", r"task\.toml: labels\.negative\.0: "),
        ('negative = ["awful"]\n', "", r"task\.toml: labels: "),
        ('name = "movie-reviews"', "name =", "not valid TOML"),
        ("[patterns.tone]", "[patterns.tune]", r"no template file .*tune\.jinja"),
        ('negative = ["negative"]', 'bad = ["negative"]', r"words of the pattern 'review' do not fit.*'bad', 'negative'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_task_folder(
    folder: Callable[[str, str], Path], old: str, new: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        Task.load(folder(old, new))


def test_a_folders_templates_have_any_ending_of_their_language(tmp_path: Path) -> None:
    toml = '[columns]\ninputs = ["text"]\n[labels]\nx = ["good"]\ny = ["bad"]\n'
    (tmp_path / "task.toml").write_text(f'name = "t"\n{toml}', encoding="utf-8")
    for name in ("a.jinja", "b.j2", "c.jinja2", "notes.txt"):
        (tmp_path / name).write_text("{{ text }} {{ mask }}", encoding="utf-8")
    assert list(Task.load(tmp_path).patterns) == ["a", "b", "c"]
    (tmp_path / "a.j2").write_text("{{ text }} {{ mask }}", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"two templates called 'a': a\.j2 and a\.jinja\. Rename one"
    ):
        Task.load(tmp_path)


def test_tasks_and_patterns_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'movie-review'.*neither a folder nor a shipped task"):
        Task.load("movie-review")
    with pytest.raises(UserError, match=r"no task\.toml"):
        Task.load(tmp_path)
    task = Task.load(REVIEWS)
    with pytest.raises(UserError, match=r"no pattern 'tune'.*Did you mean 'tone'"):
        task.choose(["tune"])
    assert list(task.choose(["tone", "review"]).patterns) == ["tone", "review"]
    with pytest.raises(UserError, match="no 'extra' data"):
        task.path("extra")
    for read in (task.examples, task.rows):
        with pytest.raises(UserError, match=r"no 'trian' data\. Did you mean 'train'"):
            read("trian")
    with pytest.raises(UserError, match=r"No such file: trian\.csv"):
        task.rows("trian.csv")
    assert Task.load(REVIEWS / "task.toml").labels == task.labels
    task.check(task.rows("train")[0])


def test_label_words_that_do_not_fit_the_model() -> None:
    backbone = tiny.backbone("bert")
    template = Template("{{ text }} It was {{ mask }}", name="p")
    for labels, said in [
        ({"x": ["good"], "y": ["日本"]}, "unknown to the tokenizer of tiny-bert"),
        ({"x": ["good"], "y": ["GOOD"]}, "have the same words"),
        ({"x": ["good"], "y": []}, "'y' has no words"),
    ]:
        model = PromptModel(backbone, Task.inline([template], labels=labels))
        with pytest.raises(UserError, match=said):
            model.predict([{"text": "a"}])
    task = Task.inline([template], labels={"x": ["good"], "y": ["bad"]})
    with pytest.raises(UserError, match="no rows"):
        PromptModel(backbone, task).predict([])
    with pytest.raises(UserError, match="Row 1 is str: give a sequence of mappings"):
        PromptModel(backbone, task).predict(["a"])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"no pattern 'x'\. It has 'p': write \{pattern: "):
        PromptModel(backbone, task, words={"x": {"x": ["good"], "y": ["dull"]}})
    with pytest.raises(UserError, match="verbalizer file is for the labels 'a', 'b'"):
        PromptModel(
            backbone, task, words=LabelWords(["a", "b"], {"*": {"a": ["good"], "b": ["bad"]}})
        )


def test_words_are_lists_or_one_text_and_of_patterns_that_are_there() -> None:
    templates = [Template("{{ text }} It was {{ mask }}", name=name) for name in "pq"]
    task = Task.inline(templates, labels={"x": "good", "y": ("bad", "dull")})
    assert task.labels == {"x": ["good"], "y": ["bad", "dull"]}
    new = {"x": "fun", "y": "boring"}
    lists = {"x": ["fun"], "y": ["boring"]}
    some = task.with_words({"q": new})
    assert (some.words_for("p"), some.words_for("q")) == (task.labels, lists)
    # Words that were found for more patterns than are chosen are no mistake.
    assert task.choose(["q"]).with_words({"p": task.labels, "q": new}).words_for("q") == lists
    assert task.with_words({"*": new, "gone": new}).words_for("p") == lists
    with pytest.raises(UserError, match="has no pattern 'g'"):
        task.with_words({"p": new, "g": new})


def test_training_refuses_what_it_cannot_learn_from() -> None:
    templates = [Template("{{ text }} It was {{ mask }}", name="p")]
    task = Task.inline(templates, labels={"x": ["good"], "y": ["bad"]})
    rows = [Example({"text": t}, "xy"[i % 2], i + 1) for i, t in enumerate(tiny.corpus()[:4])]
    wrong = [Example({"text": "so so"}, "z", 9)]
    backbone = tiny.backbone("bert")
    for name, given in [
        ("training", {"train": [*rows, *wrong]}),
        ("dev", {"train": rows, "dev": wrong}),
        ("test", {"train": rows, "test": wrong}),
    ]:
        with pytest.raises(UserError, match=f"The {name} rows: row 9: the label 'z' is not one"):
            train(task, backbone=backbone, **given)
    named: Any = "minilm-mlm"
    with pytest.raises(UserError, match=r"backbone is a str, 'minilm-mlm': .*load_model\(NAME\)"):
        train(task, rows, backbone=named)
    plain: Any = [e.row for e in rows]
    with pytest.raises(UserError, match=r"train: a row is a dict\. Rows are `Example"):
        train(task, plain, backbone=backbone)
    assert task.choose("p") == task
    with pytest.raises(UserError, match="measure on: row 9: the label 'z'"):
        PromptModel(backbone, task).evaluate(wrong)
    with pytest.raises(UserError, match="labelled rows: row 9: the label 'z'"):
        search_verbalizer(PromptModel(backbone, task), [*rows, *wrong])
    with pytest.raises(UserError, match="row_weights has 2 weights, and there are 4"):
        train(task, rows, backbone=backbone, row_weights=[1.0, 2.0])
    with pytest.raises(UserError, match="row_weights are of all rows, and shots draws some"):
        train(task, rows, backbone=backbone, row_weights=[1.0] * 4, shots=1)


def test_a_selector_given_to_two_trainings_is_shared_by_neither() -> None:
    templates = [Template("{{ text }} It was {{ mask }}", name="p")]
    task = Task.inline(templates, labels={"x": ["good"], "y": ["bad"]})
    rows = [Example({"text": t}, "xy"[i % 2], i + 1) for i, t in enumerate(tiny.corpus()[:8])]
    selector = build("demonstrations", "random")
    options: Any = {"backbone": tiny.backbone("bert"), "settings": Settings(steps=1)}
    models = [
        train(task, part, demonstrations=selector, **options).classifier
        for part in (rows[:4], rows[4:])
    ]
    assert [m.demonstrations.fitted_on for m in models] == [rows[:4], rows[4:]]  # type: ignore[attr-defined]
    assert selector.fitted_on == ()


def test_scores_that_are_no_numbers_are_no_label() -> None:
    """The argmax of NaN is the first label, and would pass for an answer."""
    backbone = tiny.fresh("bert")
    task = Task.load(tiny.EXAMPLES).choose(["it-was"])
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight.fill_(torch.inf)
    model = PromptModel(backbone, task)
    rows = [{"text": "a fine film"}, {"text": "a dull one"}]
    with pytest.raises(PromptForgeError, match="The scores of 2 of 2 rows are not finite"):
        model.predict(rows)
    with pytest.raises(PromptForgeError, match="not finite"):
        model.evaluate([Example(row, "negative", 1) for row in rows])


def test_rows_with_more_masks_than_others_are_named() -> None:
    template = Template("{{ text }} {{ mask }}{% if more %} {{ mask }}{% endif %}", name="p")
    task = Task.inline([template], labels={"x": ["good"], "y": ["bad"]})
    rows = [{"text": "one", "more": ""}, {"text": "another", "more": "yes"}]
    model = PromptModel(tiny.backbone("bert"), task)
    assert len(model.predict(rows[:1])) == 1
    with pytest.raises(UserError, match=r"more masks than others.* 1 where text: one.*; 2 where text: another, more: yes"):  # fmt: skip
        model.predict(rows)
