"""The rows of the few-shot table: how each method makes a classifier from one draw of rows.

Used by few_shot.py. A training is known by all that decides what it becomes, not by the row that
asked for it: PET, iPET, the ensemble and prompt-based fine-tuning share the trainings they have
in common, and none is made twice.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from few_shot_draw import Draw

from promptforge import Backbone, Evaluation, Settings, Strategy, Task, load_model
from promptforge.classifier import ENSEMBLE, Classifier
from promptforge.data import Example
from promptforge.embeddings import SentenceEncoder
from promptforge.models import locate
from promptforge.plugins import build
from promptforge.progress import TerminalReporter
from promptforge.search import search_verbalizer
from promptforge.tuning.tuner import Member, Tuner

PEER = Path(__file__).parent / "peers" / "setfit_few_shot.py"

#: Trainings that only one row makes: final models, and iPET's models after the first generation.
_OWN = re.compile(r"final|g[1-9]\d*-.+")


@dataclass
class SharedTuner(Tuner):
    """A tuner whose folder knows trainings by what decides them, not by their names.

    Attributes:
        saved: folder of a member -> seconds that it took when another row trained it.
        kept: identity -> a member that this task and seed has; its rows share them.
    """

    saved: dict[str, float] = field(default_factory=dict)
    kept: dict[str, Classifier] = field(default_factory=dict)

    def member(self, member: Member) -> Classifier:
        """Train a member, or read it and note what it took."""
        made = self._member(member)
        # One that was read keeps what it said of the unlabelled and the test rows.
        return self.kept.setdefault(self.identity(member), made)

    def _member(self, member: Member) -> Classifier:
        home = self._home(member)
        assert home is not None
        note = home.with_name("seconds.txt")
        known = note.is_file()
        began = time.perf_counter()
        made = super().member(member)
        if known:
            self.saved[str(home)] = float(note.read_text(encoding="utf-8"))
        else:
            note.write_text(str(time.perf_counter() - began), encoding="utf-8")
        return made

    def _home(self, member: Member) -> Path | None:
        assert self.folder is not None
        part = "own" if _OWN.fullmatch(member.name) else "shared"
        return self.folder / part / self.identity(member) / "member"


class Bench:
    """Loads what rows need, once, and makes them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.report = TerminalReporter(quiet=not args.verbose)
        self._kept: tuple[Path, dict[str, Classifier]] = (Path(), {})

    def kept(self, draw: Draw) -> dict[str, Classifier]:
        """The members of a draw."""
        if self._kept[0] != draw.folder:
            self._kept = (draw.folder, {})
        return self._kept[1]

    @cached_property
    def backbone(self) -> Backbone:
        """The language model."""
        return load_model(self.args.model, device=self.args.device, report=self.report)

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The sentence encoder of logistic regression."""
        return SentenceEncoder(self.args.encoder, device=self.args.device, report=self.report)

    def tuned(
        self, strategy: Strategy, draw: Draw, task: Task | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Train a strategy and measure it."""
        return self.trained(strategy, draw, task, **changes)[0]

    def trained(
        self,
        strategy: Strategy,
        draw: Draw,
        task: Task | None = None,
        rates: list[float] | None = None,
        **changes: Any,
    ) -> tuple[dict[str, Any], Classifier]:
        """Train a strategy with other learning rates than the table's, and measure it."""
        args = self.args
        tuner = SharedTuner(
            backbone=self.backbone,
            task=task or draw.one,
            train=draw.train,
            dev=draw.dev,
            unlabeled=draw.unlabeled if strategy.needs_unlabeled else [],
            settings=Settings.of(
                steps=args.steps,
                learning_rate=rates or args.learning_rates,
                batch_size=args.batch_sizes,
                patience=args.patience,
                precision=args.precision,
            ),
            seed=draw.seed,
            folder=draw.folder,
            report=self.report,
            kept=self.kept(draw),
            **changes,
        )
        began = time.perf_counter()
        classifier = strategy.train(tuner)
        # What other rows had trained already is counted as if this one had.
        seconds = time.perf_counter() - began + sum(tuner.saved.values())
        with tuner.precision.computing():
            parts, dev = figures(classifier, draw.test), figures(classifier, draw.dev)
        whole = parts.pop(ENSEMBLE, None) or next(iter(parts.values()))
        cell = {
            "accuracy": whole.accuracy,
            "macro_f1": whole.macro_f1,
            "dev": (dev.get(ENSEMBLE) or next(iter(dev.values()))).accuracy,
            "parts": {name: part.accuracy for name, part in parts.items()},
            "seconds": seconds,
            "computed_in": "bfloat16" if tuner.precision.half else "float32",
            "trained": {
                name: {"best": t.best, "best_step": t.best_step, "seconds": t.seconds}
                for name, t in tuner.trained.items()
            },
        }
        return cell, classifier

    # --- rows -----------------------------------------------------------------------------

    def majority(self, draw: Draw) -> dict[str, Any]:
        """The share of the test's most frequent label."""
        counts = Counter(e.label for e in draw.test)
        return {"accuracy": max(counts.values()) / len(draw.test)}

    def zero_shot(self, draw: Draw) -> dict[str, Any]:
        """One pattern, no training."""
        return self.tuned(build("strategy", "zero-shot"), draw)

    def zero_shot_all(self, draw: Draw) -> dict[str, Any]:
        """All patterns averaged, no training."""
        return self.tuned(build("strategy", "zero-shot"), draw, draw.task)

    def logistic(self, draw: Draw) -> dict[str, Any]:
        """Logistic regression on frozen sentence embeddings."""
        from sklearn.linear_model import LogisticRegression

        began = time.perf_counter()
        model = LogisticRegression(C=10.0, max_iter=1000)
        model.fit(self.encoder.encode(draw.texts(draw.train)), [e.label for e in draw.train])
        seconds = time.perf_counter() - began

        def score(examples: list[Example]) -> float:
            vectors = self.encoder.encode(draw.texts(examples))
            return float(model.score(vectors, [e.label for e in examples]))

        return {"accuracy": score(draw.test), "dev": score(draw.dev), "seconds": seconds}

    def setfit(self, draw: Draw) -> dict[str, Any]:
        """SetFit in its own environment; the dev rows choose between as many settings."""
        args = self.args
        splits = {"train": draw.train, "dev": draw.dev, "test": draw.test}
        job = {
            "model": locate(args.encoder, self.report),
            "seed": draw.seed,
            "settings": [
                {"body_learning_rate": rate, "batch_size": size}
                for rate in args.learning_rates
                for size in args.setfit_batch_sizes
            ],
            "max_steps": args.setfit_max_steps,
            "device": args.device,
            **{
                split: {"texts": draw.texts(rows), "labels": [e.label for e in rows]}
                for split, rows in splits.items()
            },
        }
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
            command = [args.setfit, str(PEER), str(folder / "job.json"), str(folder / "out.json")]
            shown = None if args.verbose else subprocess.DEVNULL
            done = subprocess.run(command, check=False, stdout=shown, stderr=subprocess.PIPE)
            if done.returncode:
                last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
                raise RuntimeError(f"SetFit ended with {done.returncode}: {' '.join(last)}")
            result: dict[str, Any] = json.loads((folder / "out.json").read_text(encoding="utf-8"))
        return result

    def finetune(self, draw: Draw) -> dict[str, Any]:
        """A classification head on whole texts."""
        return self.tuned(build("strategy", "finetune"), draw)

    def contrastive(self, draw: Draw) -> dict[str, Any]:
        """Summaries of whole texts, tuned by contrast, and logistic regression on them."""
        return self.tuned(build("strategy", "contrastive", model=self.args.encoder), draw)

    def joined(self) -> dict[str, Any]:
        """That encoder, tuned so, as a member of another strategy."""
        return {
            "also": ["contrastive"],
            "also_options": {"contrastive": {"model": self.args.encoder}},
        }

    def prompt(self, draw: Draw) -> dict[str, Any]:
        """One pattern with the task's words."""
        return self.tuned(build("strategy", "prompt"), draw)

    def prompt_chosen(self, draw: Draw) -> dict[str, Any]:
        """The pattern that is best on dev."""
        return self.tuned(build("strategy", "prompt"), draw, draw.task)

    def petal(self, draw: Draw) -> dict[str, Any]:
        """Words by likelihood ratio on the training rows."""
        untrained = SharedTuner(self.backbone, draw.one, draw.train, report=self.report).untrained()
        words = search_verbalizer(
            untrained, draw.train, search="petal", words_per_label=self.args.petal_words
        ).patterns
        made = self.tuned(build("strategy", "prompt"), draw, draw.one.with_words(words))
        return {**made, "words": words[draw.pattern]}

    def lm_bff_words(self, draw: Draw) -> dict[str, Any]:
        """Sets of words by zero-shot accuracy, ranked on dev after tuning."""
        strategy = build("strategy", "lm-bff", demonstrate=False, assignments=self.args.candidates)
        return self.tuned(strategy, draw)

    def soft(self, draw: Draw) -> dict[str, Any]:
        """Trained label vectors in place of words."""
        return self.tuned(build("strategy", "prompt"), draw, verbalizer=build("verbalizer", "soft"))

    def demonstrations(self, draw: Draw, filter_: bool = False) -> dict[str, Any]:
        """One pattern with a row of each label before the text, drawn from all or the likest."""
        strategy = build("strategy", "lm-bff", filter=filter_)
        return self.tuned(strategy, draw, samples=self.args.samples)

    def template(self, draw: Draw) -> dict[str, Any]:
        """Templates that the model writes, ranked on dev after tuning."""
        args = self.args
        strategy = build(
            "strategy", "lm-bff", demonstrate=False, templates=args.candidates, beam=args.beam
        )
        return self.tuned(strategy, draw)

    def ensemble(self, draw: Draw, lora: bool = False, **options: Any) -> dict[str, Any]:
        """Every pattern, tuned several times: PET's members, averaged."""
        strategy = build("strategy", "ensemble", repetitions=self.args.repetitions, **options)
        made = self.tuned(strategy, draw, draw.task, **(self.lora() if lora else {}))
        parts = made["parts"] or {"only": made["accuracy"]}
        return {**made, "members": sum(parts.values()) / len(parts)}

    def lora(self) -> dict[str, Any]:
        """LoRA on every matrix in place of all weights, with as many learning rates."""
        method = build("method", "lora", targets="all")
        own, table = method.learning_rate, self.args.learning_rates
        return {"method": method, "rates": [own * rate / min(table) for rate in table]}

    def pet(
        self, draw: Draw, name: str = "pet", lora: bool = False, **options: Any
    ) -> dict[str, Any]:
        """PET or iPET over all patterns."""
        args = self.args
        table = {
            "repetitions": args.repetitions,
            "final_steps": args.final_steps,
            "final_learning_rate": args.final_learning_rate,
        }
        strategy = build("strategy", name, **{**table, **options})
        return self.tuned(strategy, draw, draw.task, **(self.lora() if lora else {}))

    def ipet(self, draw: Draw, **options: Any) -> dict[str, Any]:
        """iPET over all patterns."""
        args = self.args
        own = {
            "repetitions": args.ipet_repetitions,
            "generations": args.generations,
            "teachers": args.teachers,
        }
        return self.pet(draw, "ipet", **own, **options)


def figures(classifier: Classifier, examples: list[Example]) -> dict[str, Evaluation]:
    """Figures of each part, and of the whole where there are several."""
    found = classifier.evaluate(examples)
    return {name: e for name, e in found.items() if isinstance(e, Evaluation)}


@dataclass(frozen=True)
class TableRow:
    """One row of the table.

    Attributes:
        title: as printed.
        make: from bench and draw to figures.
        uses: the options, besides those of the rows and the model, that its figures depend on.
        seeded: it depends on the draw.
        few: with the first three seeds only.
    """

    title: str
    make: Callable[[Bench, Draw], dict[str, Any]]
    uses: tuple[str, ...] = ()
    seeded: bool = True
    few: bool = False

    def settings(self, args: argparse.Namespace) -> dict[str, Any]:
        """What a cell must have been made with to count as this one."""
        return {name: getattr(args, name) for name in ("limit", *self.uses)}


_TUNED = ("shots", "steps", "patience", "learning_rates", "batch_sizes", "precision")
_MEMBERS = (*_TUNED, "repetitions")
_FINAL = ("unlabeled", "final_steps", "final_learning_rate")
_PET = (*_MEMBERS, *_FINAL)
_IPET = (*_TUNED, "ipet_repetitions", "generations", "teachers", *_FINAL)


def _pet(combine: str, final_data: str) -> TableRow:
    data = "both kinds of rows" if final_data == "both" else "unlabelled rows"
    return TableRow(
        f"PET, {combine} averaged, final model on {data}",
        lambda bench, draw: bench.pet(draw, combine=combine, final_data=final_data),
        _PET,
        few=True,
    )


ROWS: dict[str, TableRow] = {
    "majority": TableRow("majority", Bench.majority, seeded=False),
    "zero-shot": TableRow("zero-shot, one pattern", Bench.zero_shot, seeded=False),
    "zero-shot-all": TableRow("zero-shot, all patterns", Bench.zero_shot_all, seeded=False),
    "logistic": TableRow(
        "logistic regression on embeddings", Bench.logistic, ("shots", "encoder")
    ),
    "setfit": TableRow(
        "SetFit 1.2", Bench.setfit,
        ("shots", "encoder", "learning_rates", "setfit_batch_sizes", "setfit_max_steps"),
    ),
    "finetune": TableRow("standard fine-tuning", Bench.finetune, _TUNED),
    "contrastive": TableRow(
        "contrastive tuning, the same encoder", Bench.contrastive, (*_TUNED, "encoder")
    ),
    "prompt": TableRow("prompt-based, manual words", Bench.prompt, _TUNED),
    "prompt-chosen": TableRow(
        "prompt-based, manual words, pattern chosen on dev", Bench.prompt_chosen, _TUNED
    ),
    "petal": TableRow("prompt-based, PETAL words", Bench.petal, (*_TUNED, "petal_words")),
    "lm-bff-words": TableRow(
        "prompt-based, LM-BFF words", Bench.lm_bff_words, (*_TUNED, "candidates")
    ),
    "soft": TableRow("prompt-based, soft verbalizer", Bench.soft, _TUNED),
    "demonstrations": TableRow(
        "prompt-based + demonstrations", Bench.demonstrations, (*_TUNED, "samples")
    ),
    "filtered": TableRow(
        "prompt-based + filtered demonstrations",
        lambda bench, draw: bench.demonstrations(draw, True),
        (*_TUNED, "samples"),
    ),
    "template": TableRow(
        "prompt-based, automatic template", Bench.template, (*_TUNED, "candidates", "beam"),
        few=True,
    ),
    "ensemble": TableRow("ensemble of prompts", Bench.ensemble, _MEMBERS),
    "ensemble-lora": TableRow(
        "ensemble of prompts, LoRA", lambda bench, draw: bench.ensemble(draw, lora=True), _MEMBERS
    ),
    "ensemble-contrastive": TableRow(
        "ensemble of prompts and contrastive tuning",
        lambda bench, draw: bench.ensemble(draw, **bench.joined()),
        (*_MEMBERS, "encoder"),
    ),
    "pet-scores-both": _pet("scores", "both"),
    "pet-scores-unlabeled": _pet("scores", "unlabeled"),
    "pet-probabilities-both": _pet("probabilities", "both"),
    "pet-probabilities-unlabeled": _pet("probabilities", "unlabeled"),
    "pet-lora": TableRow(
        "PET, LoRA, scores averaged, final model on unlabelled rows",
        lambda bench, draw: bench.pet(draw, lora=True, final_data="unlabeled"),
        _PET,
        few=True,
    ),
    "pet-contrastive": TableRow(
        "PET with contrastive members too, final model the encoder, on unlabelled rows",
        lambda bench, draw: bench.pet(
            draw, final_data="unlabeled", final_model=bench.args.encoder, **bench.joined()
        ),
        (*_PET, "encoder"),
        few=True,
    ),
    "ipet": TableRow("iPET", lambda bench, draw: bench.ipet(draw), _IPET, few=True),
    "ipet-widen": TableRow(
        "iPET, widened words",
        lambda bench, draw: bench.ipet(draw, widen=bench.args.widen),
        (*_IPET, "widen"),
        few=True,
    ),
}  # fmt: skip
