"""Many tasks over one model: rows of different tasks in one pass, and tasks that come and go."""

from __future__ import annotations

import csv
import gc
import json
import threading
import weakref
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from promptforge import (
    Example,
    PromptForgeError,
    PromptModel,
    Settings,
    Task,
    Template,
    UserError,
    artifact,
    train,
)
from promptforge.backbone import Backbone, Delta, Folded, load_model
from promptforge.backbone.weights import Weights
from promptforge.bank import TaskBank
from promptforge.plugins import build
from promptforge.selection import fit_selector
from tests import adding

Command = Callable[..., Any]
FILM = {"bad": ["bad"], "good": ["good"]}
LENGTH = {"short": ["little"], "middle": ["time"], "long": ["much"]}
#: method -> options; equal names differ in length or rank
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("prefix", {"length": 3}),
    ("prefix", {"length": 7, "init": "labels"}),
    ("prompt-tuning", {"tokens": 4}),
    ("pfeiffer", {"size": 4}),
    ("adapter", {"size": 4, "norm": True, "composition": "gated"}),
    ("adapter", {"size": 6, "form": "multi-head", "at": "attention"}),
    ("scaled-parallel", {"size": 8}),
    ("lora", {"rank": 3, "targets": "all"}),
    ("ia3", {}),
    ("mam", {"methods": {"prefix": {"length": 5}, "scaled-parallel": {"size": 3}}}),
]


def task(name: str, labels: dict[str, list[str]], *sources: str) -> Task:
    templates = [Template(s, name=f"p{i}") for i, s in enumerate(sources)]
    return Task.inline(templates, labels=labels, name=name)


def texts(n: int, start: int = 0) -> list[dict[str, str]]:
    return [{"text": t} for t in tiny.corpus()[start : start + n]]


def noise(addition: Any, seed: int) -> Any:
    """The addition as a training might leave it: no parameter where it started."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in addition.parameters():
            p += 0.5 * torch.randn(p.shape, generator=draw)
    return addition.folded()


def tuned(backbone: Backbone, number: int, asked: Task) -> PromptModel:
    method = build("method", METHODS[number][0], **METHODS[number][1])
    plain = PromptModel(backbone, asked)
    pattern = next(iter(asked.patterns))
    backbone.apply(None)
    prompts = plain.encode_rows(pattern, texts(3))
    torch.manual_seed(number)
    made = method.add(backbone, prompts, asked.words_for(pattern))
    made.made_by = {"name": method.name, "options": method.model_dump(mode="json")}
    added = noise(made, number)
    return PromptModel(backbone, asked, weights=Weights(added=added))


def low_rank(backbone: Backbone, asked: Task, rank: int, only: str = "") -> PromptModel:
    """LoRA on every matrix (or those whose name holds `only`), written down by hand."""
    draw = torch.Generator().manual_seed(rank)
    deltas = {}
    for name, matrix in backbone.matrices.items():
        weight = matrix.weight
        rows, columns = weight.shape
        into, out = (columns, rows) if isinstance(matrix, torch.nn.Linear) else (rows, columns)
        if only in name and "cls" not in name and "lm_head" not in name and "head" not in name:
            down, up = (torch.randn(s, generator=draw) / 8 for s in ((into, rank), (rank, out)))
            deltas[name] = Delta(down, up, source=name, scale=2.0)
    return PromptModel(backbone, asked, weights=Weights(added=Folded({}, {}, deltas)))


def filled(backbone: Backbone) -> dict[str, PromptModel]:
    """A task for every method, two by LoRA, one shown demonstrations, one that was never tuned."""
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    both = task("both", LENGTH, "{{ text }} all {{ mask }}", "So {{ text }} is {{ mask }}")
    soft = task("soft", LENGTH, "{{ soft('very') }} {{ text }} {{ soft(n=2) }} {{ mask }}")
    models = {
        f"{number}-{METHODS[number][0]}": tuned(backbone, number, (film, both)[number % 2])
        for number in range(len(METHODS))
    }
    models["soft"] = tuned(backbone, 2, soft)
    models["lora-2"] = low_rank(backbone, film, 2)
    models["lora-5"] = low_rank(backbone, both, 5, only="1")
    selector = build("demonstrations", "random")
    shown = [Example(row, label, 1) for row, label in zip(texts(4, 30), [*FILM] * 2, strict=True)]
    # A causal model is shown the rows first; so are the others, here.
    asked = task(
        "shown",
        FILM,
        "{% for demo in demos %}{{ demo.text }} {{ demo.word }} {{ sep }} {% endfor %}{{ text }} {{ mask }}",
    )
    fit_selector(selector, shown, list(FILM), columns=("text",))
    models["shown"] = tuned(backbone, 3, asked)
    models["shown"].demonstrations, models["shown"].samples = selector, 2
    models["untuned"] = PromptModel(backbone, film)
    return models


def mixed_rows(names: list[str], n: int = 2) -> list[tuple[str, dict[str, str]]]:
    """Rows of all tasks, in no order; their lengths differ."""
    rows = [(name, row) for i, name in enumerate(names) for row in texts(n, 3 * i)]
    return [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def passes(backbone: Backbone) -> tuple[list[int], Any]:
    """How many rows each pass through the model's body has, as they come."""
    seen: list[int] = []
    embedding = backbone.embedding
    return seen, embedding.register_forward_hook(lambda _, __, out: seen.append(len(out)))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_rows_of_all_tasks_get_what_they_get_alone(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    models = filled(backbone)
    bank = TaskBank(backbone)
    for name, model in models.items():
        bank.add(name, model)
    rows = mixed_rows(list(models), 3)
    own = {name: [row for other, row in rows if other == name] for name in models}
    alone = {name: model.predict_proba(own[name]) for name, model in models.items()}
    for name, model in models.items():
        # Each addition does something: a bank that left it out would be seen.
        shown = model.demonstrations
        plain = PromptModel(backbone, model.task, demonstrations=shown, samples=2 if shown else 1)
        away = abs(plain.predict_proba(own[name]) - alone[name]).max()
        assert away > 2e-5 if name != "untuned" else away < 1e-6, name
    expected = [alone[name][own[name].index(row)] for name, row in rows]
    # Three rows of each task, which stand together in a batch, and one: each has a path of its own.
    firsts = [next(i for i, (other, _) in enumerate(rows) if other == name) for name in models]
    for places in (range(len(rows)), firsts):
        found = bank.predict_proba([rows[i] for i in places])
        for i, one in zip(places, found, strict=True):
            np.testing.assert_allclose(one, expected[i], atol=1e-5, err_msg=rows[i][0])
    labels = [models[name].labels[p.argmax()] for (name, _), p in zip(rows, expected, strict=True)]
    assert bank.predict(row for row in rows) == labels  # type: ignore[arg-type]
    backbone.apply(None)


def test_the_rows_of_a_batch_go_through_in_one_pass() -> None:
    backbone = tiny.backbone("bert")
    bank = TaskBank(backbone)
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    for i in range(6):
        bank.add(str(i), tuned(backbone, i, film))
    rows = [(str(i % 6), texts(1, i)[0]) for i in range(24)]
    bank.predict(rows)  # what is worked out once
    seen, handle = passes(backbone)
    found = bank.predict_proba(rows)
    handle.remove()
    assert len(seen) == 1 and seen[0] == 24
    budget, backbone.batch_tokens = backbone.batch_tokens, 200
    seen, handle = passes(backbone)
    again = bank.predict_proba(rows)
    handle.remove()
    backbone.batch_tokens = budget
    assert sum(seen) == 24 and 1 < len(seen) < 24
    np.testing.assert_allclose(found, again, atol=1e-5)
    backbone.apply(None)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_long_words_and_several_masks_share_passes_too(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    long = {"bad": ["an awful thing"], "good": ["wonderful"]}
    models = {
        "one": tuned(backbone, 0, task("one", FILM, "{{ text }} It was {{ mask }}")),
        "long": tuned(backbone, 1, task("long", long, "{{ text }} It was {{ mask }}")),
    }
    if architecture != "gpt2":
        source = "{{ text }} {{ mask }} and {{ mask }}"
        models["two"] = tuned(backbone, 3, task("two", FILM, source))
    bank = TaskBank(backbone)
    for name, model in models.items():
        bank.add(name, model)
    rows = mixed_rows(list(models), 3)
    found = bank.predict_proba(rows)
    for (name, row), one in zip(rows, found, strict=True):
        np.testing.assert_allclose(one, models[name].predict_proba([row])[0], atol=1e-5)
    backbone.apply(None)


def test_verbalizers_and_calibrations_are_each_task_s_own() -> None:
    backbone = tiny.backbone("bert")
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    soft = PromptModel(backbone, film, verbalizer="soft", weights=tuned(backbone, 0, film).weights)
    pattern = next(iter(film.patterns))
    verbalizer = soft.verbalizer(pattern, soft.encode_rows(pattern, texts(1))[0])
    soft.tuned = {pattern: {n: torch.randn(p.shape) for n, p in verbalizer.parameters().items()}}
    made = soft.with_words({pattern: FILM})
    models = {
        "soft": made,
        "contextual": PromptModel(
            backbone, film, calibration="contextual", weights=tuned(backbone, 2, film).weights
        ),
        "batch": PromptModel(
            backbone, film, calibration="batch", weights=tuned(backbone, 3, film).weights
        ),
    }
    models["batch"].calibrate(texts(8, 20))
    bank = TaskBank(backbone)
    for name, model in models.items():
        bank.add(name, model)
    rows = mixed_rows(list(models), 4)
    found = bank.predict_proba(rows)
    for (name, row), one in zip(rows, found, strict=True):
        np.testing.assert_allclose(one, models[name].predict_proba([row])[0], atol=1e-5)
    backbone.apply(None)


def test_a_task_costs_what_its_parameters_weigh() -> None:
    backbone = tiny.backbone("bert")
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    bank = TaskBank(backbone)

    def held() -> int:
        """Bytes of all tensors after a prediction of 12 rows, of whatever tasks there are."""
        names = bank.names
        bank.predict_proba([(names[i % len(names)], row) for i, row in enumerate(texts(12))])
        gc.collect()
        tensors = [t for t in gc.get_objects() if isinstance(t, torch.Tensor)]
        tensors = [t for t in tensors if t.shape[:1] != (12,)]  # the last batch is no task's
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(storages.values())

    bank.add("first", tuned(backbone, 0, film))
    before = held()
    weight = 0
    for i in range(12):
        model = tuned(backbone, (0, 1, 3, 6)[i % 4], film)
        weight += sum(t.nbytes for t in model.weights.added.tensors().values())
        bank.add(str(i), model)
    # Besides its parameters a task has its label words' ids and the like.
    assert weight <= held() - before < 1.2 * weight
    backbone.apply(None)


# --- tasks come and go -----------------------------------------------------------------------


def test_tasks_are_added_replaced_and_dropped() -> None:
    backbone = tiny.backbone("bert")
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    first, second = tuned(backbone, 0, film), tuned(backbone, 1, film)
    bank = TaskBank(backbone)
    assert len(bank) == 0 and bank.predict([]) == []
    bank.add("a", first)
    bank.add("b", first)
    row = texts(1)[0]
    a, b = bank.predict_proba([("a", row), ("b", row)])
    np.testing.assert_allclose(a, b, atol=1e-6)
    bank.replace("b", second)
    assert bank["b"] is second and bank["a"] is first
    a, b = bank.predict_proba([("a", row), ("b", row)])
    np.testing.assert_allclose(a, first.predict_proba([row])[0], atol=1e-5)
    np.testing.assert_allclose(b, second.predict_proba([row])[0], atol=1e-5)
    bank.drop("a")
    assert bank.names == ("b",) and "a" not in bank
    np.testing.assert_allclose(bank.predict_proba([("b", row)])[0], b, atol=1e-5)
    with pytest.raises(UserError, match="no task 'a'"):
        bank.predict([("a", row)])
    backbone.apply(None)


@pytest.mark.parametrize("change", ["drop", "replace"])
def test_a_task_that_goes_leaves_no_memory_behind(change: str) -> None:
    backbone = tiny.backbone("bert")
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    bank = TaskBank(backbone)
    for name, number in (("a", 0), ("b", 3)):
        bank.add(name, tuned(backbone, number, film))
    row, other = texts(1)[0], PromptModel(backbone, film)
    expected = bank.predict_proba([("b", row)])[0]
    gone = weakref.ref(next(iter(bank["a"].weights.added.tensors().values())))
    bank.drop("a") if change == "drop" else bank.replace("a", other)
    assert gone() is None
    np.testing.assert_allclose(bank.predict_proba([("b", row)])[0], expected, atol=1e-5)
    backbone.apply(None)


def test_a_task_that_goes_while_it_is_read_leaves_afterwards() -> None:
    backbone = tiny.backbone("bert")
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    bank = TaskBank(backbone)
    bank.add("a", tuned(backbone, 0, film))
    gone = weakref.ref(next(iter(bank["a"].weights.added.tensors().values())))

    def drop(*_: Any) -> None:
        if "a" in bank:
            bank.drop("a")
            assert gone() is not None

    hook = backbone.embedding.register_forward_hook(drop)
    try:
        assert len(bank.predict([("a", texts(1)[0])])) == 1
    finally:
        hook.remove()
    assert gone() is None


def test_a_task_that_goes_while_its_thread_reads_another_model_disturbs_nothing() -> None:
    backbone = tiny.backbone("bert")
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    bank, other = TaskBank(backbone), tuned(backbone, 3, film)
    bank.add("a", tuned(backbone, 0, film))
    bank.predict([("a", texts(1)[0])])
    rows = texts(3)
    expected, _ = other.predict_proba(rows), other.forget()
    hook = backbone.embedding.register_forward_hook(
        lambda *_: bank.drop("a") if "a" in bank else None
    )
    try:
        np.testing.assert_allclose(other.predict_proba(rows), expected, atol=1e-6)
    finally:
        hook.remove()
    assert "a" not in bank
    backbone.apply(None)


def test_a_task_is_added_while_modules_of_peft_are_in_the_model() -> None:
    backbone, other = tiny.fresh("bert"), tiny.fresh("bert")
    loha = adding.trained(adding.tuner(other, "peft", config="loha"))
    prefix = adding.trained(adding.tuner(other, "prefix"))
    rows = [e.row for e in adding.tuner(backbone).train]
    PromptModel(backbone, loha.task, weights=loha.weights).predict_proba(rows)
    bank = TaskBank(backbone)
    bank.add("a", PromptModel(backbone, prefix.task, weights=prefix.weights))
    expected = prefix.predict_proba(rows)
    np.testing.assert_allclose(bank.predict_proba([("a", r) for r in rows]), expected, atol=1e-6)
    assert backbone.sites == other.sites


def test_a_prediction_sees_one_set_of_tasks_however_they_change() -> None:
    backbone = tiny.backbone("bert")
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    versions = [tuned(backbone, number, film) for number in (0, 3)]
    row = texts(1)[0]
    known = [v.predict_proba([row])[0] for v in versions]
    assert abs(known[0] - known[1]).max() > 1e-3
    bank = TaskBank(backbone)
    # Both tasks always have the same version: a prediction that sees two has seen half a change.
    bank.add("x", versions[0])
    bank.add("guest", versions[0])
    stop, problems = threading.Event(), []

    def change() -> None:
        for i in count():
            if stop.is_set():
                return
            bank.replace("x", versions[i % 2])
            bank.drop("guest")
            bank.add("guest", versions[1])

    def ask() -> None:
        try:
            for _ in range(25):
                found = bank.predict_proba([("x", row)] * 3 + [("x", texts(1, 5)[0])])
                right = [abs(found[0] - k).max() < 1e-5 for k in known]
                if sum(right) != 1 or abs(found[0] - found[1]).max() > 1e-6:
                    problems.append(found[0])
        except Exception as error:
            problems.append(error)

    changer = threading.Thread(target=change)
    askers = [threading.Thread(target=ask) for _ in range(3)]
    for thread in (changer, *askers):
        thread.start()
    for thread in askers:
        thread.join()
    stop.set()
    changer.join()
    assert not problems, problems[:1]
    backbone.apply(None)


def test_what_a_bank_cannot_take(tmp_path: Path) -> None:
    backbone = tiny.backbone("bert")
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    first = tuned(backbone, 0, film)
    bank = TaskBank(backbone)
    bank.add("film", first)
    with pytest.raises(UserError, match="has a task 'film' already"):
        bank.add("film", first)
    with pytest.raises(UserError, match=r"no task 'flim'.*'film'"):
        bank.replace("flim", first)
    with pytest.raises(UserError, match="no task 'flim'"):
        bank.drop("flim")
    other = PromptModel(tiny.backbone("roberta"), film)
    with pytest.raises(UserError, match=r"made on another model.*tiny-roberta"):
        bank.add("other", other)
    name, value = next(iter(backbone.parameters.items()))
    for method in ("all", "bitfit", "houlsby"):
        rows = [Example(row, label, 1) for row, label in zip(texts(4), [*FILM] * 2, strict=True)]
        run = train(film, rows, backbone=backbone, method=method, settings=Settings(steps=1))
        with pytest.raises(UserError, match="changes the model's own weights"):
            bank.add(method, run.classifier)
    head = train(
        film, rows, backbone=backbone, strategy="finetune", method="prefix",
        settings=Settings(steps=1),
    )  # fmt: skip
    with pytest.raises(UserError, match="holds prompt models"):
        bank.add("head", head.classifier)
    broken = {k: (a * float("nan"), b) for k, (a, b) in first.weights.added.prefixes().items()}
    nan = PromptModel(backbone, film, weights=Weights(added=Folded({}, broken, {})))
    with pytest.raises(PromptForgeError, match="not finite"):
        bank.add("nan", nan)
    strange = Weights(added=Folded({}, {}, {"nowhere": Delta(multiply=torch.ones(3))}))
    with pytest.raises(UserError, match="no part called 'nowhere'"):
        bank.add("strange", PromptModel(backbone, film, weights=strange))
    assert bank.names == ("film",) and name in backbone.parameters and value is not None
    # An artifact that was tuned from other weights.
    artifact.save(tuned(tiny.backbone("roberta"), 0, film), tmp_path / "other")
    with pytest.raises(UserError, match="was tuned from 'tiny-roberta'"):
        bank.add("other", tmp_path / "other")
    backbone.apply(None)


@pytest.mark.parametrize(
    ("architecture", "one", "other", "says"),
    [
        ("bert", {"attention": "longformer", "attention_options": {"window": 4}}, {},
         "with attention='longformer', attention_options=.*'window': 4.*has attention=None"),
        ("bert", {"attention": "longformer", "attention_options": {"window": 4}},
         {"attention": "longformer", "attention_options": {"window": 8}},
         r"with attention_options=\{'window': 4\}.*has attention_options=\{'window': 8\}"),
        ("bert", {"max_length": 16}, {}, "with max_length=16.*has max_length=64"),
        ("bert", {"family": "causal"}, {}, "with family='causal'.*has family='masked'"),
        ("llama", {"max_length": 128, "positions": "rope"}, {},
         "with max_length=128, positions='rope'.*has max_length=None, positions=None"),
        ("t5", {"ask": "prefix"}, {}, "with ask='prefix'.*has ask='sentinel'"),
    ],
)  # fmt: skip
def test_tasks_that_were_read_otherwise_do_not_share_a_model(
    architecture: str, one: dict[str, Any], other: dict[str, Any], says: str, tmp_path: Path
) -> None:
    model = str(tiny.save(architecture, tmp_path / "model"))
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    for name, options in (("one", one), ("other", other)):
        backbone = load_model(model, trained=True, **options)
        artifact.save(tuned(backbone, 3, film), tmp_path / name)
    with pytest.raises(UserError, match=f"(?s)one was tuned on .*{says}"):
        TaskBank.load({"a": tmp_path / "other", "b": tmp_path / "one"})
    with pytest.raises(UserError, match=r"other was tuned on .* use this artifact by itself"):
        TaskBank.load({"a": tmp_path / "one", "b": tmp_path / "other"})
    bank = TaskBank.load({"a": tmp_path / "one", "b": tmp_path / "one"})
    rows = texts(4)
    alone = artifact.load(tmp_path / "one").predict_proba(rows)
    found = bank.predict_proba([("b", row) for row in rows])
    np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "said"), [("bert", {"max_length": 64}), ("t5", {"ask": "sentinel"})]
)
def test_what_a_model_does_by_itself_may_be_said(
    architecture: str, said: dict[str, Any], tmp_path: Path
) -> None:
    model = str(tiny.save(architecture, tmp_path / "model"))
    film = task("film", FILM, "{{ text }} It was {{ mask }}")
    artifact.save(tuned(load_model(model), 3, film), tmp_path / "a")
    artifact.save(tuned(load_model(model, **said), 3, film), tmp_path / "b")
    artifact.save(tuned(tiny.backbone(architecture), 3, film), tmp_path / "c")
    for first in ("a", "b"):
        home = tmp_path / first
        assert len(TaskBank.load({"first": home, **{n: tmp_path / n for n in "abc"}})) == 4
    bank = TaskBank(tiny.backbone(architecture))
    for name in "abc":
        bank.add(name, tmp_path / name)
    bank.backbone.apply(None)


# --- the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model on disk and three artifacts of it: films, lengths, and one of all weights."""
    folder = tmp_path_factory.mktemp("bank")
    backbone = load_model(str(tiny.save("bert", folder / "model")))
    film = task("films", FILM, "{{ text }} It was {{ mask }}")
    length = task("lengths", LENGTH, "{{ text }} all {{ mask }}")
    for name, number, asked in (("films", 0, film), ("lengths", 3, length)):
        artifact.save(tuned(backbone, number, asked), folder / name)
    rows = [Example(row, label, 1) for row, label in zip(texts(4), [*FILM] * 2, strict=True)]
    run = train(film, rows, backbone=backbone, settings=Settings(steps=1))
    artifact.save(run.classifier, folder / "all")
    return folder


def table(path: Path, rows: list[tuple[str, dict[str, str]]], column: str = "task") -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, [column, "text"])
        out.writeheader()
        out.writerows({column: name, **row} for name, row in rows)
    return path


def test_predict_many_says_what_predict_says_of_each_task(
    saved: Path, tmp_path: Path, command: Command
) -> None:
    rows = mixed_rows(["films", "lengths"], 4)
    data = table(tmp_path / "rows.csv", rows, "which")
    asked = ("predict-many", saved / "films", saved / "lengths", "--data", data)
    done = command(*asked, "--task-column", "which", "--format", "jsonl")
    assert done.code == 0, done.err
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [(r["which"], {"text": r["text"]}) for r in found] == rows
    for name in ("films", "lengths"):
        own = table(tmp_path / f"{name}.csv", [r for r in rows if r[0] == name])
        alone = command("predict", saved / name, "--data", own, "--format", "jsonl")
        expected = [json.loads(line) for line in alone.out.splitlines()]
        mine = [r for r in found if r["which"] == name]
        for one, other in zip(mine, expected, strict=True):
            assert one["prediction"] == other["prediction"]
            assert one["probability"] == max(one["probabilities"].values())
            for label, p in one["probabilities"].items():
                assert p == pytest.approx(other[f"probability_{label}"], abs=1e-5)
    to_file = command(*asked, "--task-column", "which", "-O", tmp_path / "out.csv", "--chunk", 3)
    assert to_file.code == 0, to_file.err
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["which", "text", "prediction", "probability"]
    assert [r["prediction"] for r in written] == [r["prediction"] for r in found]


def test_predict_many_refuses_a_task_with_another_attention(
    saved: Path, tmp_path: Path, command: Command
) -> None:
    film = task("films", FILM, "{{ text }} It was {{ mask }}")
    window = {"window": 4}
    near = load_model(str(saved / "model"), attention="longformer", attention_options=window)
    artifact.save(tuned(near, 3, film), tmp_path / "near")
    data = table(tmp_path / "rows.csv", [("A", texts(1)[0]), ("B", texts(1)[0])])
    asked = ("predict-many", f"A={saved / 'films'}", f"B={tmp_path / 'near'}", "--data", data)
    ran = command(*asked)
    assert ran.code == 2 and not ran.out
    assert "attention='longformer'" in ran.err and "promptforge predict" in ran.err


def test_predict_many_names_what_is_wrong(saved: Path, tmp_path: Path, command: Command) -> None:
    data = table(tmp_path / "rows.csv", [("films", texts(1)[0]), ("flims", texts(1)[0])])
    wrong = command("predict-many", saved / "films", saved / "lengths", "--data", data)
    assert wrong.code == 2 and "row 2 is of the task 'flims'" in wrong.err
    assert "Did you mean 'films'" in wrong.err
    twice = command("predict-many", saved / "films", saved / "films", "--data", data)
    assert twice.code == 2 and "Two tasks are called 'films'" in twice.err
    data = table(tmp_path / "more.csv", [("films", texts(1)[0]), ("again", texts(1)[0])])
    other = command("predict-many", saved / "films", f"again={saved / 'films'}", "--data", data)
    assert other.code == 0, other.err
    whole = command("predict-many", saved / "films", f"all={saved / 'all'}", "--data", data)
    assert whole.code == 2 and "changes the model's own weights" in whole.err
    nowhere = command("predict-many", tmp_path / "none", "--data", data)
    assert nowhere.code == 2 and "no artifact" in nowhere.err
    column = command("predict-many", saved / "films", "--data", data, "--task-column", "kind")
    assert column.code == 2 and "no column 'kind'" in column.err
    data = table(tmp_path / "empty.csv", [("films", {"text": ""})])
    empty = command("predict-many", saved / "films", "--data", data)
    assert empty.code == 2 and "row 1 has no value in the column 'text'" in empty.err
