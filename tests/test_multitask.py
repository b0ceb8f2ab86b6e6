"""Multitask prompted training: what is drawn, what is held out, the loss, the command."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from promptforge_multitask.holdout import normalised, split
from promptforge_multitask.mixture import TaskExamples, apportioned, mixture, shares
from promptforge_multitask.model import MultiTaskPromptModel
from promptforge_multitask.objective import MixedObjective
from promptforge_multitask.run import train_multitask

from promptforge import (
    Example,
    PromptModel,
    Scale,
    Settings,
    Task,
    Template,
    UserError,
    artifact,
    hookimpl,
)  # fmt: skip
from promptforge.backbone import load_model
from promptforge.plugins import build, manager
from promptforge.tuning.objectives import PromptObjective

Command = Callable[..., Any]
Folder = Callable[[str], Path]
FILM = {"bad": ["bad"], "good": ["good"]}
LENGTH = {"short": ["little"], "middle": ["time"], "long": ["much"]}


def task(name: str, kind: str, labels: dict[str, list[str]], *sources: str) -> Task:
    templates = [Template(s, name=f"p{i}") for i, s in enumerate(sources)]
    return replace(Task.inline(templates, labels=labels, name=name), kind=kind)


def rows(labels: Any, n: int, start: int = 0, column: str = "text") -> list[Example]:
    texts = tiny.corpus()[start : start + n]
    return [Example({column: t}, list(labels)[i % len(labels)], i + 1) for i, t in enumerate(texts)]


def two_tasks() -> list[TaskExamples]:
    film = task("film", "sentiment", FILM, "{{ text }} It was {{ mask }}")
    length = task(
        "length", "length", LENGTH, "{{ t }} {{ sep }} It is {{ mask }}", "{{ t }} all {{ mask }}"
    )
    return [
        TaskExamples(film, rows(FILM, 12), [], rows(FILM, 6, 50)),
        TaskExamples(length, rows(LENGTH, 6, 20, "t"), [], rows(LENGTH, 6, 60, "t")),
    ]


# --- the mixture ---------------------------------------------------------------------------


def test_shares_are_those_of_the_capped_sizes() -> None:
    # min(n, cap): 300, 1000, 1000 of 2300.
    found = shares({"a": 300, "b": 1000, "c": 4000}, cap=1000)
    assert found == pytest.approx({"a": 3 / 23, "b": 10 / 23, "c": 10 / 23})
    assert shares({"a": 1, "b": 3}) == pytest.approx({"a": 0.25, "b": 0.75})
    # 3/23, 10/23, 10/23 of 100: 13.04, 43.48, 43.48; the hundredth goes to the first of the equal.
    assert apportioned(list(found.values()), 100) == [13, 44, 43]


def test_patterns_and_rows_take_turns() -> None:
    data = {"a": rows(FILM, 6), "b": rows(LENGTH, 12)}
    draws = mixture(data, {"a": ["x", "y"], "b": ["z"]}, 24, cap=6)  # 6 : 6
    assert Counter(d.task for d in draws) == {"a": 12, "b": 12}
    assert Counter((d.task, d.pattern) for d in draws) == {
        ("a", "x"): 6,
        ("a", "y"): 6,
        ("b", "z"): 12,
    }
    assert set(Counter(d.example.number for d in draws if d.task == "a").values()) == {2}
    assert set(Counter(d.example.number for d in draws if d.task == "b").values()) == {1}
    assert draws == mixture(data, {"a": ["x", "y"], "b": ["z"]}, 24, cap=6)
    assert draws != mixture(data, {"a": ["x", "y"], "b": ["z"]}, 24, cap=6, seed=14)


# --- the loss ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_loss_of_a_mixed_batch_is_that_of_the_tasks_alone(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    data = two_tasks()
    draws = mixture(
        {one.name: one.train for one in data},
        {one.name: list(one.task.patterns) for one in data},
        18,
    )
    method = build("method", "all")
    models = {one.name: PromptModel(backbone, one.task, remember=False) for one in data}
    mixed = MixedObjective(models, method, draws)
    mixed.eval()
    batch = mixed.targets[::-3]  # of the film 4, of the other one of each pattern
    losses = mixed(batch, 0)
    gradients = torch.autograd.grad(losses.mean(), list(mixed.trained().values())[:1])
    mixed.close()
    assert len(mixed.parts) == 3 and len({t.key for t in batch}) == 3
    parts = {}
    for key, (name, pattern) in enumerate(mixed.parts):
        own = [t for t in batch if t.key == key]
        alone = PromptObjective(PromptModel(backbone, models[name].task), pattern, method, own)
        alone.eval()
        parts[key] = alone(own, 0).detach()
        alone.close()
    for i, target in enumerate(batch):
        place = [t for t in batch if t.key == target.key].index(target)
        assert losses[i].item() == pytest.approx(parts[target.key][place].item(), abs=1e-5)
    assert losses.mean().item() == pytest.approx(
        torch.cat(list(parts.values())).mean().item(), abs=1e-5
    )
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


# --- holding out ---------------------------------------------------------------------------


def test_a_kind_is_held_out_whole_and_shared_rows_are_removed_and_counted() -> None:
    film, length = two_tasks()
    other = replace(film, task=replace(film.task, name="film-2"), test=rows(FILM, 4, 80))
    copied = film.test[0].row["text"]
    leaks = [
        Example({"t": f"  {copied.upper()} !!"}, "long", 90),  # written another way
        Example({"t": other.test[1].row["text"]}, "long", 91),
    ]
    length = replace(length, train=[*length.train, *leaks], dev=[leaks[0], length.train[0]])
    seen, away, removed = split([film, length, other], ["sentiment"])
    assert [one.name for one in seen] == ["length"]
    assert [one.name for one in away] == ["film", "film-2"]
    assert all(not one.train and not one.dev for one in away)
    assert removed == {"length": 3}
    assert [e.number for e in seen[0].train] == [1, 2, 3, 4, 5, 6]
    assert len(seen[0].dev) == 1
    assert normalised("  Ａ  Film—“GREAT”!\n") == "a film great"


def test_texts_are_compared_in_each_long_column_and_together() -> None:
    pair = Task.inline([Template("{{ a }} {{ b }} {{ mask }}")], labels=FILM, name="pair")
    pair = replace(pair, kind="pair")
    tested = [Example({"a": "one two three four", "b": "yes"}, "bad", 1)]
    train = [
        Example({"a": "no", "b": "One, two; three four."}, "bad", 1),  # in another column
        Example({"a": "no", "b": "yes"}, "bad", 2),  # a short answer is no shared text
        Example({"a": "one", "b": "two three four"}, "good", 3),
    ]
    other = replace(pair, name="other", kind="other")
    (seen,), _, removed = split(
        [TaskExamples(other, train), TaskExamples(pair, [], [], tested)], ["pair"]
    )
    assert [e.number for e in seen.train] == [2] and removed == {"other": 2}
    # Without spaces between words too.
    tested = [Example({"a": "这部电影非常精彩", "b": "好"}, "bad", 1)]
    train = [
        Example({"a": "这部电影非常精彩。", "b": "不"}, "bad", 1),
        Example({"a": "精彩", "b": "好"}, "bad", 2),
    ]
    (seen,), _, removed = split(
        [TaskExamples(other, train), TaskExamples(pair, [], [], tested)], ["pair"]
    )
    assert [e.number for e in seen.train] == [2] and removed == {"other": 1}


def test_what_is_not_certain_is_refused() -> None:
    film, length = two_tasks()
    cases: list[tuple[list[TaskExamples], list[str], str]] = [
        (
            [film, length],
            ["sentimnt"],
            "No task is of the kind 'sentimnt'. Did you mean 'sentiment'",
        ),
        (
            [film, replace(length, task=replace(length.task, kind=""))],
            ["sentiment"],
            "'length' has no kind",
        ),
        ([film], ["sentiment"], "Every task is held out"),
        ([film, film], [], "Two tasks are called 'film'"),
        (
            [replace(film, test=[]), length],
            ["sentiment"],
            "'film' is held out and has no test rows",
        ),
        (
            [film, replace(length, train=rows(FILM, 6, 50, "t"))],
            ["sentiment"],
            "no rows to train on: 6 stand",
        ),
    ]
    for data, kinds, message in cases:
        with pytest.raises(UserError, match=message):
            split(data, kinds)
    with pytest.raises(UserError, match="one learning rate"):
        model = MultiTaskPromptModel(tiny.backbone("bert"))
        model.fit([film, length], settings=Settings(learning_rate=[1e-3, 1e-4]))
    with pytest.raises(UserError, match="method 'lora' asks for its own"):
        dropping = MultiTaskPromptModel(model.backbone, method=build("method", "lora", dropout=0.5))
        dropping.fit([film, length], settings=Settings(dropout=False))
    strange = replace(film, train=[*film.train, Example({"text": "x"}, "neutral", 13)])
    with pytest.raises(UserError, match=r"rows of the task 'film': .*row 13.*'neutral'"):
        model.fit([strange, length])


def test_other_numbers_are_another_training(tmp_path: Path) -> None:
    """They may stand beside the row, in which nothing tells of them."""
    words = Task.inline([Template("{{ text }} {{ mask }}", name="p")], labels=FILM, name="stars")
    stars = replace(words, scale=Scale(0, 10))

    def run(*values: float, **options: Any) -> Any:
        some = [
            Example({"text": t}, ("bad", "good")[v > 5], i + 1, value=v)
            for i, (t, v) in enumerate(zip(tiny.corpus(), values, strict=False))
        ]
        model = MultiTaskPromptModel(tiny.backbone("bert"))
        return train_multitask(
            model, [TaskExamples(stars, some, [], [])], settings=Settings(steps=2),
            run=tmp_path / "run", **options,
        ).model.identity  # fmt: skip

    first = run(9, 8, 1, 0)
    assert run(9, 8, 1, 0, resume=True) == first
    with pytest.raises(UserError, match="begun with other rows: 'train of stars'"):
        run(6, 6, 4, 4, resume=True)


# --- the model -----------------------------------------------------------------------------


def test_fit_read_save_load_and_go_on_from_it(tmp_path: Path, tiny_model: Folder) -> None:
    backbone = load_model(str(tiny_model("bert")))
    length = two_tasks()[1]
    third = TaskExamples(
        task("third", "sentiment", FILM, "{{ text }} A {{ mask }} one"), [], [], rows(FILM, 6, 100)
    )
    length = replace(length, dev=rows(LENGTH, 4, 30, "t"))
    before = backbone.checksum
    model = MultiTaskPromptModel(backbone, verbalizer="soft")
    settings = Settings(steps=4, batch_size=4, learning_rate=1e-2, dropout=False)
    with pytest.raises(UserError, match="held out and has no test"):
        model.fit([length, replace(third, test=[])], hold_out="sentiment")
    model.fit([length, third], hold_out="sentiment", settings=settings)
    assert list(model.tasks) == ["length"] and list(model.held_out) == ["third"]
    assert model.counts == {"length": 16} and model.trained is not None and model.trained.steps == 4
    assert model.trained.best is not None
    found = [e.row for e in third.test]
    known = [e.row for e in length.test]
    zero = PromptModel(backbone, third.task, verbalizer="soft").predict_proba(found)
    tuned = model.classifier("third").predict_proba(found)
    of_seen = model.classifier("length").predict_proba(known)
    assert abs(tuned - zero).max() > 1e-3
    backbone.apply(None)
    assert load_model(str(tiny_model("bert"))).checksum == before

    model.save(tmp_path / "kept", {"note": 1})
    assert artifact.about(tmp_path / "kept") == {"note": 1}
    again = MultiTaskPromptModel.load(tmp_path / "kept")
    assert again.to_json() == model.to_json()
    assert again.classifier("third").predict_proba(found) == pytest.approx(tuned, abs=1e-6)
    assert again.classifier("length").predict_proba(known) == pytest.approx(of_seen, abs=1e-6)
    with pytest.raises(UserError, match="name the task"):
        artifact.load(tmp_path / "kept")
    # As a language model like any other.
    moved = load_model(str(tmp_path / "kept"))
    plain = PromptModel(moved, third.task).predict_proba(found)
    expected = PromptModel(backbone, third.task, weights=model.weights).predict_proba(found)
    assert plain == pytest.approx(expected, abs=1e-6)
    assert moved.checksum != before
    assert load_model(str(tmp_path / "kept"), dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(UserError, match="tuned from"):
        load_model(str(tmp_path / "kept"), family="masked")
    artifact.save(model.classifier("third"), tmp_path / "one")
    with pytest.raises(UserError, match="no multitask model"):
        MultiTaskPromptModel.load(tmp_path / "one", backbone=backbone)


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix", "lora"])
def test_all_tasks_share_what_a_method_adds(
    method: str, tmp_path: Path, tiny_model: Folder
) -> None:
    backbone = load_model(str(tiny_model("gpt2")))
    before = backbone.checksum
    data = [replace(one, test=[]) for one in two_tasks()]
    data[1] = replace(
        data[1],
        task=task("length", "length", LENGTH, "{{ t }} It is {{ mask }}", "{{ t }}: {{ mask }}"),
    )
    model = MultiTaskPromptModel(backbone, method=method)
    model.fit(data, settings=Settings(steps=4, batch_size=4, learning_rate=1e-2))
    found = {one.name: [e.row for e in one.train] for one in data}
    tuned = {name: model.classifier(name).predict_proba(rows) for name, rows in found.items()}
    for one in data:
        zero = PromptModel(backbone, one.task).predict_proba(found[one.name])
        assert abs(tuned[one.name] - zero).max() > 1e-3
    model.save(tmp_path / "kept")
    again = MultiTaskPromptModel.load(tmp_path / "kept", backbone=backbone)
    for name, rows_ in found.items():
        assert again.classifier(name).predict_proba(rows_) == pytest.approx(tuned[name], abs=1e-6)
    backbone.apply(None)
    backbone.__dict__.pop("checksum")
    assert backbone.checksum == before


def test_dev_rows_share_no_text_with_the_shots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where other columns of the same text differ."""
    film, length = two_tasks()
    twice = [
        Example({**e.row, "id": str(i)}, e.label, i)
        for i, e in enumerate(e for e in rows(FILM, 16) for _ in range(2))
    ]
    used: list[Any] = []

    def noted(self: Any, draws: Any, dev: Any, *_: Any, **__: Any) -> None:
        used.append(({d.example.row["text"] for d in draws if d.task == "film"}, dev["film"]))
        raise StopIteration

    monkeypatch.setattr(MultiTaskPromptModel, "_train", noted)
    with pytest.raises(StopIteration):
        MultiTaskPromptModel(tiny.backbone("bert")).fit(
            [replace(film, train=twice), replace(length, train=rows(LENGTH, 24, 0, "t"))],
            settings=Settings(steps=9),
            shots=4,
        )
    ((trained, dev),) = used
    assert trained and dev and not trained & {e.row["text"] for e in dev}


def test_an_interrupted_training_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = two_tasks()
    settings = Settings(steps=4, batch_size=4, learning_rate=1e-3, save_every=1)

    def fitted(folder: Path | None, **changes: Any) -> MultiTaskPromptModel:
        model = MultiTaskPromptModel(tiny.backbone("bert"))
        return model.fit(data, settings=settings, folder=folder, **changes)

    whole = fitted(None)
    original, calls = MixedObjective.forward, []

    def stop(self: MixedObjective, targets: Any, draw: int) -> Any:
        calls.append(draw)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, targets, draw)

    monkeypatch.setattr(MixedObjective, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "run")
    found = fitted(tmp_path / "run")
    assert calls == [0, 1, 2, 2, 3]
    assert found.weights is not None and whole.weights is not None
    for name, value in whole.weights.flat().items():
        assert torch.equal(found.weights.flat()[name], value)
    assert fitted(tmp_path / "run").trained == found.trained and len(calls) == 5  # not again
    with pytest.raises(UserError, match="other data or with other settings"):
        fitted(tmp_path / "run", seed=14)


def write(folder: Path, data: TaskExamples, train: list[Example]) -> Path:
    folder.mkdir()
    one = data.task
    labels = "\n".join(f"{label} = {words}" for label, words in one.labels.items())
    splits = {"train": train, "test": data.test}
    for name, examples in splits.items():
        lines = [f'"{e.row[one.inputs[0]].replace(chr(34), "")}",{e.label}' for e in examples]
        (folder / f"{name}.csv").write_text(
            "\n".join([f"{one.inputs[0]},label", *lines]), encoding="utf-8"
        )
    (folder / "task.toml").write_text(
        f'name = "{one.name}"\nkind = "{one.kind}"\n[columns]\ninputs = {list(one.inputs)}\n'
        f'[labels]\n{labels}\n[data]\ntrain = "train.csv"\ntest = "test.csv"\n', encoding="utf-8",
    )  # fmt: skip
    for name, pattern in one.patterns.items():
        (folder / f"{name}.jinja").write_text(pattern.template.source, encoding="utf-8")
    return folder


def test_the_command(command: Command, tiny_model: Folder, tmp_path: Path) -> None:
    film, length = two_tasks()
    one = write(tmp_path / "film", film, list(film.train))
    leak = Example({"t": film.test[0].row["text"]}, "long", 1)
    two = write(tmp_path / "length", length, [*length.train, leak])
    base = (
        "train-multitask",
        one,
        two,
        "--hold-out",
        "sentiment",
        "--steps",
        "2",
        "--batch-size",
        "4",
    )
    ran = command(*base, "--model", tiny_model("bert"), "--learning-rate", "0.01", "--json")
    found = ran.json
    assert found["run"] == "runs/multitask-sentiment-13"
    assert found["removed"] == {"length": 1} and "1 rows share a text" in ran.err
    assert found["drawn"] == {"length": 8}
    assert found["tasks"]["film"]["held_out"] and not found["tasks"]["length"]["held_out"]
    assert set(found["tasks"]["film"]) == {"kind", "held_out", "before", "after"}
    assert command("runs", "list", "--json").json[0]["strategy"] == "multitask"
    assert "begun" in command(*base, "--model", tiny_model("bert")).err
    again = command(*base, "--model", tiny_model("bert"), "--learning-rate", "0.01", "--resume")
    assert again.code == 0, again.err
    assert "held out" in again.out and "length: 1 rows" in again.out
    # The run is a model for any task.
    evaluated = command("evaluate", one, "--model", found["run"], "--json").json
    assert evaluated == found["tasks"]["film"]["after"]
    refused = command("evaluate", found["run"], "--data", one / "test.csv")
    assert refused.code == 2 and "--model" in refused.err
    assert (
        "Every task is held out" in command("train-multitask", one, "--hold-out", "sentiment").err
    )


def test_a_plugin_may_change_the_options(
    command: Command, tiny_model: Folder, tmp_path: Path
) -> None:
    class Watcher:
        @hookimpl
        def promptforge_configure(self, settings: dict[str, Any]) -> None:
            settings["steps"] = 1

    film, length = two_tasks()
    folders = [write(tmp_path / t.task.name, t, list(t.train)) for t in (film, length)]
    manager().register(Watcher(), "watcher")
    try:
        base = ("train-multitask", *folders, "--steps", "9", "--batch-size", "2")
        drawn = command(*base, "--model", tiny_model("bert"), "--json").json["drawn"]
    finally:
        manager().unregister("watcher")
    assert sum(drawn.values()) == 2


def test_tables_of_tasks_without_data(command: Command, tiny_model: Folder, tmp_path: Path) -> None:
    """Shipped tasks have no [data]: their tables are named on the command line."""
    tables = {}
    for name, labels, start in (
        ("sentiment", ("negative", "positive"), 0),
        ("subjectivity", ("subjective", "objective"), 30),
    ):
        for part, n in (("train", 12), ("test", 6)):
            path = tmp_path / f"{name}-{part}.csv"
            some = rows(labels, n, start + (0 if part == "train" else 15))
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(
                    [("text", "label"), *((e.row["text"], e.label) for e in some)]
                )
            tables[name, part] = path
    base = ("train-multitask", "sentiment", "subjectivity", "--model", tiny_model("bert"),
            "--steps", 1, "--batch-size", 2, "--json")  # fmt: skip
    given = [
        word
        for (name, part), path in tables.items()
        for word in ("--data" if part == "train" else "--test", f"{name}={path}")
    ]
    dev = ("--dev", f"sentiment={tables['sentiment', 'test']}")
    found = command(*base, *given).json
    assert (
        set(found["drawn"]) <= {"sentiment", "subjectivity"} and sum(found["drawn"].values()) == 2
    )
    assert [found["tasks"][n]["after"]["all patterns"]["rows"] for n in found["tasks"]] == [6, 6]
    config = command("runs", "show", found["run"], "--json").json["config"]
    assert config["rows"] == {"sentiment": [12, 0, 6], "subjectivity": [12, 0, 6]}
    # A held-out task needs a test table only; a dev table is for one task.
    away = command(*base, *given[:4], *given[6:], *dev, "--hold-out", "subjectivity")
    assert away.json["tasks"]["subjectivity"]["held_out"], away.err
    for wrong, said in (
        (("--data", "sentimnet=a.csv"), "Did you mean 'sentiment'"),
        (("--test", "a.csv"), "write TASK=FILE"),
        (("--data", "sentiment=nowhere.csv"), "No such file"),
        ((), "no 'train' data"),
    ):
        ran = command(*base, "--run", "other", *wrong)
        assert ran.code == 2 and said in " ".join(ran.err.replace("│", " ").split())
