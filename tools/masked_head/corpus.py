"""Text to sequences of token ids: streamed once to disk, then drawn from there without memory.

Every text file becomes one flat file of 16-bit ids, so a corpus of any size costs no memory.
Sequences held out for the evaluation are cut off the end of two files before anything is drawn.
"""

from __future__ import annotations

import csv
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

CLS, SEP, MASK, UNK = "[CLS]", "[SEP]", "[MASK]", "[UNK]"
# Which files make up a kind of text; a file that is not named here is "mixed".
KINDS = {
    "reviews": ("imdb_unlabelled", "movie_reviews"),
    "encyclopedia": ("wiki_split", "wikitext2_valid_test"),
    "books": ("classic_books", "genesis", "shakespeare"),
    "news": ("abc", "brown", "nyt_amazon_snippets"),
    "speeches": ("inaugural", "state_union"),
}
# In these, every line is a text of its own and ends with [SEP]; the others are wrapped prose.
LINES = {"imdb_unlabelled", "nlp_corpus", "wiki_split", "nyt_amazon_snippets"}
HELD_OUT = {"encyclopedia": "wikitext2_valid_test", "reviews": "imdb_unlabelled"}
HELD_OUT_SEQUENCES, HELD_OUT_LENGTH = 2000, 128

Ids = NDArray[np.int64]


def _lines(path: Path) -> Iterator[str]:
    if path.suffix == ".xz":
        with lzma.open(path, "rt", encoding="utf-8") as file:
            yield from file
    else:
        with path.open(encoding="utf-8") as file:
            yield from file


def prepare(corpora: Path, tokenizer: Tokenizer, folder: Path) -> None:
    """Tokenize every `.txt` and `.txt.xz` of ``corpora`` into ``folder``, once."""
    folder.mkdir(parents=True, exist_ok=True)
    sep = tokenizer.token_to_id(SEP)
    for path in sorted([*corpora.glob("*.txt"), *corpora.glob("*.txt.xz")]):
        name = path.name.split(".")[0]
        target = folder / f"{name}.ids"
        if target.exists():
            continue
        part = target.with_suffix(".part")
        with part.open("wb") as out:
            lines = (line.strip() for line in _lines(path))
            while texts := list(islice(lines, 2000)):
                encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
                for text, item in zip(texts, encoded, strict=True):
                    ids = item.ids
                    if not text or name in LINES:
                        ids = [*ids, sep]
                    np.asarray(ids, dtype=np.uint16).tofile(out)
        part.replace(target)
        print(f"{name}: {target.stat().st_size // 2:,} tokens", flush=True)


@dataclass
class Source:
    """One file's ids without what is held out; sequences are drawn without replacement."""

    name: str
    ids: NDArray[np.uint16]
    seed: int

    def sequence(self, draw: int, width: int) -> NDArray[np.uint16]:
        """The ``draw``-th sequence; every pass over the file is cut and shuffled anew."""
        count = len(self.ids) // width - 1
        epoch, index = divmod(draw, count)
        rng = np.random.default_rng([self.seed, epoch])
        shift = int(rng.integers(width))
        # A multiplier prime to the count visits every sequence once, without a table of them.
        step = int(rng.integers(1, count)) | 1
        while np.gcd(step, count) != 1:
            step += 2
        start = shift + (index * step % count) * width
        return self.ids[start : start + width]


class Corpus:
    """The prepared files as a mixture of kinds.

    Args:
        folder: what :func:`prepare` wrote.
        mixture: share of the sequences for each kind; kinds left out are not read.
        seed: decides order, cuts and masks.
    """

    def __init__(
        self, folder: Path, tokenizer: Tokenizer, mixture: dict[str, float], seed: int
    ) -> None:
        self.special = {name: tokenizer.token_to_id(name) for name in (CLS, SEP, MASK, UNK)}
        self.vocabulary = tokenizer.get_vocab_size()
        self.seed = seed
        of_file = {file: kind for kind, files in KINDS.items() for file in files}
        self.sources: list[Source] = []
        kinds: list[str] = []
        for number, path in enumerate(sorted(folder.glob("*.ids"))):
            ids = np.memmap(path, dtype=np.uint16, mode="r")
            if path.stem in HELD_OUT.values():
                ids = ids[: -HELD_OUT_SEQUENCES * (HELD_OUT_LENGTH - 2)]
            kind = of_file.get(path.stem, "mixed")
            if mixture.get(kind, 0) > 0:
                self.sources.append(Source(path.stem, ids, seed * 1000 + number))
                kinds.append(kind)
        if missing := [kind for kind, share in mixture.items() if share > 0 and kind not in kinds]:
            raise SystemExit(f"no text of the kind {', '.join(missing)} in {folder}")
        sizes = np.array([len(source.ids) for source in self.sources], dtype=np.float64)
        totals = {kind: sizes[[k == kind for k in kinds]].sum() for kind in set(kinds)}
        shares = np.array(
            [mixture[kind] * size / totals[kind] for kind, size in zip(kinds, sizes, strict=True)]
        )
        self.shares = shares / shares.sum()

    def counts(self) -> NDArray[np.float64]:
        """How often each token is drawn, as counts smoothed by one, shape (vocabulary,)."""
        total = np.ones(self.vocabulary)
        for source, share in zip(self.sources, self.shares, strict=True):
            found = np.bincount(source.ids, minlength=self.vocabulary)
            total += found * (share / found.sum() * 1e7)
        total[[self.special[name] for name in (CLS, SEP, MASK)]] = 1
        return total

    def batches(self, rows: int, length: int, drawn: list[int]) -> Iterator[Ids]:
        """Batches of shape (rows, length); ``drawn`` counts per source, and is what to resume from."""
        while True:
            rng = np.random.default_rng([self.seed, sum(drawn)])
            ids = np.empty((rows, length), dtype=np.int64)
            ids[:, 0], ids[:, -1] = self.special[CLS], self.special[SEP]
            for row, which in enumerate(rng.choice(len(self.sources), rows, p=self.shares)):
                ids[row, 1:-1] = self.sources[which].sequence(drawn[which], length - 2)
                drawn[which] += 1
            yield ids


@dataclass
class Masker:
    """Chooses tokens and hides them: 80 % [MASK], 10 % a random token, 10 % left (Devlin et al. 2019).

    Args:
        share: of the tokens of a sequence that are chosen, the same number in every row.
        weights: how readily each token is chosen, shape (vocabulary,); special tokens never are.
    """

    share: float
    special: dict[str, int]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, corpus: Corpus, share: float, power: float = 0.0) -> Masker:
        """Tokens weigh ``count ** -power``: above 0, rare words are hidden more often."""
        return cls(share, corpus.special, (corpus.counts() / 1e7) ** -power)

    def hide(self, ids: Ids, rng: np.random.Generator) -> tuple[Ids, Ids, Ids]:
        """Inputs (rows, length), chosen positions (rows, k) and their true ids (rows, k)."""
        length = ids.shape[1]
        keys = rng.exponential(size=ids.shape) / self.weights[ids]
        keys[np.isin(ids, [self.special[name] for name in (CLS, SEP, MASK)])] = np.inf
        k = max(1, round(self.share * (length - 2)))
        positions = np.argpartition(keys, k, axis=1)[:, :k]
        # A row of nothing but separators may have had to give one of them: that is no target.
        targets = np.take_along_axis(ids, positions, axis=1)
        targets[np.isinf(np.take_along_axis(keys, positions, axis=1))] = -100
        fate = rng.random(positions.shape)
        given = np.where(fate < 0.8, self.special[MASK], targets)
        random = rng.integers(1000, len(self.weights), positions.shape)
        given = np.where((fate >= 0.8) & (fate < 0.9), random, given)
        given = np.where(targets < 0, np.take_along_axis(ids, positions, axis=1), given)
        inputs = ids.copy()
        np.put_along_axis(inputs, positions, given, axis=1)
        return inputs, positions, targets


def sequences_of(path: Path, tokenizer: Tokenizer) -> Ids:
    """The first 2,000 sequences of a text file or of a table's column `text`, shape (2000, 128)."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            texts = [row["text"] for row in csv.DictReader(file)]
    else:
        texts = [line.strip() for line in _lines(path) if line.strip()]
    sep, ids = tokenizer.token_to_id(SEP), []
    for item in tokenizer.encode_batch(texts, add_special_tokens=False):
        ids += [*item.ids, sep]
    need = HELD_OUT_SEQUENCES * (HELD_OUT_LENGTH - 2)
    if len(ids) < need:
        raise SystemExit(f"{path} has {len(ids):,} tokens; {need:,} are needed")
    return _framed(np.asarray(ids[:need]), tokenizer)


def _framed(body: Ids, tokenizer: Tokenizer) -> Ids:
    out = np.empty((HELD_OUT_SEQUENCES, HELD_OUT_LENGTH), dtype=np.int64)
    out[:, 0], out[:, -1] = tokenizer.token_to_id(CLS), tokenizer.token_to_id(SEP)
    out[:, 1:-1] = body.reshape(HELD_OUT_SEQUENCES, -1)
    return out


def held_out(folder: Path, tokenizer: Tokenizer, kind: str) -> Ids:
    """The sequences that :class:`Corpus` never draws, shape (2000, 128)."""
    ids = np.memmap(folder / f"{HELD_OUT[kind]}.ids", dtype=np.uint16, mode="r")
    body = ids[-HELD_OUT_SEQUENCES * (HELD_OUT_LENGTH - 2) :]
    return _framed(np.asarray(body, dtype=np.int64), tokenizer)


def parse_mixture(text: str) -> dict[str, float]:
    """``reviews=0.5,books=0.5`` to a mapping."""
    pairs = (part.split("=") for part in text.split(","))
    return {kind.strip(): float(share) for kind, share in pairs}
