"""Several tasks trained together: each learns what it would learn alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import labelling
import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_scale import folder as stars_folder
from torch import Tensor

from promptforge import Example, PromptModel, Scale, Settings, Task, Template, UserError, train
from promptforge.plugins import build
from promptforge.tuning import loop, mixed
from promptforge.tuning.loop import Target
from promptforge.tuning.mixed import TaskExamples, TogetherObjective
from promptforge.tuning.objectives import PromptObjective
from promptforge.tuning.together import train_together

Command = Callable[..., Any]
FILM = {"bad": ["bad"], "good": ["good"]}
LENGTH = {"short": ["little"], "middle": ["time"], "long": ["much"]}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("prompt-tuning", {"tokens": 3}),
    ("p-tuning", {"tokens": 3}),
    ("prefix", {"length": 4}),
    ("prefix", {"length": 4, "mlp": True, "hidden": 8, "init": "labels"}),
    ("adapter", {"size": 4}),
    ("scaled-parallel", {"size": 4, "scale": "trained"}),
    ("lora", {"rank": 2}),
    ("mam", {}),
    ("ia3", {}),
    ("adapter", {"size": 3, "form": "multi-head", "at": "attention"}),
    ("adapter", {"size": 4, "composition": "gated", "norm": True}),
]


def task(name: str, labels: dict[str, list[str]], source: str) -> Task:
    return Task.inline([Template(source, name="p")], labels=labels, name=name)


def rows(labels: Any, n: int, start: int = 0) -> list[Example]:
    texts = tiny.corpus()[start : start + n]
    return [Example({"text": t}, list(labels)[i % len(labels)], i + 1) for i, t in enumerate(texts)]


def tasks() -> list[TaskExamples]:
    return [
        TaskExamples(task("film", FILM, "{{ text }} It was {{ mask }}"), rows(FILM, 6), rows(FILM, 4, 40)),
        TaskExamples(task("length", LENGTH, "{{ text }} all {{ mask }}"), rows(LENGTH, 9, 10), rows(LENGTH, 6, 50)),
        TaskExamples(task("tone", FILM, "So {{ text }} is {{ mask }}"), rows(FILM, 4, 20), rows(FILM, 4, 60)),
    ]  # fmt: skip


def targets(one: TaskExamples, key: int = -1) -> list[Target]:
    return [Target(e.row, one.task.shares(e), key=key) for e in one.train]


def shifted(parameters: dict[str, Any], prefix: str, seed: int) -> None:
    """Parameters as in the middle of a training, the same for the same names."""
    with torch.no_grad():
        for number, name in enumerate(sorted(n for n in parameters if n.startswith(prefix))):
            draw = torch.Generator().manual_seed(100 * seed + number)
            parameters[name] += 0.1 * torch.randn(parameters[name].shape, generator=draw)


@pytest.mark.parametrize("passes", ["one", "several"])
@pytest.mark.parametrize("number", range(len(METHODS)), ids=[name for name, _ in METHODS])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_each_task_s_gradients_are_those_it_gets_alone(
    architecture: str, number: int, passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed, "PASS", 10_000 if passes == "one" else 0)
    backbone = tiny.backbone(architecture)
    name, options = METHODS[number]
    method, data = build("method", name, **options), tasks()
    alone: list[dict[str, Tensor]] = []
    for i, one in enumerate(data):
        torch.manual_seed(5)
        objective = PromptObjective(PromptModel(backbone, one.task), "p", method, targets(one))
        shifted(objective.trained(), "added/", i)
        objective(targets(one), 0).mean().backward()
        alone.append({n: p.grad.clone() for n, p in objective.trained().items()})
        objective.close()
    models = [PromptModel(backbone, one.task) for one in data]
    each = [targets(one, i) for i, one in enumerate(data)]
    together = TogetherObjective(models, method, each, seed=5)
    own = together.trained()
    for i in range(len(data)):
        shifted(own, f"{i}/added/", i)
    # One batch of all rows, in turns; the mean is over all rows, as the training takes it.
    batch = [t for turn in range(9) for some in each for t in some[turn : turn + 1]]
    losses = together(batch, 0) / together.at_once
    sum(
        losses[[j for j, t in enumerate(batch) if t.key == i]].mean() for i in range(len(data))
    ).backward()  # type: ignore[union-attr]
    assert not any(p.requires_grad for p in backbone.model.parameters())
    together.close()
    for i, expected in enumerate(alone):
        assert {n.removeprefix(f"{i}/") for n in own if n.startswith(f"{i}/")} == set(expected)
        for key, gradient in expected.items():
            found = own[f"{i}/{key}"].grad
            assert found is not None and bool(gradient.isfinite().all())
            scale = max(1.0, float(gradient.abs().max()))
            assert float((found - gradient).abs().max()) < 1e-5 * scale, key
        assert any(g.abs().max() > 1e-6 for g in expected.values())


def test_a_loss_that_compares_rows_has_all_of_a_task_s_side_by_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mixed, "PASS", 0)
    backbone, method, (one, *_) = tiny.backbone("bert"), build("method", "lora", rank=2), tasks()

    def prompted() -> PromptModel:
        return PromptModel(backbone, one.task, verbalizer=build("verbalizer", "prototypical"))

    def gradients(objective: Any, own: list[Target], start: str) -> dict[str, Tensor]:
        objective(own, 0).mean().backward()
        found = {n.removeprefix(start): p.grad.clone() for n, p in objective.trained().items()}
        objective.close()
        return found

    torch.manual_seed(5)
    alone = gradients(PromptObjective(prompted(), "p", method, targets(one)), targets(one), "")
    own = targets(one, 0)
    together = gradients(TogetherObjective([prompted()], method, [own], seed=5), own, "0/")
    assert len({len(e.row["text"].split()) for e in one.train}) > 1
    for name, gradient in alone.items():
        assert torch.allclose(together[name], gradient, rtol=0, atol=1e-6), name
    assert alone["own/prototypes"].abs().max() > 1e-3


@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(0, 12))
def test_passes_are_the_cheapest_of_all_ways_to_group_rows(lengths: list[int], own: int) -> None:
    def cost(groups: list[list[int]]) -> int:
        return sum(own + len(g) * max(lengths[i] for i in g) for g in groups)

    def ways(rows: list[int]) -> Iterator[list[list[int]]]:
        if not rows:
            yield []
            return
        first, rest = rows[0], rows[1:]
        for groups in ways(rest):
            yield [[first], *groups]
            for i, group in enumerate(groups):
                yield [*groups[:i], [first, *group], *groups[i + 1 :]]

    found = mixed.passes(lengths, own)
    assert sorted(i for g in found for i in g) == list(range(len(lengths)))
    assert cost(found) == min(cost(groups) for groups in ways(list(range(len(lengths)))))


@pytest.mark.parametrize("method", ["prefix", "lora"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("kept", [{"patience": 2}, {"keep": "last"}])
def test_a_task_learns_what_it_learns_alone(
    architecture: str, method: str, kept: dict[str, Any]
) -> None:
    backbone = tiny.backbone(architecture)
    settings = Settings(
        steps=6, batch_size=3, eval_every=2, dropout=False, clip=0.05, precision="float32", **kept
    )
    data = tasks()
    before = {n: p.detach().clone() for n, p in backbone.parameters.items()}
    run = train_together(data, backbone=backbone, method=method, settings=settings, seed=3)
    assert all(torch.equal(before[n], p) for n, p in backbone.parameters.items())
    asked = [{"text": t} for t in tiny.corpus()[70:76]]
    parameters = 0
    for number, one in enumerate(data):
        alone = train(
            one.task, one.train, dev=one.dev, backbone=backbone, method=method, settings=settings,
            seed=3,
        )  # fmt: skip
        np.testing.assert_allclose(
            run.classifiers[one.name].predict_proba(asked),
            alone.classifier.predict_proba(asked),
            atol=2e-4,  # Adam divides small gradients by small numbers
        )
        (trained,) = alone.trained.values()
        state = run.trained.tasks[str(number)]
        assert state["best_step"] == trained.best_step
        assert state["best"] == pytest.approx(trained.best, abs=1e-4)
        found, expected = run.figures(one.name, "dev"), alone.figures("dev")
        assert found.headline == expected.headline
        parameters += trained.parameters
    assert run.trained.parameters == parameters > 0


def test_a_soft_verbalizer_is_trained_for_each_task() -> None:
    backbone = tiny.backbone("bert")
    settings = Settings(steps=3, batch_size=2, dropout=False, precision="float32")
    run = train_together(
        tasks()[:2], backbone=backbone, method="prefix", verbalizer="soft", settings=settings
    )
    models = [model for model in run.classifiers.values() if isinstance(model, PromptModel)]
    learned = [next(iter(m.tuned["p"].values())) for m in models]
    assert learned[0].shape[0] == 2 and learned[1].shape[0] == 3
    plain = PromptModel(backbone, tasks()[0].task, verbalizer="soft", weights=models[0].weights)
    asked = [{"text": t} for t in tiny.corpus()[70:74]]
    assert abs(plain.predict_proba(asked) - models[0].predict_proba(asked)).max() > 1e-6


def test_a_batch_in_parts_is_warned_of_where_its_rows_are_compared() -> None:
    backbone = tiny.backbone("bert")
    settings = Settings(steps=2, batch_size=4, accumulate=2, dropout=False, precision="float32")
    with pytest.warns(UserWarning, match="'prototypical' compares the rows.*in 2 parts"):
        train_together(
            tasks()[:2], backbone=backbone, method="prefix", verbalizer="prototypical",
            settings=settings,
        )  # fmt: skip


def test_an_interrupted_run_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny.backbone("bert")
    settings = Settings(steps=6, batch_size=2, eval_every=2, save_every=1, precision="float32")
    options: dict[str, Any] = {"backbone": backbone, "method": "adapter", "settings": settings}
    whole = train_together(tasks(), **options, run=tmp_path / "whole")
    update = loop.Training._update

    def interrupted(self: Any, *args: Any) -> float:
        if self.state.steps == 3:
            raise KeyboardInterrupt
        return update(self, *args)

    monkeypatch.setattr(loop.Training, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_together(tasks(), **options, run=tmp_path / "part")
    monkeypatch.setattr(loop.Training, "_update", update)
    with pytest.raises(UserError, match="--resume"):
        train_together(tasks(), **options, run=tmp_path / "part")
    resumed = train_together(tasks(), **options, run=tmp_path / "part", resume=True)
    again = train_together(tasks(), **options, run=tmp_path / "part", resume=True)
    asked = [{"text": t} for t in tiny.corpus()[70:74]]
    for name, classifier in whole.classifiers.items():
        expected = classifier.predict_proba(asked)
        for other in (resumed, again):
            np.testing.assert_allclose(
                other.classifiers[name].predict_proba(asked), expected, atol=1e-6
            )
    assert resumed.trained.tasks == whole.trained.tasks == again.trained.tasks
    with pytest.raises(UserError, match="begun with other options"):
        train_together(tasks()[:2], **options, run=tmp_path / "part", resume=True)


def test_what_cannot_be_trained_together() -> None:
    backbone = tiny.backbone("bert")
    for method in ("all", "bitfit", "houlsby"):
        with pytest.raises(UserError, match="trains weights of the model itself"):
            train_together(tasks(), backbone=backbone, method=method)
    twice = [tasks()[0], tasks()[0]]
    with pytest.raises(UserError, match="Two tasks are called 'film'"):
        train_together(twice, backbone=backbone)
    with pytest.raises(UserError, match="one learning rate"):
        train_together(tasks(), backbone=backbone, settings=Settings(learning_rate=[1e-3, 1e-2]))
    empty = [*tasks(), TaskExamples(task("none", FILM, "{{ text }} {{ mask }}"))]
    with pytest.raises(UserError, match="'none' has no rows"):
        train_together(empty, backbone=backbone)
    film, length = tasks()[:2]
    strange = Example({"text": "a film"}, "neutral", 7)
    for name in ("train", "dev", "test"):
        wrong = replace(film, **{name: [*getattr(film, name), strange]})
        with pytest.raises(UserError, match=r"rows of the task 'film': .*row 7.*'neutral'"):
            train_together([wrong, length], backbone=backbone)
    stars = Task.inline([Template("{{ text }} {{ mask }}")], labels=FILM, name="stars")
    numbers = replace(stars, scale=Scale(1, 5))
    with pytest.raises(UserError, match="rows of the task 'stars': row 1 has no number"):
        train_together([film, TaskExamples(numbers, rows(FILM, 4))], backbone=backbone)
    assert all(p.requires_grad for p in backbone.model.parameters())


# --- the command -----------------------------------------------------------------------------


def folder_of(place: Path, name: str, labels: dict[str, list[str]], start: int) -> Path:
    """A task folder with two patterns and tables of its own."""
    folder = place / name
    folder.mkdir()
    words = "\n".join(f"{label} = {json.dumps(some)}" for label, some in labels.items())
    (folder / "task.toml").write_text(
        f'name = "{name}"\n\n[columns]\ninputs = ["text"]\nlabel = "label"\n\n[labels]\n{words}\n\n'
        '[data]\ntrain = "train.csv"\ndev = "dev.csv"\ntest = "test.csv"\n',
        encoding="utf-8",
    )
    (folder / "first.jinja").write_text("{{ text }} It was {{ mask }}", encoding="utf-8")
    (folder / "second.jinja").write_text("So {{ text }} is {{ mask }}", encoding="utf-8")
    for i, split in enumerate(("train", "dev", "test")):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            out = csv.writer(file)
            out.writerow(["text", "label"])
            out.writerows([e.row["text"], e.label] for e in rows(labels, 12, start + 12 * i))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [folder_of(tmp_path, "film", FILM, 0), folder_of(tmp_path, "length", LENGTH, 40)]


def test_train_with_several_tasks(tmp_path: Path, folders: list[Path], command: Command) -> None:
    model, run = tiny.save("bert", tmp_path / "model"), tmp_path / "run"
    asked = (
        "train", *folders, "--method", "prefix", "--model", model, "--steps", 2, "--batch-size", 2,
        "--shots", 2, "--dev", f"film={folders[0] / 'dev.csv'}", "--seed", 3, "-o", "length=3",
        "--pattern", "second", "--run", run,
    )  # fmt: skip
    done = command(*asked, "--json")
    assert "is used; --pattern" not in done.err
    assert set(done.json["tasks"]) == {"film", "length"}
    assert done.json["trained"]["together"]["steps"] == 2
    about = json.loads((run / "members" / "length" / "artifact.json").read_text(encoding="utf-8"))
    assert list(about["task"]["patterns"]) == ["second"]
    assert about["added"]["method"]["options"]["length"] == 3
    assert command(*asked).code == 2  # a run is there
    resumed = command(*asked, "--resume", "--json")
    assert resumed.json["tasks"] == done.json["tasks"]
    table = tmp_path / "mixed.csv"
    table.write_text("task,text\nlength,a film\nfilm,a film\n", encoding="utf-8")
    many = command("predict-many", run, "--data", table, "--format", "jsonl")
    assert many.code == 0, many.err
    found = [json.loads(line) for line in many.out.splitlines()]
    assert [set(r["probabilities"]) for r in found] == [set(LENGTH), set(FILM)]
    alone = command("predict", run / "members" / "film", "--data", table, "--format", "jsonl")
    (other,) = [r for r in map(json.loads, alone.out.splitlines()) if r["task"] == "film"]
    assert found[1]["probabilities"]["bad"] == pytest.approx(other["probability_bad"], abs=1e-5)
    listed = command("runs", "list", "--folder", tmp_path, "--json")
    assert "mean of 2 tasks" in listed.out and "film + length" in listed.out
    start = ("train", folders[0], "--method", "prefix", "--model", model, "--init-from", run)
    for line in (("merge", run, "m"), ("export", run, "e"), ("evaluate", run), start):
        said = command(*line)
        assert said.code == 2 and "has no one model, but one for each task" in said.err, said.err
        assert str(run / "members" / "film") in said.err.replace("\n", "")


def test_a_task_that_is_not_measured_is_listed_too(
    tmp_path: Path, folders: list[Path], command: Command
) -> None:
    toml = folders[1] / "task.toml"
    lines = toml.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("dev =", "test ="))]
    toml.write_text("\n".join(kept), encoding="utf-8")
    done = command(
        "train", *folders, "--method", "prefix", "--model", tiny.save("bert", tmp_path / "model"),
        "--steps", 1, "--batch-size", 2, "--run", "runs/both", "--json",
    )  # fmt: skip
    assert done.json["tasks"]["film"]["after"]
    nothing = {"held_out": False, "results": {}, "before": {}, "after": {}}
    assert done.json["tasks"]["length"] == nothing
    (row,) = command("runs", "list", "--json").json
    assert row["figure"] == "mean of 1 tasks" and row["test"] is not None
    assert command("runs", "show", "runs/both").code == 0
    assert command("report", "runs/both", "--output", "both.html").code == 0
    assert "1 task measured" in Path("both.html").read_text(encoding="utf-8")


def test_the_command_says_what_is_for_one_task(
    tmp_path: Path, folders: list[Path], command: Command
) -> None:
    model = tiny.save("bert", tmp_path / "model")
    asked = ("train", *folders, "--model", model, "--steps", 1, "--run", tmp_path / "run")
    shown = command(*asked, "--method", "adapter", "--seed", 5)
    assert shown.code == 0, shown.err
    assert "length" in shown.out and "predict-many" in shown.out
    assert "film: pattern first is used; --pattern chooses another: second" in shown.err
    for wrong, what in [
        (["--method", "all"], "trains weights of the model itself"),
        (["--method", "prefix", "--strategy", "pet"], "--strategy pet is for one TASK"),
        (["--method", "prefix", "--tracker", "tensorboard"], "--tracker is for one TASK"),
        (["--method", "prefix", "--data", "train.csv"], "write TASK=FILE"),
        (["--method", "prefix", "--pattern", "third"], "no task has it"),
        (["--pattern", "first", "--pattern", "second"], "the task 'film' has 'first', 'second'"),
    ]:
        done = command(*asked[:-1], tmp_path / what[:8], *wrong)
        assert done.code == 2 and what in done.err, done.err
    twice = command(*asked[:1], folders[0], "--data", "a.csv", "--data", "b.csv")
    assert twice.code == 2 and "given 2 times" in twice.err


def test_figures_of_several_kinds_are_named_and_not_averaged(
    tmp_path: Path, folders: list[Path], command: Command
) -> None:
    stars = stars_folder(tmp_path / "stars", "low = 1\nhigh = 5")
    sets = labelling.films_folder(tmp_path)
    asked = ("train", folders[0], stars, sets, "--model", tiny.save("bert", tmp_path / "model"))
    asked = (*asked, "--method", "prefix", "--steps", 1, "--batch-size", 2, "--run", "runs/all")
    ran = command(*asked)
    assert ran.code == 0, ran.err
    assert "Each task on its test rows (of numbers: Pearson; of label sets: micro-F1)" in ran.out
    for name in ("stars", "films"):
        told = command(*asked, "--resume", "--json").json["tasks"][name]["after"]
        (figures,) = told.values()
        low, high = figures["interval"]
        (line,) = (line for line in ran.out.splitlines() if line.split()[:1] == [name])
        assert f"{100 * low:.1f}-{100 * high:.1f}" in line
        assert name == "stars" or f"{100 * figures['constant']['micro_f1']:.1f} %" in line
    (row,) = command("runs", "list", "--json").json
    assert (row["figure"], row["test"]) == (
        "3 tasks, measured by accuracy and micro_f1 and pearson",
        None,
    )
    assert "see runs show" in " ".join(command("runs", "list").out.split())
