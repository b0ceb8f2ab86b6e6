"""Each calibration equals its formula, worked out by hand, and forgets the batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.model import PromptModel
from promptforge.plugins import build
from promptforge.task import Pattern, Task
from promptforge.template import Mask, Prompt, Template, Text
from tests import adding, reference, tiny

ROWS = [{"text": t} for t in ("Great fun.", "a long and tedious film", "dull", "", "good")]
SOURCE = "{{ text }} It was {{ mask }}"
each = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)


def words(backbone: Any) -> dict[str, list[str]]:
    a, b, c, d = reference.some_words(backbone, 4)
    return {"x": [a], "y": [b, c], "z": [d, reference.long_word(backbone, 2)]}


def model(
    architecture: str, calibration: Any, premise: str | None = None, source: str = SOURCE
) -> PromptModel:
    backbone = tiny.backbone(architecture)
    pattern = Pattern("p", Template(source, name="p"), premise=premise)
    task = Task("t", words(backbone), {"p": pattern}, ("text",))
    return PromptModel(backbone, task, calibration=calibration)


def log_score(architecture: str, prompt: Prompt) -> list[float]:
    """Mean log-probability of each label's words: not normalised over the classes."""
    backbone = tiny.backbone(architecture)
    encoded: Encoded = backbone.encode([prompt])[0]
    out = []
    for label_words in words(backbone).values():
        ids = [backbone.text.word(w, space_before=True) for w in label_words]
        out.append(sum(reference.word_score(backbone, encoded, s) for s in ids) / len(ids))
    return out


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(s - max(scores)) for s in scores)
    return [math.exp(s - max(scores)) / total for s in scores]


def rendered(text: str) -> Prompt:
    return Template(SOURCE).render({"text": text})


def check(found: PromptModel, expected: list[list[float]]) -> None:
    assert found.predict_proba(ROWS) == pytest.approx(torch.tensor(expected).numpy(), abs=1e-5)
    alone = [found.predict_proba([row])[0].tolist() for row in ROWS]
    assert alone == [pytest.approx(row, abs=1e-5) for row in expected]


@each
def test_contextual_divides_by_what_is_said_of_no_content(architecture: str) -> None:
    free = [softmax(log_score(architecture, rendered(t))) for t in ("N/A", "", "[MASK]")]
    mean = [sum(p) / 3 for p in zip(*free, strict=True)]
    expected = []
    for row in ROWS:
        p = softmax(log_score(architecture, rendered(row["text"])))
        ratio = [a / b for a, b in zip(p, mean, strict=True)]
        expected.append([r / sum(ratio) for r in ratio])
    check(model(architecture, "contextual"), expected)
    by_row = SOURCE.replace("{{ text }}", '{{ row["text"] }}')
    assert by_row != SOURCE
    check(model(architecture, "contextual", source=by_row), expected)


@each
@pytest.mark.parametrize("premise", [None, "The review is"])
def test_pmi_subtracts_the_premise(architecture: str, premise: str | None) -> None:
    prompt = rendered("") if premise is None else Prompt((Text(f"{premise} "), Mask()))
    base = log_score(architecture, prompt)
    expected = [
        softmax([a - b for a, b in zip(log_score(architecture, rendered(r["text"])), base, strict=True)])
        for r in ROWS
    ]  # fmt: skip
    check(model(architecture, "pmi-dc", premise), expected)
    if premise:  # the option comes before the pattern's own
        check(model(architecture, build("calibration", "pmi-dc", premise=premise), "No"), expected)


@each
def test_batch_subtracts_the_mean_of_the_calibration_rows(architecture: str) -> None:
    rows = [{"text": t} for t in tiny.corpus()[:6]]
    made = model(architecture, "batch")
    with pytest.raises(UserError, match="calibrate"):
        made.predict(ROWS)
    made.calibrate(rows)
    # Rendered rows can be too long for the model: it is asked as it sees them.
    scores = []
    for row in rows:
        encoded = made.encode("p", [rendered(row["text"])])[0]
        backbone = tiny.backbone(architecture)
        scores.append(softmax([
            sum(reference.word_score(backbone, encoded, backbone.text.word(w, space_before=True)) for w in ws) / len(ws)
            for ws in words(backbone).values()
        ]))  # fmt: skip
    mean = [sum(p) / len(rows) for p in zip(*scores, strict=True)]
    expected = []
    for row in ROWS:
        p = softmax(log_score(architecture, rendered(row["text"])))
        ratio = [a / b for a, b in zip(p, mean, strict=True)]
        expected.append([r / sum(ratio) for r in ratio])
    check(made, expected)


def test_a_label_that_is_always_said_loses_its_advantage() -> None:
    scores = torch.tensor([[1.5, 1.0], [3.0, 1.0], [1.2, 1.0]])
    batch = build("calibration", "batch")
    batch.fit(None, (), None, None, scores)
    applied = batch.apply(scores)
    assert applied.argmax(1).tolist() == [1, 0, 1]
    mean = scores.double().softmax(-1).mean(0)
    torch.testing.assert_close(applied, scores.double().log_softmax(-1) - mean.log())
    torch.testing.assert_close(batch.apply(scores[:1]), applied[:1])


@pytest.mark.parametrize("name", ["contextual", "pmi-dc"])
def test_a_column_that_holds_more_than_a_text(name: str) -> None:
    made = model("bert", name, source="{{ text.inner }} It was {{ mask }}")
    with pytest.raises(
        UserError, match=f"calibration '{name}' puts .* in place of every column.*'batch'"
    ):
        made.predict_proba([{"text": {"inner": "a film"}}])
    with pytest.raises(UserError, match="at least 1 item"):
        build("calibration", "contextual", inputs=[])


def test_only_a_model_with_a_calibration_is_calibrated() -> None:
    with pytest.raises(UserError, match="no calibration to fit"):
        model("bert", None).calibrate(ROWS)
    with pytest.raises(UserError, match="contextual"):
        model("bert", "contextal")


@pytest.mark.parametrize("architecture", ["roberta", "gpt2", "bart"])
def test_calibrating_first_changes_nothing_that_needs_no_rows(architecture: str) -> None:
    """The premise ends in a space and the template's mask stands after none."""
    source = "{{ text }} ({{ mask }}"
    plain, called = (model(architecture, "pmi-dc", "The review is", source) for _ in range(2))
    called.calibrate(ROWS)
    assert called.predict_proba(ROWS) == pytest.approx(plain.predict_proba(ROWS), abs=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_the_premise_is_read_with_the_models_own_soft_prompt(architecture: str) -> None:
    backbone = tiny.fresh(architecture)
    tuner = adding.tuner(backbone, "prompt-tuning")
    tuned = adding.trained(tuner)
    made = PromptModel(
        backbone, tuned.task, weights=tuned.weights, calibration=build("calibration", "pmi-dc", premise="It is"),
    )  # fmt: skip
    rows = [e.row for e in tuner.train]
    read: list[Encoded] = []
    encode = made.encode

    def noted(pattern: str, prompts: Sequence[Prompt]) -> list[Encoded]:
        read.extend(found := encode(pattern, prompts))
        return found

    made.encode = noted  # type: ignore[method-assign]
    made.predict_proba(rows)
    assert made.weights is not None and len(read) == len(rows) + 1
    assert len({len(e.soft) for e in read}) == 1 and read[0].soft
