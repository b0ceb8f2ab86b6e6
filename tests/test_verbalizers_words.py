"""Knowledgeable and generation verbalizers against plain references."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from promptforge import Example, Settings
from promptforge.candidates import whole_words
from promptforge.errors import UserError
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.task import Task
from promptforge.template import Template, TemplateError
from promptforge.tuning.tuner import Tuner
from tests import reference, tiny
from tests.verbalizing import (
    ROWS,
    SOURCE,
    Words,
    again,
    bound,
    close,
    each,
    model,
    readout,
    scores,
    some_words,
    targets,
    tuned,
)

# --- knowledgeable -------------------------------------------------------------------------


class Told:
    """A readout whose words' probabilities are told, [prompts, words]."""

    def __init__(self, backbone: Any, p: Sequence[Sequence[float]]) -> None:
        self.backbone, self.p = backbone, torch.tensor(p)

    def __len__(self) -> int:
        return len(self.p)

    def score(self, *_: Any, **__: Any) -> Tensor:
        return self.p.log()


P = [[0.4, 0.2, 0.001, 0.1, 0.05], [0.1, 0.06, 0.001, 0.3, 0.04]]  # a1 a2 a3 b1 b2


def knowledgeable(**options: Any) -> tuple[Any, Any, list[str]]:
    backbone = tiny.backbone("bert")
    words = reference.some_words(backbone, 5)
    made = bound("knowledgeable", backbone, {"a": words[:3], "b": words[3:]}, **options)
    return made, Told(backbone, P), words


def test_words_below_the_prior_cut_are_dropped() -> None:
    # Means over the two rows: .25, .13, .001, .2, .045.
    for cut, kept in [(0.01, "aab b"), (0.05, "aab"), (0.2, "ab"), (0.9, "ab")]:
        made, told, words = knowledgeable(prior_cut=cut, relevance=False)
        made.fit(told)
        of_a, of_b = kept.count("a"), kept.count("b")
        assert made.kept_words == {"a": words[:of_a], "b": words[3 : 3 + of_b]}
    made, told, words = knowledgeable(relevance=False)  # by default 1 / 1200
    made.fit(told)
    assert made.kept_words == {"a": words[:3], "b": words[3:]}


def test_words_nearer_to_another_label_are_dropped() -> None:
    # b2 = (.05, .04): cosine .909 with a1 = (.4, .1), .840 with its own b1 = (.1, .3).
    # a3 = (1, 1)/1000: .857 with a1, .894 with b1. a2 = (.2, .06): .999 and .575.
    made, told, words = knowledgeable(prior_cut=0)
    made.fit(told)
    assert made.kept_words == {"a": words[:2], "b": words[3:4]}


def test_calibration_and_weights_by_hand() -> None:
    made, told, _ = knowledgeable(prior_cut=0.01, combine="probabilities")
    before = scores(made, told)  # type: ignore[arg-type]
    close(before.exp(), [[0.601 / 3 / 0.751, 0.15 / 2 / 0.751], [0.161 / 3 / 0.501, 0.34 / 2 / 0.501]])  # fmt: skip
    made.fit(told)
    # Kept: a1, a2, b1; divided by their means .25, .13, .2 and normalised over the three words.
    a1, a2, b1 = 0.4 / 0.25, 0.2 / 0.13, 0.1 / 0.2
    total = a1 + a2 + b1
    found = scores(made, told)[0]  # type: ignore[arg-type]
    close(found.exp(), [(a1 + a2) / 2 / total, b1 / total])
    with torch.no_grad():
        made.parameters()["weights"][0] = math.log(3)  # weights 3/4 and 1/4
    found = scores(made, told)[0]  # type: ignore[arg-type]
    close(found.exp(), [(3 * a1 + a2) / 4 / total, b1 / total])
    made.combine = "log-probabilities"
    found = scores(made, told)[0]  # type: ignore[arg-type]
    close(found, [0.75 * math.log(a1 / total) + 0.25 * math.log(a2 / total), math.log(b1 / total)])
    plain, told, _ = knowledgeable(prior_cut=0.01, calibrate=False)
    plain.fit(told)
    assert plain.parameters()["log_prior"].abs().max() == 0
    found = scores(plain, told)[0]  # type: ignore[arg-type]
    close(found, [(math.log(0.4) + math.log(0.2)) / 2 - math.log(0.7), math.log(0.1 / 0.7)])


@each
def test_knowledgeable_scores_and_fit_on_a_model(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    words, read = some_words(backbone), readout(backbone)
    made = bound("knowledgeable", backbone, words, prior_cut=0, relevance=False)
    close(
        scores(made, read).softmax(-1), scores(bound("manual", backbone, words), read).softmax(-1)
    )
    made.fit(read)
    ids = [s[0] for ss in made.sequences.values() for s in ss]
    p = torch.stack(
        [reference.full_logits(backbone, e)[e.reads[0]].softmax(-1)[ids] for e in read.encoded]
    )
    close(made.parameters()["log_prior"], p.mean(0).log())
    divided = p / p.mean(0)
    of_words = (divided / divided.sum(1, keepdim=True)).log()
    close(
        scores(made, read), torch.stack([part.mean(1) for part in of_words.split([2, 1, 3], 1)], 1)
    )
    assert made.tokens_read() == ids


@pytest.mark.parametrize("space", ["input", "output"])
def test_neighbours_are_the_nearest_whole_words(space: str) -> None:
    backbone = tiny.backbone("bart")
    a, b, c = reference.some_words(backbone, 3)
    made = bound("knowledgeable", backbone, {"x": [a, b], "y": [c]}, neighbours=4, space=space)
    table = (
        backbone.model.get_input_embeddings()
        if space == "input"
        else backbone.model.get_output_embeddings()
    ).weight.detach()

    def vector(word: str) -> Tensor:
        (token,) = backbone.text.word(word, space_before=True)
        return table[token] / table[token].norm()

    centres = {"x": (vector(a) + vector(b)) / 2, "y": vector(c)}
    pool = [w for w in whole_words(backbone, space_before=True).words if w not in (a, b, c)]
    near = {
        w: {k: float(cosine_similarity(vector(w), v, dim=0)) for k, v in centres.items()}
        for w in pool
    }
    for label, own in (("x", [a, b]), ("y", [c])):
        mine = [w for w in pool if max(near[w], key=lambda k: near[w][k]) == label]
        best = sorted(mine, key=lambda w: -near[w][label])[:4]
        assert made.words[label] == [*own, *best]


def test_neighbours_by_sentence_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    from promptforge import embeddings

    backbone = tiny.backbone("bert")
    a, b, c, d = reference.some_words(backbone, 4)
    known = {a: [1.0, 0.0], b: [0.0, 1.0], c: [0.8, 0.6], d: [0.0, 1.0]}
    monkeypatch.setattr(
        embeddings.SentenceEncoder, "encode",
        lambda self, texts: torch.tensor([known.get(t, [-0.6, -0.8]) for t in texts]).numpy(),
    )  # fmt: skip
    made = bound("knowledgeable", backbone, {"x": [a], "y": [b]}, neighbours=1, space="minilm")
    assert made.words == {"x": [a, c], "y": [b, d]}


def test_a_words_file_becomes_an_option(tmp_path: Path) -> None:
    backbone = tiny.backbone("bert")
    a, b, c, d = reference.some_words(backbone, 4)
    long = reference.long_word(backbone, 2)
    lines, table = tmp_path / "words.txt", tmp_path / "words.json"
    lines.write_text(f"x: {c}, {long}, {a}\n\ny: {d}\n", encoding="utf-8")
    table.write_text(json.dumps({"x": [c, long, a], "y": [d]}), encoding="utf-8")
    for path in (lines, table):
        made = bound("knowledgeable", backbone, {"x": [a], "y": [b]}, words_file=str(path))
        assert made.words == {"x": [a, c], "y": [b, d]}
        assert made.words_file is None and made.more == {"x": [c, long, a], "y": [d]}
        more = {"x": [d]}  # beside the file's
        made = build("verbalizer", "knowledgeable", words_file=str(path), more=more)
        assert made.more == {"x": [c, long, a, d], "y": [d]}
    with pytest.raises(UserError, match=r"words file .*missing\.txt cannot be read"):
        build("verbalizer", "knowledgeable", words_file=str(tmp_path / "missing.txt"))
    lines.write_text("no colon", encoding="utf-8")
    with pytest.raises(UserError, match="line 1: write"):
        build("verbalizer", "knowledgeable", words_file=str(lines))
    with pytest.raises(UserError, match="'z', which is no label"):
        bound("knowledgeable", backbone, {"x": [a], "y": [b]}, more={"z": [c]})


def test_knowledgeable_is_fitted_tuned_and_comes_back(tmp_path: Path) -> None:
    backbone = tiny.backbone("modernbert")
    words = some_words(backbone)
    made = model(backbone, words, "knowledgeable", neighbours=3, prior_cut=1e-4)
    plain = made.predict_proba(ROWS)
    made.calibrate(ROWS)
    assert abs(made.predict_proba(ROWS) - plain).max() > 1e-3
    loaded = again(made, tmp_path, ROWS)
    of = [m.verbalizer("p", readout(backbone).encoded[0]).kept_words for m in (made, loaded)]
    assert of[0] == of[1] and sum(map(len, of[0].values())) < 6 + 9
    trained = tuned(backbone, made.task, build("verbalizer", "knowledgeable", neighbours=3))
    assert trained.tuned["p"]["weights"].abs().max() > 1e-3
    assert bool((trained.tuned["p"]["kept"] == 1).all())
    again(trained, tmp_path, ROWS)


def test_what_was_tuned_after_fitting_is_what_predicts(tmp_path: Path) -> None:
    """Fitting on unlabelled rows reads them with the untrained model; nothing of that stays."""
    backbone = tiny.backbone("bert")
    task = model(backbone, some_words(backbone), "manual").task
    train = [Example({"text": r["text"]}, "abca"[i], i + 1) for i, r in enumerate(ROWS)]
    tuner = Tuner(
        backbone, task, train, unlabeled=ROWS,
        settings=Settings(steps=6, batch_size=4, learning_rate=1e-2, precision="float32"),
        verbalizer=build("verbalizer", "knowledgeable", neighbours=3),
    )  # fmt: skip
    made = build("strategy", "prompt").train(tuner)
    got = made.verbalizer("p", made.read("p", ROWS).encoded[0]).parameters()["weights"]
    assert got.abs().max() > 1e-3 and torch.equal(got, made.tuned["p"]["weights"])
    again(made, tmp_path, ROWS)


def test_a_model_with_nothing_to_fit_says_so() -> None:
    backbone = tiny.backbone("bert")
    with pytest.raises(UserError, match="no calibration to fit"):
        model(backbone, some_words(backbone), "manual").calibrate(ROWS)


# --- generation ----------------------------------------------------------------------------

CHOICES = [
    {"text": "Great fun.", "left": "a very good film", "right": "dull"},
    {"text": "Too long", "left": "one of the worst", "right": "a good one"},
    {"text": "It has claws", "left": "dull", "right": "a very good film"},
]
BY_ROW: Words = {"x": ["{{ left }}"], "y": ["not {{ right | upper }}", "fine"]}


def texts_of(row: Mapping[str, str]) -> dict[str, list[str]]:
    return {"x": [row["left"]], "y": [f"not {row['right'].upper()}", "fine"]}


@each
@pytest.mark.parametrize("length_normalised", [False, True])
def test_label_texts_of_each_row_are_scored(architecture: str, length_normalised: bool) -> None:
    backbone = tiny.backbone(architecture)
    made = model(backbone, BY_ROW, "generation", length_normalised=length_normalised)
    read = made.read("p", CHOICES)
    found = made.class_scores("p", read)
    for r, (row, encoded) in enumerate(zip(CHOICES, read.encoded, strict=True)):
        for column, texts in enumerate(texts_of(row).values()):
            total = 0.0
            for text in texts:
                ids = backbone.text.word(text, space_before=encoded.slots[0].space_before)
                score = reference.word_score(backbone, encoded, ids)
                total += score / (len(ids) if length_normalised else 1)
            assert float(found[r, column]) == pytest.approx(total / len(texts), abs=1e-4)
    one = made.class_scores("p", made.read("p", CHOICES[1:2]))
    close(one[0], found[1])


@pytest.mark.parametrize("architecture", [*tiny.CAUSAL, *tiny.SEQ2SEQ])
def test_what_is_written_is_compared(architecture: str) -> None:
    from promptforge_verbalizers.generation import likeness

    backbone = tiny.backbone(architecture)
    made = model(backbone, BY_ROW, "generation", method="generate", sharpness=5)
    read = made.read("p", CHOICES)
    found = made.class_scores("p", read)
    for r, (row, encoded) in enumerate(zip(CHOICES, read.encoded, strict=True)):
        texts = texts_of(row)
        space = encoded.slots[0].space_before
        longest = max(
            len(backbone.text.word(t, space_before=space)) for ts in texts.values() for t in ts
        )
        written: list[int] = []
        while len(written) < longest:
            if backbone.family == "causal":
                whole = reference.full_logits(
                    backbone, encoded.__class__((*encoded.ids, *written), (), ())
                )
            else:
                whole = reference.full_logits(backbone, encoded, [*encoded.decoder_ids, *written])
            token = int(whole[-1].argmax())
            if token == backbone.tokenizer.eos_token_id:
                break
            written.append(token)
        out = backbone.tokenizer.decode(written, skip_special_tokens=True)
        expected = [5 * max(likeness(out, t) for t in ts) for ts in texts.values()]
        close(found[r], expected)


def test_likeness_prefers_what_fits_and_then_what_is_longer() -> None:
    from promptforge_verbalizers.generation import likeness

    assert likeness("A Good film, I think", "good film") < likeness("Good  film, I", "good film")
    assert likeness("good film of", "good film") > likeness("good film of", "good") > 1
    assert likeness("dull", "good") < 0.5


def test_generation_trains_on_texts_and_comes_back(tmp_path: Path) -> None:
    backbone = tiny.backbone("gpt2")
    words: Words = {"a": ["a very good film"], "b": ["dull"]}
    read = readout(backbone, gradients=True)
    made = bound("generation", backbone, words)
    shares, ones = targets(0, 1, 0, 1, classes=2)
    posterior = scores(made, readout(backbone)).log_softmax(-1)
    close(made.loss(read, shares, ones), -(shares * posterior).sum(1))
    assert made.loss(read, shares, ones).requires_grad
    again(model(backbone, BY_ROW, "generation"), tmp_path, CHOICES)


def test_generation_refuses_what_it_cannot_do() -> None:
    gpt2 = tiny.backbone("gpt2")
    with pytest.raises(UserError, match="does not write"):
        model(tiny.backbone("bert"), BY_ROW, "generation", method="generate").predict(CHOICES)
    with pytest.raises(UserError, match=r"label x.* is empty in row 2"):
        model(gpt2, BY_ROW, "generation").predict([CHOICES[0], {**CHOICES[1], "left": " "}])
    with pytest.raises(TemplateError, match="'wrong' is undefined"):
        model(gpt2, {"x": ["{{ wrong }}"], "y": ["a"]}, "generation").predict(CHOICES)
    with pytest.raises(UserError, match="have the same words"):
        model(gpt2, {"x": ["{{ left }}"], "y": ["{{ left }}"]}, "generation").predict(CHOICES)
    long = {**CHOICES[0], "text": "good " * 80, "left": "film " * 30}
    source = "{{ text | truncate_here }} It was {{ mask }}"
    with (
        pytest.warns(UserWarning, match="were cut"),
        pytest.raises(UserError, match=r"Row 1 .* reserve=\d+ or more"),
    ):
        model(gpt2, BY_ROW, "generation", source).predict([long])
    with pytest.warns(UserWarning, match="were cut"):
        model(gpt2, BY_ROW, "generation", source, reserve=40).predict([long])
    task = Task.inline([Template(SOURCE, name="p")], labels=BY_ROW)
    with pytest.raises(UserError, match="no rows are known here"):
        PromptModel(gpt2, task, verbalizer="generation", calibration="contextual").predict(CHOICES)
