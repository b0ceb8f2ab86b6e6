"""What needs the model again: top words at the mask, label words' probabilities, what was cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from promptforge.data import Example
from promptforge.multilabel import LABEL
from promptforge.progress import Reporter
from promptforge.tuning.predictions import predictions
from promptforge_report.figures import hardest, judged
from promptforge_report.prompts import Rendered, pieces
from promptforge_report.records import Record

if TYPE_CHECKING:
    from promptforge.classifier import Classifier
    from promptforge.model import PromptModel

#: Words shown at a mask, and rows shown of each pattern.
TOP, SHOWN = 5, 2


@dataclass(frozen=True)
class Word:
    """A label word at the mask.

    Attributes:
        probability: label of the rows -> mean probability that the model writes the word, 0 to 1.
    """

    label: str
    word: str
    probability: Mapping[str, float]


@dataclass
class Reread:
    """What a loaded model adds to a report.

    Attributes:
        prompts: as the model reads them, demonstrations and all.
        words: pattern -> its label words.
        top: (split, number of a row) -> pattern -> most likely words and their probabilities.
        rows: how many rows `words` are of.
        why: what could not be read, and why.
    """

    prompts: list[Rendered] = field(default_factory=list)
    words: dict[str, list[Word]] = field(default_factory=dict)
    top: dict[tuple[str, int], dict[str, list[tuple[str, float]]]] = field(default_factory=dict)
    rows: int = 0
    why: str = ""


def reread(
    record: Record,
    most: int,
    *,
    examples: Sequence[Example] = (),
    device: str = "cpu",
    report: Reporter | None = None,
) -> Reread:
    """Load a run's model and read rows again.

    Args:
        record: where `examples` are given, figures and predictions of them are added to it, as
            the split "data".
        most: rows: that many of the hardest, and as many others.

    Raises:
        UserError, PromptForgeError: as `promptforge.artifact.load`.
    """
    from promptforge.artifact import load

    report = report or Reporter()
    assert record.task is not None and record.results is not None
    report.note(f"Loading the model of {record.path}")
    classifier = load(record.path, report=report, device=device)
    if examples:
        kept: dict[str, Any] = {}
        found = classifier.evaluate(examples, "Reading --data", keep=kept)
        record.results.results["data"] = {"tuned": {n: e.to_json() for n, e in found.items()}}
        record.predictions = predictions(record.task, "data", examples, {"tuned": kept})
    models = _prompt_models(classifier)
    said = record.said
    if not models:
        return Reread(
            why="What was tuned is a classification head: it reads whole texts, and has neither masks nor label words."
        )
    if not said:
        return Reread(why="The run kept no rows: name labelled ones with --data FILE.")
    out = Reread()
    hard = hardest(judged(record), most)
    places = np.unique(np.linspace(0, len(said) - 1, min(most, len(said))).astype(int))
    spread = [said[i] for i in places]
    out.rows = len(spread)
    asked = record.task.multi_label
    steps = len(models) * (len(hard) + len(spread))
    with report.meter(f"Reading rows of {record.path.name} again", steps) as meter:
        for name, model in models.items():
            model.report, model.warn_cuts = Reporter(), False  # one meter for all of it
            for row in hard:
                given = {**row.prediction.row, LABEL: row.label} if asked else row.prediction.row
                key = (row.prediction.split, row.prediction.number)
                for pattern, filled in model.fill(given, TOP).items():
                    words = [(f.word, f.probability) for f in filled[0]]
                    out.top.setdefault(key, {})[_called(name, pattern, models)] = words
                meter.advance()
            rows = [{**p.row, LABEL: asked.labels[0]} if asked else p.row for p in spread]
            truths = [p.truth if isinstance(p.truth, str) else "all rows" for p in spread]
            for pattern in model.task.patterns:
                title = _called(name, pattern, models)
                found_words = _words(model, pattern, rows, truths)
                if found_words:
                    out.words[title] = found_words
                for prediction, row_ in list(zip(spread, rows, strict=True))[:SHOWN]:
                    out.prompts.append(_rendered(model, pattern, title, prediction.number, row_))
            meter.advance(len(spread))
    return out


def _prompt_models(classifier: Classifier, name: str = "") -> dict[str, PromptModel]:
    """The models with masks in a classifier, by the member's name."""
    from promptforge.exits.model import ExitModel
    from promptforge.model import PromptModel
    from promptforge.multilabel import MultiLabelModel
    from promptforge.tuning.members import Ensemble

    if isinstance(classifier, MultiLabelModel):
        return _prompt_models(classifier.binary, name)
    if isinstance(classifier, ExitModel):
        return _prompt_models(classifier.plain, name)
    if isinstance(classifier, Ensemble):
        return {
            k: v for n, m in classifier.members.items() for k, v in _prompt_models(m, n).items()
        }
    return {name: classifier} if isinstance(classifier, PromptModel) else {}


def _called(name: str, pattern: str, models: Mapping[str, Any]) -> str:
    return f"{name}, {pattern}" if len(models) > 1 and name != pattern else pattern


def _words(
    model: PromptModel, pattern: str, rows: Sequence[Mapping[str, Any]], truths: Sequence[str]
) -> list[Word]:
    """The mean probability of each label word, by the rows' labels; none without words as tokens."""
    import torch

    readout = model.read(pattern, rows)
    verbalizer = model.verbalizer(pattern, readout.encoded[0])
    if not verbalizer.sequences:
        return []
    with torch.inference_mode():
        scores = verbalizer.word_scores(readout)
    here = {truth: [i for i, t in enumerate(truths) if t == truth] for truth in sorted(set(truths))}
    out = []
    for label, words in verbalizer.words.items():
        p = scores[label].double().exp().cpu().numpy()
        for i, word in enumerate(words):
            out.append(Word(label, word, {t: float(p[at, i].mean()) for t, at in here.items()}))
    return out


def _rendered(
    model: PromptModel, pattern: str, title: str, number: int, row: Mapping[str, Any]
) -> Rendered:
    prompt = model.prompt(pattern, row)
    bare = model.task.patterns[pattern].template.render(
        row, labels=list(model.labels), words=model.task.words_for(pattern)
    )
    encoded = model.encode(pattern, [prompt])[0]
    shown = pieces(prompt, model.task, bare if model.demonstrations else None)
    return Rendered(title, number, shown, encoded.cut, len(encoded.ids))
