"""Comparing strategies: cells, statistics, what labels are worth, the command."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import labelling
import numpy as np
import pytest
import tiny
from scipy import stats
from sklearn.metrics import f1_score

from promptforge import Comparison, Scale, Settings, Task, UserError, compare, train
from promptforge.cli.compare import show
from promptforge.data import Example
from promptforge.evaluation import paired
from promptforge.plugins import build
from promptforge.progress import Meter, Reporter
from promptforge.tuning import zero_shot
from promptforge.tuning.compare import Cell
from promptforge.tuning.contender import Contender
from promptforge.tuning.run import RESULTS, RunFolder

Command = Callable[..., Any]
Folder = Callable[[str], Path]


def cells(name: str, shots: int, *accuracies: float) -> list[Cell]:
    return [Cell(name, seed, shots, a, a, 1.0) for seed, a in enumerate(accuracies)]


def numbers() -> tuple[Task, list[Example]]:
    """A task that predicts numbers, and rows of it."""
    plain = Task.load(tiny.EXAMPLES).choose(["it-was"])
    words = {"negative": ["bad"], "positive": ["good"]}
    rows = [
        replace(e, value=float(i % 5), label="positive" if i % 5 > 2 else "negative")
        for i, e in enumerate(plain.examples("train"))
    ]
    return replace(plain, scale=Scale(0, 4), labels=words), rows


def test_summary_is_mean_deviation_and_paired_test() -> None:
    one, two = [0.70, 0.74, 0.69], [0.80, 0.79, 0.83]
    found = Comparison("t", 100, 0.5, cells("a", 16, *one) + cells("b", 16, *two))
    a, b = found.summary()
    assert a["accuracy"] == pytest.approx(sum(one) / 3)
    assert b["deviation"] == pytest.approx(stats.tstd(two))
    assert b["p"] is None
    assert a["p"] == pytest.approx(stats.ttest_rel(two, one).pvalue)
    assert paired([0.5], [0.6]) is None
    (alone,) = Comparison("t", 100, 0.5, cells("a", 16, 0.7)).summary()
    assert alone["deviation"] is None and alone["accuracy"] == 0.7
    assert paired([0.5, 0.6], [0.5, 0.6]) == 1.0
    assert paired([0.5, 0.6], [0.6, 0.7]) == 0.0  # the same difference with each seed
    assert paired([float("nan"), 1.0], [1.0, 2.0]) is None


def test_what_labels_are_worth_is_read_off_the_baselines_curve() -> None:
    curve = [*cells("finetune", 16, 0.6), *cells("finetune", 64, 0.7), *cells("finetune", 32, 0.64)]
    found = Comparison("t", 100, 0.5, [*curve, *cells("pet", 16, 0.67), *cells("x", 16, 0.9),
                                       *cells("low", 16, 0.5)])  # fmt: skip
    worth = found.worth("finetune")
    assert worth["pet"] == pytest.approx(32 * math.sqrt(2))  # half way between 32 and 64
    assert worth["x"] is None
    assert worth["low"] == 16
    both = Comparison("t", 100, 0.5, [*curve, *cells("pet", 16, 0.67), *cells("pet", 32, 0.7)])
    assert both.worth("finetune") == {"pet with 16": worth["pet"], "pet with 32": 64}
    # All rows are more than any number that was tried, and no point of the curve.
    everything = [*cells("finetune", 0, 0.95), *cells("pet", 0, 0.67), *cells("x", 0, 0.9)]
    found = Comparison("t", 100, 0.5, [*curve, *everything])
    assert found.worth("finetune") == {"pet": pytest.approx(32 * math.sqrt(2)), "x": None}
    assert Comparison("t", 100, 0.5, everything).worth("finetune") == {"pet": None, "x": None}


def test_contenders_are_read_with_components_and_options() -> None:
    made = Contender.parse(
        "ensemble:repetitions=2,demonstrations=random,demonstrations.seed=5,samples=3"
    )
    parts = made.build()
    assert parts["strategy"].repetitions == 2
    assert parts["demonstrations"].seed == 5
    assert made.samples == 3
    for wrong in ("nope", "ensemble:repetitons=2", "prompt:samples=0", "prompt:method=nope"):
        with pytest.raises(UserError):
            Contender.parse(wrong)


@pytest.mark.parametrize(
    ("text", "role", "options"),
    [
        ('ensemble:verbalizers=["manual","soft"],repetitions=2', "strategy",
         {"verbalizers": ["manual", "soft"], "repetitions": 2}),
        ('ensemble:of=pet, of_options={"repetitions": 2, "final_steps": 9}', "strategy",
         {"of": "pet", "of_options": {"repetitions": 2, "final_steps": 9}}),
        ("ensemble:of=pet,of_options={repetitions=2,final_steps=9}", "strategy",
         {"of": "pet", "of_options": {"repetitions": 2, "final_steps": 9}}),
        ('ensemble:verbalizers=["a],\\",b"],of="x,y"', "strategy",
         {"verbalizers": ['a],",b'], "of": "x,y"}),
        ("prompt:method=lora,targets='a,b',layers=[0,1]", "method",
         {"targets": "a,b", "layers": [0, 1]}),
        ("prompt:method=lora,targets=it's,rank=2", "method", {"targets": "it's", "rank": 2}),
    ],
)  # fmt: skip
def test_options_of_contenders_may_have_commas(
    text: str, role: str, options: dict[str, Any]
) -> None:
    assert Contender.parse(text).options[role] == options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ensemble:repetitons=2", "'repetitons=2': no chosen component has 'repetitons'. Did you mean"),
        ("prompt:alpha=0.1,samples=0", "samples is a whole number from 1."),
        ("prompt:sampels=2", "'sampels=2': no chosen component has 'sampels'."),
        ("prompt:methd=lora", "'methd=lora': no chosen component has 'methd'."),
        ("ensemble:verbalizers=manual,soft", "'soft': write it as key=value or role.key=value."),
    ],
)  # fmt: skip
def test_a_wrong_option_of_a_contender_is_one_of_strategy(text: str, said: str) -> None:
    with pytest.raises(UserError) as told:
        Contender.parse(text)
    assert str(told.value).startswith(f"--strategy {text!r}: {said}")
    for wrong, right in (("sampels", "samples"), ("methd", "method")):
        assert (wrong in text) == str(told.value).endswith(f"Did you mean {right!r}?")


@pytest.mark.parametrize(
    ("contender", "said"),
    [
        ("pet", "strategy 'pet' counts right labels"),
        ("ensemble:of=pet", "strategy 'pet' counts right labels"),
        ("priming", "--strategy priming:demonstrations=random"),
        ("ensemble:of=priming", "--strategy priming:demonstrations=random"),
        ("ensemble:repetitions=0", "option 'repetitions'"),
        ('ensemble:verbalizers=["manual","sfot"]', "Did you mean 'soft'"),
        ('ensemble:verbalizers=["soft","soft"]', "'soft' twice"),
        ("finetune:demonstrations=random", "shows no demonstrations"),
        ("lm-bff:demonstrate=false,demonstrations=random", "shows no demonstrations"),
    ],
)
def test_every_contender_is_checked_before_any_training(
    contender: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptforge.tuning.compare.train", None)  # a call would fail
    task, rows = numbers()
    with pytest.raises(UserError, match=said):
        compare(task, rows, ["finetune", contender], backbone=tiny.backbone("bert"), test=rows[:20],
                unlabeled=[e.row for e in rows[:4]], shots=2, seeds=(1, 2), folder=tmp_path)  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_cells_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task.load(tiny.EXAMPLES).choose(["it-was"])
    backbone = tiny.backbone("bert")
    options: dict[str, Any] = {
        "backbone": backbone, "test": task.examples("test")[:40], "shots": 4, "seeds": (1, 2),
        "folder": tmp_path, "settings": Settings(steps=2),
    }  # fmt: skip
    first = compare(task, task.examples("train"), ["prompt", "finetune"], **options)
    assert [(c.contender, c.seed) for c in first.cells] == [
        ("prompt", 1), ("prompt", 2), ("finetune", 1), ("finetune", 2)
    ]  # fmt: skip
    assert all(0 <= c.score <= 1 for c in first.cells)
    monkeypatch.setattr("promptforge.tuning.compare.train", None)  # a call would fail
    options["seeds"] = np.arange(1, 3)  # the same seeds, the same cells
    again = compare(task, task.examples("train"), ["prompt", "finetune"], **options)
    assert json.loads(json.dumps(again.to_json())) == first.to_json()
    with pytest.raises(UserError, match="test rows"):
        compare(task, task.examples("train"), ["prompt"], backbone=backbone, test=[])
    for wrong in (
        {"seeds": (1, 1)},
        {"seeds": (1, -1)},
        {"label_cost": {"finetune": [0]}},
        {"shots": 0},
        {"seeds": []},
        {"seeds": (1.5,)},
    ):
        said = r"seeds=|seed is -1|seed is 1.5|label_cost|shots is less than 1"
        with pytest.raises(UserError, match=said):
            compare(task, task.examples("train"), ["prompt"], **{**options, **wrong})
    with pytest.raises(UserError, match="nothing to compare"):
        compare(task, task.examples("train"), [], **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 2}, r"no argument 'steps'. It is a setting: settings=Settings.of\(steps=...\)"),
        ({"method": "lora"}, "no argument 'method'. It is each contender's own: 'prompt:method=...'"),
        ({"class_weights": "balanced"}, "no argument 'class_weights'. Did you mean 'class_weight'"),
        ({"seed": 3}, r"no argument 'seed'. It takes several: seeds=\[13, 21\]"),
        ({"strategy": "pet"}, "no argument 'strategy'. Strategies are the contenders"),
        ({"resume": True}, r"no argument 'resume'. .* same folder=... goes on"),
        ({"colour": 3}, "no argument 'colour'.$"),
    ],
)  # fmt: skip
def test_arguments_that_a_comparison_has_not(options: dict[str, Any], said: str) -> None:
    task, rows = numbers()
    with pytest.raises(UserError, match=said):
        compare(task, rows, ["prompt"], backbone=tiny.backbone("bert"), test=rows[:20], **options)


def test_one_seed_is_a_seed() -> None:
    task = Task.load(tiny.EXAMPLES).choose(["it-was"])
    found = compare(
        task, task.examples("train"), ["prompt"], backbone=tiny.backbone("bert"), seeds=13, shots=2,
        test=task.examples("test")[:4], settings=Settings(steps=1),
    )  # fmt: skip
    assert [cell.seed for cell in found.cells] == [13]


def test_a_contender_is_the_same_at_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task.load(tiny.EXAMPLES).choose(["it-was"])
    methods: list[Any] = []

    def noted(*given: Any, **options: Any) -> Any:
        methods.append(options["method"].name)
        return train(*given, **options)

    monkeypatch.setattr("promptforge.tuning.compare.train", noted)
    made = Contender.of("mine", {"method": build("method", "bitfit")})
    compare(
        task, task.examples("train"), [made], backbone=tiny.backbone("bert"), seeds=(1,), shots=2,
        test=task.examples("test")[:4], settings=Settings(steps=1), label_cost={"mine": [4]},
    )  # fmt: skip
    assert methods == ["bitfit"] * 2


def test_contenders_that_differ_in_a_sign_have_cells_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.load(tiny.EXAMPLES).choose(["it-was"])
    begin = "prompt:method=prompt-tuning,init=text,text="
    contenders = [f'{begin}"Good{end}"' for end in ("?", "!", "?" * 300)]
    options: dict[str, Any] = {
        "backbone": tiny.backbone("bert"), "test": task.examples("test")[:10], "shots": 2,
        "seeds": (1,), "settings": Settings(steps=1), "folder": tmp_path,
    }  # fmt: skip
    first = compare(task, task.examples("train"), contenders, **options)
    texts = [
        RunFolder(p).config["method"]["text"] for p in tmp_path.iterdir() if RunFolder(p).results
    ]
    assert sorted(texts) == sorted(["Good?", "Good!", "Good" + "?" * 300])
    assert len({c.seconds for c in first.cells}) == 3
    monkeypatch.setattr("promptforge.tuning.compare.train", None)  # a call would fail
    assert compare(task, task.examples("train"), contenders, **options) == first


def test_command(command: Command, tiny_model: Folder, reviews: Path, tmp_path: Path) -> None:
    base = ("compare", reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--seeds", "1",
            "--shots", "4", "--steps", "1", "--limit", "30", "--folder", tmp_path / "c")  # fmt: skip
    found = command(*base, "--strategy", "zero-shot", "--label-cost", "4,8", "--json").json
    assert found["rows"] == 30
    assert {(c["contender"], c["shots"]) for c in found["cells"]} == {
        ("zero-shot", 4), ("finetune", 4), ("finetune", 8)
    }  # fmt: skip
    assert set(found["worth"]) == {"zero-shot"}
    shown = command(*base, "--strategy", "zero-shot").out
    assert "zero-shot" in shown and "majority" in shown
    wrong = command(*base, "--strategy", "prompt", "--seeds", "a")
    assert wrong.code == 2 and "whole numbers" in wrong.err
    wrong = command(*base, "--strategy", "prompt", "--seeds", "13,21,13")
    assert wrong.code == 2 and "--seeds '13,21,13' has 13 twice" in wrong.err
    wrong = command(*base, "--strategy", "prompt", "--label-cost", "0,2")
    assert wrong.code == 2 and "--label-cost '0,2' has 0: the least is 1" in wrong.err


def test_the_command_has_all_rows_and_exits(
    command: Command, tiny_model: Folder, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Python's `compare` has; and of several processes the first alone speaks."""
    given: list[dict[str, Any]] = []

    def noted(*_: Any, **options: Any) -> Comparison:
        given.append(options)
        return Comparison("reviews", 9, 0.5, cells("prompt", 0, 0.7))

    monkeypatch.setattr("promptforge.tuning.compare.compare", noted)
    base = ("compare", reviews, "--model", tiny_model("bert"), "--strategy", "prompt")
    ran = command(*base, "--shots", "all", "--exits", "two-stage", "-o", "exits.steps=7")
    assert ran.code == 0, ran.err
    assert given[0]["shots"] is None
    assert [e.label for e in given[0]["dev"]] == [
        e.label for e in Task.load(reviews).examples("dev")
    ]
    assert (given[0]["exits"].name, given[0]["exits"].steps) == ("two-stage", 7)
    assert "all" in ran.out
    command(*base)
    assert (given[1]["shots"], given[1]["exits"], given[1]["dev"]) == (16, None, [])
    for wrong in ("0", "many"):
        refused = command(*base, "--shots", wrong)
        assert refused.code == 2 and "--shots" in refused.err
    monkeypatch.setattr("promptforge.tuning.processes.is_first", lambda: False)
    ran = command(*base)
    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_a_comparison_may_train_exits(command: Command, tiny_model: Folder, reviews: Path) -> None:
    base = ("compare", reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--seeds", "1",
            "--shots", "2", "--steps", "1", "--limit", "4", "--strategy", "finetune",
            "--folder", "cells", "--exits", "joint", "--json")  # fmt: skip
    assert len(command(*base).json["cells"]) == 1
    assert RunFolder(Path("cells/finetune-2-1")).config["exits"]["name"] == "joint"


def lines(capsys: pytest.CaptureFixture[str], found: Comparison) -> list[str]:
    """What the command prints of a comparison, spaces and rules of the table apart."""
    show(found, found.worth("finetune"))
    return [
        " ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()
    ]


def test_what_fine_tuning_needs_is_at_most_its_own_least(
    capsys: pytest.CaptureFixture[str],
) -> None:
    curve = [*cells("finetune", 8, 0.6), *cells("finetune", 32, 0.7)]
    others = [*cells("low", 4, 0.5), *cells("pet", 4, 0.65), *cells("x", 4, 0.9)]
    shown = lines(capsys, Comparison("t", 100, 0.5, [*others, *curve, *cells("finetune", 0, 0.8)]))
    assert shown[-3:] == [
        f"{name}: fine-tuning needs {many} to be as good."
        for name, many in (
            ("low", "at most 8 rows a label"),
            ("pet", "about 16 rows a label"),
            ("x", "more rows than were tried"),
        )
    ]


def test_zero_shot_is_shown_once_or_for_each_contender(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # in a narrow table the names go on in a second line

    def before(**scores: float) -> list[str]:
        made = [
            replace(cell, zero_shot=score)
            for name, score in scores.items()
            for shots in (4, 8, 16)
            for cell in cells(name, shots, 0.8)
        ]
        shown = lines(capsys, Comparison("t", 100, 0.5, [*made, *cells("without", 4, 0.6)]))
        return [line for line in shown if "zero-shot" in line]

    assert before(a=0.7, b=0.7) == ["zero-shot 0 70.0 %"]
    assert before(a=0.7, b=0.55, c=0.7) == ["zero-shot (a, c) 0 70.0 %", "zero-shot (b) 0 55.0 %"]


def test_zero_shot_is_read_once_and_says_what_each_run_alone_says(tmp_path: Path) -> None:
    class Heard(Reporter):
        def __init__(self) -> None:
            self.meters: list[str] = []

        def meter(self, what: str, total: int | None = None, unit: str = "rows") -> Meter:
            self.meters.append(what)
            return super().meter(what, total, unit)

    task, report = Task.load(tiny.EXAMPLES).choose(["it-was", "tone"]), Heard()
    rows, test = task.examples("train"), task.examples("test")[:20]
    options: dict[str, Any] = {
        "backbone": tiny.backbone("bert"), "test": test, "shots": 4, "settings": Settings(steps=1),
    }  # fmt: skip
    compare(task, rows, ["prompt", "finetune", "prompt:verbalizer=soft"], seeds=(1, 2), folder=tmp_path,
            report=report, **options)  # fmt: skip
    read = [what for what in report.meters if what.startswith("Zero-shot")]
    # Once with words and once softly; the dev rows are another draw with each seed.
    for split, times in (("test", 2), ("dev", 4)):
        for name in task.patterns:
            assert read.count(f"Zero-shot on {split}, pattern {name}") == times
    assert not zero_shot.recall(options["backbone"], "") and not zero_shot._said
    for name in ("prompt", "finetune"):
        alone = train(task, rows, seed=2, strategy=name, **options).to_json()["results"]
        kept = (RunFolder(tmp_path / f"{name}-4-2").read(RESULTS) or {})["results"]
        assert [alone[split]["zero-shot"] for split in alone] == [
            kept[split]["zero-shot"] for split in kept
        ]


def test_zero_shot_is_of_the_rows_that_are_compared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    # With label sets zero-shot's threshold is of the draw, so other sizes have other figures.
    made = [replace(c, zero_shot=0.5) for c in cells("prompt", 4, 0.8, 0.9)]
    curve = [replace(c, zero_shot=0.3) for c in cells("prompt", 64, 0.95, 0.95)]
    shown = lines(capsys, Comparison("t", 100, 0.4, [*made, *curve], ("micro_f1", "macro_f1")))
    assert [line for line in shown if "zero-shot" in line] == ["zero-shot 0 50.0 %"]


def test_a_small_p_is_said_to_be_small(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    made = [*cells("prompt", 4, 0.8, 0.9), *cells("finetune", 4, 0.6, 0.7)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = lines(capsys, Comparison("t", 100, 0.4, made))
    assert any("finetune" in line and "< 0.001" in line for line in shown)


def test_numbers_and_label_sets_are_compared_by_their_own_figures(tmp_path: Path) -> None:
    backbone = tiny.backbone("bert")
    options: dict[str, Any] = {
        "backbone": backbone, "shots": 2, "seeds": (1, 2), "settings": Settings(steps=2),
    }  # fmt: skip
    rows = labelling.some(32)
    found = compare(labelling.task(), rows, ["prompt"], test=rows, folder=tmp_path, **options)
    (line,) = found.summary()
    truth = labelling.KIND.indicator(rows)
    always = max(
        f1_score(truth, np.isin(np.arange(3), some) | (truth < 0), average="micro")
        for n in (1, 2, 3)
        for some in combinations(range(3), n)
    )
    assert found.majority == pytest.approx(always)
    figures = [RunFolder(tmp_path / f"prompt-2-{seed}").read(RESULTS) for seed in (1, 2)]
    tuned = [list(f["results"]["test"]["tuned"].values())[-1] for f in figures if f]
    for name in ("micro_f1", "macro_f1"):
        assert line[name] == pytest.approx(np.mean([t[name] for t in tuned]))
    assert found.to_json()["cells"][0]["micro_f1"] == tuned[0]["micro_f1"]

    task, rows = numbers()
    found = compare(task, rows, ["prompt"], test=rows[:20], **options)
    assert found.figures == ("pearson", "spearman") and found.majority == 0
    assert all(-1 <= c.score <= 1 and c.zero_shot is not None for c in found.cells)


def test_command_on_label_sets(command: Command, tiny_model: Folder, tmp_path: Path) -> None:
    folder = labelling.films_folder(tmp_path)
    base = ("compare", folder, "--model", tiny_model("bert"), "--seeds", "1", "--shots", "2", "--steps", "1",
            "--strategy", "prompt", "--folder", tmp_path / "c")  # fmt: skip
    shown = command(*base).out
    assert "micro-F1" in shown and "most frequent labels" in shown
    (line,) = command(*base, "--json").json["summary"]
    assert 0 <= line["micro_f1"] <= 1 and "accuracy" not in line


def test_a_cell_of_other_options_or_rows_is_no_cell_of_these(
    command: Command, tiny_model: Folder, reviews: Path
) -> None:
    base = ("compare", reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--seeds", "1",
            "--shots", "4", "--folder", "cells", "--strategy", "prompt", "--json")  # fmt: skip
    first = command(*base, "--steps", 1, "--limit", 30).json

    def said(*more: Any) -> str:
        ran = command(*base, *more)
        assert (ran.code, ran.out) == (2, "") and "--run" not in ran.err, ran.err
        assert "cells/prompt-4-1" in ran.err and "--folder" in ran.err and "delete" in ran.err
        return str(ran.err)

    err = said("--steps", 2, "--limit", 5)
    assert "'settings.steps' (1 there, 2 now)" in err and "other rows: 'test'" in err
    assert "settings" not in said("--steps", 1, "--limit", 29)
    assert "'settings.learning_rate'" in said("--steps", 1, "--limit", 30, "--learning-rate", "0.1")
    assert "'model.name'" in said("--steps", 1, "--limit", 30, "--model", tiny_model("roberta"))
    dev = ("--dev", reviews / "dev.csv", "--limit", 30, "--steps", 1)
    assert "other rows: 'dev'" in said(*dev)
    # Of a cell that has not ended, too.
    Path("cells/prompt-4-1/results.json").unlink()
    assert "'settings.steps' (1 there, 2 now)" in said("--steps", 2, "--limit", 30)
    assert "other rows: 'dev'" in said(*dev)
    again = command(*base, "--steps", 1, "--limit", 30).json
    assert again["summary"][0]["accuracy"] == first["summary"][0]["accuracy"]
    # Other training rows under the same names.
    train = reviews / "train.csv"
    train.write_text(train.read_text(encoding="utf-8").replace(" the ", " thy "), encoding="utf-8")
    assert "other rows: 'dev', 'train'" in said("--steps", 1, "--limit", 30)


def test_figures_of_rows_that_nobody_recorded_are_not_reused(tmp_path: Path) -> None:
    task = Task.load(tiny.EXAMPLES).choose(["it-was"])
    options: dict[str, Any] = {
        "backbone": tiny.backbone("bert"), "test": task.examples("test")[:20], "shots": 4,
        "seeds": (1,), "folder": tmp_path, "settings": Settings(steps=1),
    }  # fmt: skip
    compare(task, task.examples("train"), ["prompt"], **options)
    folder = RunFolder(tmp_path / "prompt-4-1")
    results = folder.results
    assert results is not None
    del results["digests"]
    folder.write(RESULTS, results)
    with pytest.raises(UserError, match="no record of the rows"):
        compare(task, task.examples("train"), ["prompt"], **options)


def test_ctrl_c_says_that_the_same_command_goes_on(
    command: Command, tiny_model: Folder, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("compare", reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--seeds", "1,2",
            "--shots", "4", "--steps", "1", "--strategy", "prompt", "--folder", "cells")  # fmt: skip

    def second(*given: Any, **more: Any) -> Any:
        if more["seed"] == 2:
            raise KeyboardInterrupt
        return train(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr("promptforge.tuning.compare.train", second)
        ran = command(*base)
    assert ran.code == 130
    assert "kept in cells: go on with the same command." in ran.err and "--resume" not in ran.err
    before = Path("cells/prompt-4-1/results.json").stat().st_mtime_ns
    assert len(command(*base, "--json").json["cells"]) == 2
    assert Path("cells/prompt-4-1/results.json").stat().st_mtime_ns == before
