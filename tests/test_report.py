"""`promptforge report`: one HTML file about runs, from what they wrote."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plain_tuning
import pytest
import tiny
from scipy.stats import binomtest
from test_scale import folder as stars_folder

from promptforge import LabelWords, PromptForgeError, UserError

pytest.importorskip("matplotlib")

Command = Callable[..., Any]
Folder = Callable[[str], Path]
EVIL = '<script>alert("x")</script> & <b>bold</b> {{ 7*7 }}'
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """A page taken apart: tags closed in order, ids, texts of sections, references, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self.scripts, self.svgs = 0, 0
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.references += [
            v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")
        ]
        self.references += re.findall(r"url\(([^)]*)\)", found.get("style") or "")
        self.scripts += tag == "script"
        if tag == "svg":
            self.svgs += 1
            assert found.get("role") == "img"
            self.labels.append(found.get("aria-label") or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def page(path: str | Path) -> Page:
    """The page, which needs no network and has no id twice."""
    text = Path(path).read_text(encoding="utf-8")
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not re.findall(r"url\((?!#)", text)
    made = Page(text)
    assert all(r.startswith("#") for r in made.references), made.references
    assert {r[1:] for r in made.references} <= set(made.ids)
    assert len(made.ids) == len(set(made.ids))
    assert all(made.labels) and made.scripts == 1
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on a few reviews, one of which is dangerous: two seeds of one, and another strategy."""
    from promptforge.cli import run

    home = tmp_path_factory.mktemp("report")
    task = Path(shutil.copytree(tiny.EXAMPLES, home / "task"))
    for split, most in (("test", 30), ("unlabeled", 30)):
        path = task / f"{split}.csv"
        with path.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.reader(handle))[: most + 1]
        rows[1][rows[0].index("text")] = EVIL
        with path.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows(rows)
    model = tiny.save("bert", home / "bert")
    base = ["-q", "train", str(task), "--model", str(model), "--steps", "4", "--eval-every", "2", "--shots", "4"]  # fmt: skip
    two = ["--pattern", "it-was", "--pattern", "review"]
    for name, options in {
        "one": [*two, "--seed", "13"],
        "two": [*two, "--seed", "21"],
        "head": ["--strategy", "finetune", "--seed", "13"],
        "demos": ["--pattern", "it-was", "--demonstrations", "random", "--seed", "13"],
    }.items():
        assert run([*base, "--run", str(home / "runs" / name), *options]) == 0
    return home / "runs"


def results(run: Path) -> Any:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def test_a_run_keeps_what_it_said_of_each_row(runs: Path) -> None:
    lines = (runs / "one" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    test = [row for row in rows if row["split"] == "test"]
    assert len(test) == 30 and len(rows) == 38 and {r["split"] for r in rows} == {"dev", "test"}
    assert test[0]["row"] == {"text": EVIL} and test[0]["number"] == 1
    labels = list(json.loads((runs / "one" / "config.json").read_text())["task"]["labels"])
    told = results(runs / "one")
    for who in ("zero-shot", "tuned"):
        assert all(sum(r["said"][who]) == pytest.approx(1, abs=1e-6) for r in test)
        right = [labels[max((0, 1), key=r["said"][who].__getitem__)] == r["truth"] for r in test]
        whole = list(told["results"]["test"][who].values())[-1]
        assert sum(right) / 30 == pytest.approx(whole["accuracy"])
    assert told["counts"]["train"] == {"negative": 4, "positive": 4}
    assert sum(told["counts"]["test"].values()) == 30


def test_one_run(command: Command, runs: Path) -> None:
    told = command("report", runs / "one", "--output", "r.html", "--json").json
    (one,) = told["runs"]
    assert (told["output"], one["split"], one["figure"]) == ("r.html", "test", "accuracy")
    final = list(results(runs / "one")["results"]["test"]["tuned"].values())[-1]
    assert (one["value"], one["interval"]) == (final["accuracy"], final["interval"])
    assert set(one["absent"]) == {"exits"} and "without --exits" in one["absent"]["exits"]
    made = page("r.html")
    for name in one["sections"]:
        assert f"run-1-{name}" in made.ids
    assert made.svgs == 4  # intervals, reliability, loss, score
    for split, by in results(runs / "one")["results"].items():
        assert f"On {split}, " in made.text
        for parts in by.values():
            for figures in parts.values():
                assert f"{100 * figures['accuracy']:.1f} %" in made.text
                assert f"{100 * figures['macro_f1']:.1f} %" in made.text
    low, high = final["interval"]
    assert f"{100 * low:.1f} to {100 * high:.1f} %" in made.text
    confusion = " ".join(str(n) for n in final["confusion"][0])
    assert f"negative {confusion} positive" in made.text
    assert "Leaving early" in made.text and "trained without --exits" in made.text


def test_text_from_data_stays_text(command: Command, runs: Path) -> None:
    assert command("report", runs / "one", "--output", "r.html").code == 0
    text = Path("r.html").read_text(encoding="utf-8")
    assert "alert(&#34;x&#34;)" in text and "alert(" not in text.replace("alert(&#34;", "")
    assert EVIL in "".join(page("r.html").texts)


def test_several_runs_are_compared(command: Command, runs: Path) -> None:
    told = command("report", runs, "--json").json
    assert told["output"] == "report.html" and len(told["runs"]) == 4
    lines = told["comparison"]["runs"]
    values = [
        list(results(Path(line["run"]))["results"]["test"]["tuned"].values())[-1]["accuracy"]
        for line in lines
    ]
    assert values == sorted(values, reverse=True) and [r["best"] for r in lines] == [
        True,
        *[False] * 3,
    ]
    for line in lines[1:]:
        best, own = line["differ"]
        assert (best - own) / 30 == pytest.approx(values[0] - values[lines.index(line)])
        p = binomtest(best, best + own).pvalue if best + own else 1.0
        assert line["p"] == pytest.approx(p)
    (group,) = [g for g in told["comparison"]["seeds"] if len(g["seeds"]) == 2]
    assert group["names"] == ["one", "two"] and group["seeds"] == [13, 21]
    assert (
        "seed" in told["comparison"]["options"] and "strategy.name" in told["comparison"]["options"]
    )
    made = page("report.html")
    assert (
        "Best first" in made.text and "Over seeds" in made.text and "Where they differ" in made.text
    )
    assert "run-4-hardest" in made.ids
    again = command("report", runs / "two", runs / "two", "--output", "r.html", "--json").json
    assert len(again["runs"]) == 1 and "comparison" not in again


def test_rows_are_read_again(command: Command, runs: Path) -> None:
    """Demonstrations, tokens, label words and top words come with the model."""
    plain = command("report", runs / "demos", "--output", "plain.html")
    assert plain.code == 0
    text = page("plain.html").text
    assert (
        "Rendered without the model: the demonstrations, tokens" in text
        and "Nothing was cut" not in text
    )
    ran = command("report", runs / "demos", "--output", "r.html", "--rows", 3)
    assert ran.code == 0 and "Reading rows of demos again: 6/6" in ran.err
    source, made = Path("r.html").read_text(encoding="utf-8"), page("r.html")
    assert 'class="piece demonstration"' in source and " tokens. " in made.text
    assert "over 3 rows by their label" in made.text
    assert source.count('<p class="words">') == 3
    head = command("report", runs / "head", "--output", "h.html", "--rows", 1)
    assert head.code == 0 and "neither masks nor label words" in page("h.html").text


def test_an_old_run(command: Command, runs: Path, tmp_path: Path) -> None:
    old = shutil.copytree(runs / "one", tmp_path / "old")
    (old / "predictions.jsonl").unlink()
    told = results(old)
    del told["counts"], told["size"]
    (old / "results.json").write_text(json.dumps(told), encoding="utf-8")
    (one,) = command("report", old, "--json").json["runs"]
    assert {"calibration", "hardest", "data"} <= set(one["absent"])
    assert "templates" in one["sections"]  # its task's folder is still there
    text = page(old / "report.html").text
    assert "This run kept no predictions" in text and "did not keep its counts" in text
    data = runs.parent / "task" / "test.csv"
    asked = ("report", old, "--data", data, "--rows", 2, "--output", "d.html", "--json")
    (one,) = command(*asked).json["runs"]
    final = list(told["results"]["test"]["tuned"].values())[-1]
    assert one["split"] == "data" and one["value"] == pytest.approx(final["accuracy"])
    assert {"calibration", "hardest"} <= set(one["sections"])
    assert "On data, 30 rows" in page("d.html").text


def test_a_run_under_way(command: Command, runs: Path, tmp_path: Path) -> None:
    begun = shutil.copytree(runs / "one", tmp_path / "begun")
    (begun / "results.json").unlink()
    both = command("report", begun, runs / "one", "--output", "r.html", "--json").json
    assert [r["ended"] for r in both["runs"]] == [False, True]
    assert "has not ended" in both["runs"][0]["absent"]["figures"]
    assert [Path(line["run"]).name for line in both["comparison"]["runs"]] == ["one", "begun"]
    assert "not ended" in page("r.html").text
    assert command("report", begun).code == 0 and "not ended" in page(begun / "report.html").text


def test_numbers(command: Command, tiny_model: Folder, tmp_path: Path) -> None:
    model = ("--model", tiny_model("bert"), "--steps", 1)
    stars = stars_folder(tmp_path / "stars", "low = 1\nhigh = 5")
    assert command("train", stars, *model, "--run", "runs/stars").code == 0
    (one,) = command("report", "runs/stars", "--json").json["runs"]
    assert one["figure"] == "pearson" and {"confusion", "calibration"} <= set(one["absent"])
    made = page("runs/stars/report.html")
    assert "the largest errors come first" in made.text
    assert "run-1-numbers" in made.ids
    assert any("Predicted numbers against true ones" in label for label in made.labels)


def test_several_labels_a_row(command: Command, tiny_model: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "tickets"
    folder.mkdir()
    (folder / "task.toml").write_text(
        'name = "tickets"\n[columns]\ninputs = ["text"]\nlabel = "topics"\n'
        '[multi_label]\nlabels = ["film", "actor"]\n'
        '[labels]\nno = ["bad"]\nyes = ["good"]\n[patterns.is]\n'
        '[data]\ntrain = "rows.csv"\ntest = "rows.csv"\n',
        encoding="utf-8",
    )
    (folder / "is.jinja").write_text("{{ text }} {{ label }}: {{ mask }}", encoding="utf-8")
    lines = ["text,topics", "a film,film", "an actor,actor", 'both of them,"film,actor"', "none,"]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = ("--model", tiny_model("bert"), "--steps", 1)
    assert command("train", folder, *model, "--run", "run").code == 0
    (one,) = command("report", "run", "--rows", 2, "--json").json["runs"]
    assert one["figure"] == "micro_f1" and "confusion" in one["absent"]
    final = list(results(Path("run"))["results"]["test"]["tuned"].values())[-1]
    assert one["value"] == final["micro_f1"] and one["interval"] == final["interval"]
    made = page("run/report.html")
    assert f"{100 * final['exact_match']:.1f} %" in made.text
    rows = [json.loads(n) for n in Path("run/predictions.jsonl").read_text().splitlines()]
    assert [row["truth"] for row in rows] == [["film"], ["actor"], ["film", "actor"], []]
    wrong = round(4 * (1 - final["exact_match"]))
    if wrong:
        assert f"{wrong} of 4 rows on test are wrong" in made.text
    else:
        assert "All 4 rows are right" in made.text


def test_an_exit_curve_is_kept_and_shown(
    command: Command, tiny_model: Folder, reviews: Path
) -> None:
    first, second = plain_tuning.some_words(tiny.backbone("bert"), 2)
    words = LabelWords(["negative", "positive"], {"*": {"negative": [first], "positive": [second]}})
    words.save("words.json")
    base = ("train", reviews, "--model", tiny_model("bert"), "--steps", 2, "--pattern", "it-was")
    asked = ("--verbalizer", "words.json", "--exits", "joint", "--run", "run")
    assert command(*base, *asked).code == 0
    (one,) = command("report", "run", "--json").json["runs"]
    assert "promptforge exit-curve run --data FILE" in one["absent"]["exits"]
    curve = ("exit-curve", "run", "--data", reviews / "test.csv", "--timed-rows", 4, "--repeats", 1)
    found = command(*curve, "--batch-size", 1, "--json").json
    assert json.loads(Path("run/exit-curve.json").read_text()) == json.loads(json.dumps(found))
    (one,) = command("report", "run", "--json").json["runs"]
    assert "exits" in one["sections"]
    made = page("run/report.html")
    assert f"{100 * found['score']:.1f} %" in made.text
    for point in found["best"].values():
        assert point["line"] in made.text


def test_without_matplotlib_the_tables_stay(
    command: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from promptforge_report import plots

    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    (one,) = command("report", runs / "one", "--output", "r.html", "--json").json["runs"]
    assert "pip install matplotlib" in one["absent"]["learning"]
    made = page("r.html")
    assert made.svgs == 0 and "Expected calibration error" in made.text
    assert "pip install matplotlib" in made.text


def test_bad_input(command: Command, runs: Path, tmp_path: Path) -> None:
    def fails(*arguments: object, code: int = 2) -> str:
        ran = command("report", *arguments)
        assert ran.code == code and "Traceback" not in ran.err, ran.err
        return " ".join(ran.err.split())

    assert "There is no run in nowhere" in fails("nowhere")
    Path("folder").mkdir()
    assert "is a folder: name a file in it" in fails(runs / "one", "--output", "folder")
    assert "end its name in .html" in fails(runs / "one", "--output", "rows.csv")
    assert "there is no folder gone" in fails(runs / "one", "--output", "gone/r.html")
    assert "No such file: gone.csv" in fails(
        runs / "one", "--output", "r.html", "--data", "gone.csv"
    )
    for name, text, said in (
        ("results.json", "{", "results.json is damaged"),
        ("results.json", '{"results": {"test": []}}', "results.json is damaged: results.test"),
        ("results.json", '{"results": {"test": {"tuned": {"x": {"accuracy": "high"}}}}}', "results.json is damaged"),
        ("predictions.jsonl", '{"split": 1}\n', "predictions.jsonl is damaged: line 1"),
        ("predictions.jsonl", '{"split": "test", "number": 1, "row": {}, "truth": "negative", "said": {"tuned": [1]}}', "line 1"),
        ("exit-curve.json", "{}", "exit-curve.json is damaged: layers"),
        ("config.json", '{"strategy": {"name": "prompt"}}', "config.json is damaged"),
    ):  # fmt: skip
        bad = shutil.copytree(runs / "one", tmp_path / "bad", dirs_exist_ok=True)
        (bad / name).write_text(text, encoding="utf-8")
        assert said in fails(bad, "--output", "r.html", code=1), name
        shutil.rmtree(bad)
    assert not Path("r.html").exists()


def test_from_python(runs: Path, tmp_path: Path) -> None:
    from promptforge_report.report import report

    made = report([runs / "one", runs / "two"], tmp_path / "r.html")
    assert made.comparison and len(made.comparison.groups) == 1
    assert made.to_json()["runs"][0]["run"] == str(runs / "one")
    page(made.output)
    with pytest.raises(UserError, match="rows is -1"):
        report([runs / "one"], rows=-1)
    (runs / "two" / "predictions.jsonl").rename(tmp_path / "aside")
    try:
        told = report([runs / "one", runs / "two"], tmp_path / "r.html")
        assert told.comparison and told.comparison.why
    finally:
        (tmp_path / "aside").rename(runs / "two" / "predictions.jsonl")
    with pytest.raises(PromptForgeError):
        report([runs / "one"], tmp_path / "r.html", device="no-such-device", rows=1)
