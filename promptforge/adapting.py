"""Short training on unlabelled text: a model gets used to another attention, or to more positions.

Masked models find hidden words again, causal ones predict the next word, encoder-decoders write the
text of which the encoder saw a part hidden. What comes out is a model like any other.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from promptforge import artifact
from promptforge.backbone import Backbone, load_model
from promptforge.backbone.seq2seq import Seq2SeqBackbone
from promptforge.backbone.turns import one_training
from promptforge.backbone.weights import Weights
from promptforge.encode import Encoded
from promptforge.errors import UserError
from promptforge.plugins import build
from promptforge.progress import Mute, Reporter
from promptforge.tuning import processes
from promptforge.tuning.loop import Target, Training
from promptforge.tuning.masked_words import hide
from promptforge.tuning.objectives import TunedObjective
from promptforge.tuning.run import RESULTS, RunFolder
from promptforge.tuning.settings import Settings

PARTS = "parts"
#: Rows of text that are kept apart, to say what the training was good for.
_HELD = 32
#: Places whose logits over the whole vocabulary are held at once.
_PLACES = 256
#: Characters of a text that are kept together, for each token of a row.
_CHARACTERS = 8
_RATE = 5e-5


@dataclass(frozen=True)
class Adaptation:
    """What `adapt` did.

    Attributes:
        folder: a model, for `load_model` and `--model`.
        before, after: mean loss on rows kept apart, in nats a predicted token, at its beginning and end.
        teacher: the same of the model with full attention, where it was distilled from; else None.
        steps: updates made.
        rows, length: of the training; tokens a row.
        seconds: of the training.
        apart: False where the text made one row, which was learned from and measured on.
    """

    folder: str
    before: float
    after: float
    teacher: float | None
    steps: int
    rows: int
    length: int
    seconds: float
    apart: bool = True

    def to_json(self) -> dict[str, Any]:
        """As `results.json` has it."""
        return asdict(self)


class Adapted(artifact.Savable):
    """A language model with all its weights changed."""

    def __init__(self, backbone: Backbone, weights: Weights) -> None:
        self.backbone, self.weights = backbone, weights

    def to_json(self) -> dict[str, Any]:
        return {"kind": "adapted"}

    def tensors(self) -> dict[str, Tensor]:
        return {}


def adapt(
    backbone: Backbone,
    texts: Sequence[str],
    folder: str | Path,
    *,
    objective: str | None = None,
    distill: bool = False,
    length: int | None = None,
    settings: Settings | None = None,
    seed: int = 13,
    resume: bool = False,
    report: Reporter | None = None,
) -> Adaptation:
    """Train all weights of a model on plain text, and write it to a folder that `load_model` reads.

    Args:
        backbone: what `load_model` gave, with its attention pattern and positions.
        texts: documents, of any length; they are packed to rows of `length` tokens.
        folder: where the model goes, and checkpoints on the way.
        objective: "masked" (15 % of the words are hidden; Devlin et al. 2019) or "causal"; by the
            model's family by default.
        distill: also learn what the same model with full attention says, at the predicted places (the
            divergence KL(full || pattern) is added to the loss; Hinton et al. 2015).
        length: tokens of a row; the most that the model takes by default.
        settings: of the training; the learning rate is 5e-5 where none is given.
        seed: of the order of the texts, of what is hidden and of the training.
        resume: go on with what was begun in the folder.

    Raises:
        UserError: an objective that is not for the model, too little text, a folder that is in use.
        PromptForgeError: a loss that is not finite, no space.
    """
    report = (report or Reporter()) if processes.is_first() else Mute()
    settings = settings or Settings()
    if settings.learning_rate is None:
        settings = settings.model_copy(update={"learning_rate": _RATE})
    if len(settings.grid()) > 1:
        raise UserError(
            "adapt takes one learning rate and one batch size: nothing chooses between them."
        )
    if settings.patience or settings.eval_every:
        raise UserError(
            "patience and eval_every are about looks at development rows, and adapt takes none: leave them out."
        )
    objective = _objective(backbone, objective)
    if distill:
        _check_teacher(backbone)
    length = _length(backbone, length)
    blocks = pack(backbone, texts, length, settings.steps * settings.rows + _HELD, seed)
    apart = len(blocks) > 1
    held, blocks = _held(blocks)
    source = {k: v for k, v in backbone.source.items() if k != "trust_remote_code"}
    config = {
        "adapt": objective, "model": source, "sha256": backbone.checksum, "distill": distill,
        "length": length, "seed": seed, "settings": settings.model_dump(),
        "text": _digest([*held, *blocks]),
    }  # fmt: skip
    home = Path(folder)
    run = RunFolder(home, "--output") if processes.is_first() else None
    opened = run.opened(config, resume=resume) if run else nullcontext()
    with one_training(backbone), opened:
        # All processes look: those that went on alone would wait for the first for ever.
        if (results := RunFolder(home).results) is not None:
            return Adaptation(**results)
        if not apart:
            report.warn(
                f"The text fills one row of {length} tokens, which is learned from and measured on: how well the "
                "model knows it says nothing about other text. Give more text, or a smaller length."
            )
        teacher = _teacher(backbone, report) if distill else None
        if processes.is_first():
            (home / PARTS).mkdir(exist_ok=True)
        processes.wait(backbone.device)
        learning = TextObjective(backbone, [*blocks, *held], objective, seed, teacher)
        places = range(len(blocks), len(blocks) + len(held))
        training = None
        began = time.perf_counter()
        try:
            before, teachers = learning.measure(places, settings.rows)
            targets = [Target({}, (), key=i) for i in range(len(blocks))]
            training = Training(
                learning, targets, settings, seed=seed, folder=home / PARTS, report=report,
                identity=_identity(config),
            )  # fmt: skip
            trained = training.run("Adapting")
            after, _ = learning.measure(places, settings.rows)
            weights = learning.weights()
        except KeyboardInterrupt:
            if training:
                training.interrupted()
            raise
        finally:
            learning.close()
        done = Adaptation(
            str(folder), before, after, teachers, trained.steps, len(blocks), length,
            max(trained.seconds, time.perf_counter() - began), apart,
        )  # fmt: skip
        if run:
            artifact.save(Adapted(backbone, weights), run.artifact, {"adapted": done.to_json()})
            run.write(RESULTS, done.to_json())
            shutil.rmtree(home / PARTS, ignore_errors=True)
        processes.wait(backbone.device)
    return done


def _objective(backbone: Backbone, wanted: str | None) -> str:
    own = "causal" if backbone.family == "causal" else "masked"
    if wanted not in (None, own):
        raise UserError(
            f"objective {wanted!r}: {backbone.name} is {backbone.family}, and learns by {own!r}."
        )
    if isinstance(backbone, Seq2SeqBackbone) and backbone.tokenizer.mask_token_id is None:
        raise UserError(
            f"adapt: the tokenizer of {backbone.name} has no mask token, so nothing can be hidden from its "
            "encoder. Use an encoder-decoder such as BART, a masked or a causal model."
        )
    return own


def _length(backbone: Backbone, length: int | None) -> int:
    most = backbone.encoder.max_length
    if length is not None and not 8 <= length <= most:
        raise UserError(
            f"length {length}: {backbone.name} takes 8 to {most} tokens (more with max_length and positions)."
        )
    return length or most


def pack(
    backbone: Backbone, texts: Sequence[str], length: int, most: int, seed: int
) -> list[Encoded]:
    """Documents as rows of exactly `length` tokens, one after the other, at most `most` of them.

    Long documents are cut into parts, and the parts are shuffled; between two stands the model's end
    token. Text for less than a row makes one short row.

    Raises:
        UserError: there is no text.
    """
    frame = backbone.frame
    room = length - len(frame.prefix) - len(frame.suffix)
    end = backbone.tokenizer.eos_token_id
    between = frame.suffix[:1] or (() if end is None else (int(end),))
    parts = [part for text in texts for part in _parts(text, _CHARACTERS * length)]
    order = np.random.default_rng(seed).permutation(len(parts)).tolist()
    blocks: list[list[int]] = []
    rest: list[int] = []
    for start in range(0, len(order), 64):
        for ids in backbone.text.ids([parts[i] for i in order[start : start + 64]]):
            rest += [*ids, *between]
        while len(rest) >= room and len(blocks) < most:
            blocks.append(rest[:room])
            rest = rest[room:]
        if len(blocks) >= most:
            break
    blocks = blocks or [rest]
    special = backbone.text.special_ids
    blocks = [ids for ids in blocks if sum(t not in special for t in ids) > 1]
    if not blocks:
        raise UserError("adapt: there is no text to learn from.")
    return [_framed(backbone, ids) for ids in blocks]


def _framed(backbone: Backbone, ids: Sequence[int]) -> Encoded:
    frame, shown = backbone.frame, backbone.encoder.globals == "template"
    whole = (*frame.prefix, *ids, *frame.suffix)
    always = (
        (*[True] * len(frame.prefix), *[False] * len(ids), *[True] * len(frame.suffix))
        if shown
        else ()
    )
    return Encoded(whole, (0,) * len(whole), (), always=always)


def _parts(text: str, most: int) -> Iterator[str]:
    """A text in parts of at most `most` characters, cut at white space where there is some."""
    while len(text) > most:
        cut = max(text.rfind("\n", 0, most), text.rfind(" ", 0, most))
        cut = cut if cut > most // 2 else most
        yield text[:cut]
        text = text[cut:].lstrip()
    if text.strip():
        yield text


def _held(blocks: list[Encoded]) -> tuple[list[Encoded], list[Encoded]]:
    """A twentieth of the rows to measure on, at most `_HELD`; a lone row serves for both."""
    n = min(_HELD, max(1, len(blocks) // 20))
    return blocks[:n], blocks[n:] or blocks


def _digest(blocks: Sequence[Encoded]) -> str:
    return hashlib.sha256(str([e.ids for e in blocks]).encode()).hexdigest()[:16]


def _identity(config: dict[str, Any]) -> str:
    """What a checkpoint must have been made from; how often it is written is no part of it."""
    settings = {k: v for k, v in config["settings"].items() if k != "save_every"}
    told = json.dumps({**config, "settings": settings}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _check_teacher(backbone: Backbone) -> None:
    if not {"attention", "dtype"} <= backbone.source.keys():
        raise UserError(
            "distill: the same model with full attention is what is learned from: load a model by its name "
            "with an attention pattern, which this one has not."
        )


def _teacher(backbone: Backbone, report: Reporter) -> Backbone:
    """The same model with full attention, loaded beside it."""
    source = {k: v for k, v in backbone.source.items() if not k.startswith("attention")}
    source |= {"device": str(backbone.device), "batch_tokens": backbone.batch_tokens}
    return load_model(source.pop("name"), report=report, **source)


class TextObjective(TunedObjective):
    """The language-model loss of rows of text, and what a teacher adds to it.

    What is hidden depends on the seed, the update and the row alone: it is the same after a resume.

    Args:
        blocks: the rows; a `Target.key` is its place among them.
        kind: "masked" or "causal".
        teacher: the model whose words are learned too.
    """

    def __init__(
        self, backbone: Backbone, blocks: Sequence[Encoded], kind: str, seed: int,
        teacher: Backbone | None = None,
    ) -> None:  # fmt: skip
        super().__init__(backbone, build("method", "all"), None)
        self._blocks, self._kind, self._seed, self._teacher = blocks, kind, seed, teacher

    def length(self, target: Target) -> int:
        return len(self._blocks[target.key].ids)

    def forward(self, targets: Sequence[Target], draw: int) -> Tensor:
        losses, teachers, rows = self._losses([t.key for t in targets], draw)
        if teachers is not None:
            losses = losses + teachers[1]
        total = losses.new_zeros(len(targets)).index_add(0, rows, losses)
        return total / torch.bincount(rows, minlength=len(targets)).clamp(1)

    @torch.inference_mode()
    def measure(self, keys: Sequence[int], size: int) -> tuple[float, float | None]:
        """Mean loss over the predicted tokens of some rows, and the teacher's."""
        self.eval()
        own, theirs, count = 0.0, 0.0, 0
        for start in range(0, len(keys), size):
            # Draws that no update has.
            losses, teachers, _ = self._losses(keys[start : start + size], 2**31)
            own, count = own + float(losses.sum()), count + len(losses)
            theirs += float(teachers[0].sum()) if teachers is not None else 0.0
        return own / count, None if self._teacher is None else theirs / count

    def _losses(
        self, keys: Sequence[int], draw: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor]:
        """At each predicted token: the loss; the teacher's loss and the divergence; its row; [n] each."""
        backbone, teacher = self.backbone, self._teacher
        made = [self._asked(key, draw) for key in keys]
        encoded = [e for e, _ in made]
        words = torch.tensor([t for _, tokens in made for t in tokens], device=backbone.device)
        batch = backbone.collate(encoded, list(range(len(made))))
        rows, states = batch.rows, backbone.hidden(batch)
        theirs: Tensor | None = None
        if teacher is not None:
            with torch.no_grad():
                theirs = teacher.hidden(teacher.collate(encoded, list(range(len(made)))))

        def part(states: Tensor, words: Tensor, theirs: Tensor | None) -> tuple[Tensor, ...]:
            said = torch.log_softmax(backbone.logits(states).float(), -1)
            loss = F.nll_loss(said, words, reduction="none")
            if teacher is None or theirs is None:
                return (loss,)
            with torch.no_grad():
                known = torch.log_softmax(teacher.logits(theirs).float(), -1)
            apart = F.kl_div(said, known, reduction="none", log_target=True).sum(-1)
            return loss, F.nll_loss(known, words, reduction="none"), apart

        found = []
        for i in range(0, len(words), _PLACES):
            some = slice(i, i + _PLACES)
            told = (states[some], words[some], None if theirs is None else theirs[some])
            # The logits of a part are computed again on the way back: all at once they fill the memory.
            found.append(
                checkpoint(part, *told, use_reentrant=False)
                if torch.is_grad_enabled()
                else part(*told)
            )
        joined = [torch.cat(column) for column in zip(*found, strict=True)]
        return joined[0], (joined[1], joined[2]) if theirs is not None else None, rows

    def _asked(self, key: int, draw: int) -> tuple[Encoded, list[int]]:
        """A row as the model reads it, and the tokens that it should predict at its reads."""
        block = self._blocks[key]
        if self._kind == "causal":
            reads = tuple(range(len(block.ids) - 1))
            return replace(block, reads=reads), list(block.ids[1:])
        rng = np.random.default_rng([self._seed, draw, key])
        hidden, words = hide(self.backbone, block, rng)
        while not words:  # in a short row there may be none
            hidden, words = hide(self.backbone, block, rng)
        if isinstance(self.backbone, Seq2SeqBackbone):
            # The decoder writes the whole text; at place i it predicts token i.
            hidden = replace(hidden, decoder_ids=(self.backbone.start, *block.ids[:-1]))
        return hidden, words


def perplexity(loss: float) -> float:
    """Of a mean loss in nats."""
    return math.exp(min(loss, 700.0))
