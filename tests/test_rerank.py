"""LM-BFF's strategy, and ranking by tuning, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from promptforge_verbalizers.manual import ManualVerbalizer

from promptforge import PromptModel, Settings, Task, UserError, search_template, search_verbalizer
from promptforge.plugins import build
from promptforge.tuning.rerank import rerank_words, template_rank
from promptforge.tuning.tuner import Tuner, dev_score

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
    assert dev_score(again, made.dev) == pytest.approx(scores[0])
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
        rank=template_rank(made),
    )
    scores = [f.tuned for f in found]
    assert scores == sorted(scores, reverse=True)
    model = lm_bff(templates=2, beam=3, demonstrate=False).train(made)
    assert model.task.patterns.keys() <= {"found-1", "found-2"}
    model = lm_bff(assignments=2, top=4).train(made)
    assert list(model.task.patterns) == ["it-was"]
    with pytest.raises(UserError, match="candidates to rank"):
        lm_bff(assignments=2, top=4).train(made.with_(dev=[]))


def test_commands(command: Command, tiny_model: Folder, reviews: Path) -> None:
    base = (reviews, "--model", tiny_model("bert"), "--steps", "1")
    words = command("search-verbalizer", *base, "--search", "lm-bff", "--rerank", "2", "--shots", "4",
                    "--pattern", "it-was", "-o", "search.top=4", "--json")  # fmt: skip
    assert len(words.json["verbalizer"]["origin"]["reranked"]["it-was"]) == 2
    found = command("search-template", *base, "--keep", "2", "--rerank", "--shots", "4", "--json",
                    "-o", "template-search.beam=2", "-o", "left=1", "-o", "right=0")  # fmt: skip
    assert all(t["tuned"] is not None for t in found.json["templates"])
    trained = command("train", *base, "--strategy", "lm-bff", "--shots", "4", "--pattern", "it-was",
                      "--samples", "2", "-o", "strategy.filter=false", "--json")  # fmt: skip
    assert trained.json["results"]["test"]["tuned"]
    ran = command("evaluate", trained.json["run"], "--data", reviews / "test.csv", "--json")
    assert ran.json == dict(trained.json["results"]["test"]["tuned"].items())
