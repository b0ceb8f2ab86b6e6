"""LM-BFF's strategy, and ranking by tuning, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from promptforge_verbalizers.manual import ManualVerbalizer

from promptforge import (
    PromptModel,
    Settings,
    Task,
    UserError,
    load_model,
    search_template,
    search_verbalizer,
)
from promptforge.cli.common import percent
from promptforge.plugins import build
from promptforge.template import Template
from promptforge.tuning.loop import Trained, Training
from promptforge.tuning.rerank import rerank_words, template_rank
from promptforge.tuning.scores import dev_score
from promptforge.tuning.tuner import Tuner

Command = Callable[..., Any]
Folder = Callable[[str], Path]


def tuner(pattern: str = "it-was", **changes: Any) -> Tuner:
    task = Task.load(tiny.EXAMPLES).choose([pattern])
    rows = task.examples("train")
    given = {
        "dev": task.examples("dev")[::4],
        "settings": Settings(steps=3, dropout=False),
        **changes,
    }
    return Tuner(tiny.backbone("bert"), task, rows[::2], **given)


def lm_bff(**options: Any) -> Any:
    return build("strategy", "lm-bff", **{"filter": False, **options})


def test_demonstrations_stand_in_every_prompt_and_are_drawn_anew_at_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[int | None, str]] = []
    original = PromptModel.prompt

    def spy(self: PromptModel, pattern: str, row: Any, draw: int | None = None) -> Any:
        made = original(self, pattern, row, draw)
        seen.append((draw, str(made)))
        return made

    monkeypatch.setattr(PromptModel, "prompt", spy)
    model = lm_bff().train(tuner(samples=3))
    steps = {draw for draw, _ in seen if draw is not None}
    assert steps == {0, 1, 2}
    # One demonstration per label, with its word where the mask was.
    assert all(text.count(" It was awful.") == 1 for _, text in seen)
    assert all(text.count(" It was wonderful.") == 1 for _, text in seen)
    assert len({text for _, text in seen}) > len({id(e) for e in tuner().train})
    rows = [e.row for e in tuner().dev]
    seen.clear()
    model.predict_proba(rows)
    assert {draw for draw, _ in seen} == {0, 1, 2}  # the mean over the samples


def test_a_filter_of_demonstrations_that_it_does_not_sample() -> None:
    shown = build("demonstrations", "random")
    with pytest.raises(UserError, match=r"filter=false is of .*: leave filter out, or --demonstra"):
        lm_bff().check_tuner(tuner(demonstrations=shown))
    with pytest.raises(UserError, match=r"leave filter out with demonstrate=false"):
        lm_bff(demonstrate=False).check_tuner(tuner())
    lm_bff(filter=True).check_tuner(tuner(demonstrations=shown))


def test_a_cut_vocabulary_with_demonstrations_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = tuner()
    words = {"negative": ["bad"], "positive": ["good"]}  # of one token: log Z cancels
    made = made.with_(task=made.task.with_words({"*": words}))
    rows = [e.row for e in made.dev]
    cut = lm_bff().train(made)
    assert cut.weights is not None and cut.weights.rows  # only the rows in use were trained
    monkeypatch.setattr(ManualVerbalizer, "tokens_read", lambda self: None)
    whole = lm_bff().train(made)
    assert whole.weights is not None and not whole.weights.rows
    assert cut.predict_proba(rows) == pytest.approx(whole.predict_proba(rows), abs=1e-5)


def test_words_found_are_ranked_by_dev_after_tuning() -> None:
    made = tuner()
    words = search_verbalizer(made.untrained(), made.train, search="lm-bff", assignments=3, top=5)
    assert len(words.alternatives["it-was"]) == 3
    ranked = rerank_words(words, made, 2)
    scores = ranked.origin["reranked"]["it-was"]
    assert scores == sorted(scores, reverse=True) and len(scores) == 2
    assert ranked.patterns["it-was"] == ranked.alternatives["it-was"][0]
    assert ranked.alternatives["it-was"][2] == words.alternatives["it-was"][2]  # not tried
    task = made.task.with_words({"it-was": ranked.patterns["it-was"]})
    again = build("strategy", "prompt").train(made.with_(task=task))
    figures = again.evaluate(made.dev)["it-was"]
    assert scores[0] == figures.accuracy > dev_score(again, made.dev)
    with pytest.raises(UserError, match="development rows"):
        rerank_words(words, made.with_(dev=[]), 2)
    single = search_verbalizer(made.untrained(), made.train, search="petal")
    with pytest.raises(UserError, match="ranks no sets"):
        rerank_words(single, made, 2)


def test_templates_found_are_ranked_by_dev_after_tuning() -> None:
    made = tuner()
    found = search_template(
        made.backbone,
        made.task,
        made.train,
        keep=3,
        beam=3,
        left=1,
        right=1,
        candidates=20,
        rank=template_rank(made),
    )
    scores = [f.tuned for f in found]
    assert scores == sorted(scores, reverse=True)
    model = lm_bff(templates=2, beam=1, demonstrate=False, filter=True).train(made)
    assert model.task.patterns.keys() <= {"found-1", "found-2"}
    model = lm_bff(assignments=2, top=4).train(made)
    assert list(model.task.patterns) == ["it-was"]
    with pytest.raises(UserError, match="candidates to rank"):
        lm_bff(assignments=2, top=4).train(made.with_(dev=[]))


def test_commands(command: Command, tiny_model: Folder, reviews: Path) -> None:
    base = (reviews, "--model", tiny_model("bert"), "--steps", "1")
    words = command("search-verbalizer", *base, "--search", "lm-bff", "--rerank", "2", "--shots", "4",
                    "--pattern", "it-was", "-o", "search.top=4", "--json")  # fmt: skip
    reranked = words.json["verbalizer"]["origin"]["reranked"]["it-was"]
    dev = words.json["results"]["dev"]["found"]["it-was"]["rows"]
    assert len(reranked) == 2 and all(is_share(value, dev) for value in reranked)
    found = command("search-template", *base, "--keep", "2", "--rerank", "--shots", "4", "--json",
                    "-o", "template-search.beam=2", "-o", "left=1", "-o", "right=0")  # fmt: skip
    assert all(is_share(t["tuned"], dev) for t in found.json["templates"])
    trained = command("train", *base, "--strategy", "lm-bff", "--shots", "4", "--pattern", "it-was",
                      "--samples", "2", "-o", "strategy.filter=false", "--json")  # fmt: skip
    assert trained.json["results"]["test"]["tuned"]
    ran = command("evaluate", trained.json["run"], "--data", reviews / "test.csv", "--json")
    assert ran.json == dict(trained.json["results"]["test"]["tuned"].items())


def is_share(value: float, rows: int) -> bool:
    """Whether a number is an accuracy on so many rows."""
    return 0 <= value <= 1 and value * rows == pytest.approx(round(value * rows), abs=1e-9)


@pytest.mark.parametrize("name", ["search-verbalizer", "search-template"])
def test_what_was_ranked_by_is_shown(command: Command, searches: Any, name: str) -> None:
    made = command(*searches[name]).json
    args = [arg for arg in searches[name] if arg != "--json"]
    out = command(*args, "--resume", "--force" if name == "search-template" else "--resume").out
    if name == "search-verbalizer":
        tuned = made["verbalizer"]["origin"]["reranked"]["it-was"]
        shown = ", ".join(map(percent, tuned))
        assert f"by set of words for the pattern it-was, best first: {shown}" in out
        return
    assert "dev after tuning" in out and "zero-shot but for the last column" in out
    for template in made["templates"]:
        (line,) = [line.rstrip() for line in out.splitlines() if template["name"] in line]
        assert line.endswith(percent(template["tuned"]))
    plain = command(*[arg for arg in args if arg != "--rerank"], "--output", "plain").out
    assert "after tuning" not in plain and "zero-shot. Rows" in plain


RULES = {"negative": ["bad", "film"], "positive": ["good", "story"]}


def test_a_verbalizer_that_cannot_take_what_is_found_is_told_before_any_search(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(*args: Any, **options: Any) -> Any:
        pytest.fail("it searched")

    for name in ("search_template", "search_verbalizer"):
        monkeypatch.setattr(f"promptforge_lm_bff.strategy.{name}", searched)
    two = Template("{{ text }} It was a {{ mask }} {{ mask }}.", name="two")
    made = tuner(verbalizer=build("verbalizer", "rules"))
    made = made.with_(task=Task.inline([two], labels=RULES))
    for option in ("templates", "assignments"):
        with pytest.raises(
            UserError, match=f"strategy.{option}=2: the verbalizer 'rules' cannot read"
        ):
            lm_bff(**{option: 2}).train(made)
    own = tuner(verbalizer=build("verbalizer", "rules", rules={"negative": ["bad"], "positive": ["good"]}))  # fmt: skip
    with pytest.raises(UserError, match="words of its own"):
        lm_bff(assignments=2).train(own)
    assert trainings == []


def test_a_rule_of_one_word_is_as_good_as_any_word(trainings: Trainings) -> None:
    made = tuner(verbalizer=build("verbalizer", "rules"))
    made = made.with_(task=made.task.with_words({"*": {y: r[:1] for y, r in RULES.items()}}))
    lm_bff(assignments=2, top=4, demonstrate=False, filter=True).train(made)
    lm_bff(templates=1, beam=2, demonstrate=False, filter=True).train(made)
    assert len(trainings) == 3


# --- candidates are tuned once ---------------------------------------------------------------


class Trainings(list[str]):
    """What was trained; after `most` of them comes Ctrl-C."""

    most = 1000

    def anew(self, most: int = 1000) -> None:
        self.most = most
        self.clear()


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    made, real = Trainings(), Training.run

    def run(self: Training, label: str = "") -> Trained:
        if len(made) == made.most:
            raise KeyboardInterrupt
        trained = real(self, label)
        made.append(label)
        return trained

    monkeypatch.setattr(Training, "run", run)
    return made


def test_words_are_tuned_once_in_a_folder(tmp_path: Path, trainings: Trainings) -> None:
    made = tuner()
    words = search_verbalizer(made.untrained(), made.train, search="lm-bff", assignments=4, top=5)
    expected = rerank_words(words, made, 3)
    kept = made.with_(folder=tmp_path)
    trainings.anew(1)
    with pytest.raises(KeyboardInterrupt):
        rerank_words(words, kept, 3)
    assert len(trainings) == 1
    trainings.anew()
    again = rerank_words(words, kept, 3)
    assert len(trainings) == 2
    assert again.patterns == expected.patterns and again.alternatives == expected.alternatives
    assert again.origin["reranked"]["it-was"] == pytest.approx(
        expected.origin["reranked"]["it-was"]
    )
    # One set more, and the sets in another order: neither takes another's folder.
    trainings.anew()
    words.alternatives["it-was"].reverse()
    other = rerank_words(words, kept, 4)
    assert len(trainings) == 1
    before = zip(again.alternatives["it-was"], again.origin["reranked"]["it-was"], strict=False)
    after = list(zip(other.alternatives["it-was"], other.origin["reranked"]["it-was"], strict=True))
    assert all(pair in after for pair in before)
    assert len(list((tmp_path / "members").iterdir())) == 4


def test_templates_are_tuned_once_in_a_folder(tmp_path: Path, trainings: Trainings) -> None:
    made = tuner()
    texts = [
        "{{ text }} It was {{ mask }}.",
        "{{ text }} So {{ mask }}!",
        "A {{ mask }} one. {{ text }}",
    ]
    one, two, three = map(Template, texts)  # fmt: skip
    expected = template_rank(made)([one, two, three])
    rank = template_rank(made.with_(folder=tmp_path))
    trainings.anew()
    assert rank([one, two]) == pytest.approx(expected[:2])
    assert rank([three, two, one]) == pytest.approx(expected[::-1])
    assert len(trainings) == 3
    # Other rows, in the same folder, make other candidates.
    assert template_rank(made.with_(folder=tmp_path, train=made.train[::2]))([one])
    assert len(trainings) == 4


def test_what_jobs_have_tuned_is_read(
    tmp_path: Path, tiny_model: Folder, trainings: Trainings
) -> None:
    made = tuner(jobs=2, folder=tmp_path).with_(backbone=load_model(str(tiny_model("bert"))))
    texts = ("{{ text }} It was {{ mask }}.", "{{ text }} So {{ mask }}!", "{{ mask }}: {{ text }}")
    templates = [Template(text) for text in texts]
    scores = template_rank(made)(templates[:2])
    assert trainings == []  # they were in other processes
    assert template_rank(made)(templates)[:2] == pytest.approx(scores)
    assert len(trainings) == 1


@pytest.fixture
def searches(tiny_model: Folder, reviews: Path) -> dict[str, tuple[Any, ...]]:
    base = (reviews, "--model", tiny_model("bert"), "--steps", 1, "--json")
    return {
        "search-verbalizer": ("search-verbalizer", *base, "--search", "lm-bff", "--pattern", "it-was",
                              "-o", "search.top=4", "--rerank", 3),
        "search-template": ("search-template", *base, "--keep", 3, "-o", "template-search.beam=3",
                            "-o", "left=1", "-o", "right=0", "-o", "candidates=9", "--rerank"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["search-verbalizer", "search-template"])
def test_ctrl_c_says_how_to_go_on(
    command: Command, searches: Any, trainings: Trainings, name: str
) -> None:
    args, run = searches[name], f"runs/movie-reviews-{name}-13"
    written = "verbalizer.json" if name == "search-verbalizer" else "found-templates"
    trainings.anew(2)
    ran = command(*args)
    assert (ran.code, ran.out) == (130, "")
    assert f"kept in {run}: go on with the same command and --resume." in ran.err
    assert not Path(written).exists()
    trainings.anew()
    ran = command(*args)
    assert ran.code == 2 and f"A run was begun in {run}" in ran.err
    ran = command(*args, "--resume", "--steps", 2)
    assert ran.code == 2 and "begun with other options: 'settings.steps'" in ran.err
    resumed = command(*args, "--resume")
    assert resumed.json.pop("run") == run and len(trainings) == 1
    whole = command(*args, "--run", "whole", "--output", "other.json")
    made, other = resumed.json, whole.json
    for figures in (made, other):
        del figures["output"], figures["run"]
    assert made == other and len(trainings) == 1 + 3
    # What has ended is written again, from what was tuned.
    assert command(*args, "--resume").code == 0 and len(trainings) == 1 + 3


@pytest.mark.parametrize("name", ["search-verbalizer", "search-template"])
def test_options_of_tunings_without_one(command: Command, searches: Any, name: str) -> None:
    args = searches[name][: searches[name].index("--rerank")]
    for flag in (("--run", "mine"), ("--resume",)):
        ran = command(*args, *flag)
        assert ran.code == 2 and f"{flag[0]} is for the tunings of --rerank" in " ".join(
            ran.err.replace("│", " ").split()
        )
    assert not Path("mine").exists()


@pytest.mark.parametrize("name", ["search-verbalizer", "search-template"])
def test_a_search_that_fails_begins_no_run(command: Command, searches: Any, name: str) -> None:
    wrong = ("--search", "petal") if name == "search-verbalizer" else ("-o", "left=0")
    assert command(*searches[name], *wrong).code == 2
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["search-verbalizer", "search-template"])
def test_rows_that_should_be_apart(
    command: Command, searches: Any, reviews: Path, name: str
) -> None:
    args = searches[name][: searches[name].index("--rerank")]
    ran = command(*args, "--dev", reviews / "train.csv")
    assert ran.code == 0 and "32 of 32 dev rows are training rows too" in ran.err
    assert "training rows too" not in command(*args, "--output", "other").err
