"""Sample the small movie-review data set that ships in ``examples/movie-reviews``.

    python tools/make_example.py --ratings PATH/ratings.csv --output examples/movie-reviews

``ratings.csv`` is the movie-review table of the VADER package (Hutto & Gilbert 2014, MIT):
a column ``text`` and a column ``rating``, the mean of twenty raters from -4 to 4. The same table
and the same seed always give the same four files, byte for byte.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

SEED = 13
# A mean of twenty raters 1.5 or more away from neutral is out of reach of a few raters' whims;
# it keeps two thirds of the table and drops the lukewarm third, where "right" is a matter of taste.
CLEAR = 1.5
# The unlabelled pool is more like real life: only the rows nobody could call either way are out.
LEANING = 0.5
MIN_WORDS, MAX_WORDS = 5, 40
LABELS = ("negative", "positive")
SPLITS = {"train": 16, "dev": 16, "test": 250}  # rows per label
UNLABELED = 1000
RARE = 100  # a word in at most this many texts counts as rare

ACCENTS = "éèêíïñóöôüáàç"
ENTITY = re.compile(r"&#?\w+;")
OPENING = re.compile(r"[A-Z0-9\"'(]")
CLOSING = re.compile(r"(?<!\.\.)[.!?][\"')]*$")


@dataclass(frozen=True)
class Snippet:
    text: str
    rating: float
    words: frozenset[str] = field(compare=False)

    @property
    def label(self) -> str:
        return LABELS[self.rating > 0]


def normalise(text: str) -> str:
    """The text as compared for equality: folded case, no punctuation, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[\W_]+", " ", folded).split())


def flaw(text: str) -> str | None:
    """Why a text is left out, or None for a clean one."""
    if any(not (c.isascii() and c.isprintable()) and c not in ACCENTS for c in text):
        return "stray character"
    if ENTITY.search(text) or re.search(r"[<>\[\]{}|\\_*@#~^`]", text):
        return "markup"
    if re.search(r"\w\?\w", text):
        return "lost apostrophe"
    # The source dropped dashes and doubled apostrophes: "its moments    and almost", ''Pokemon''.
    if "  " in text or "''" in text or re.search(r"\s[,.;:!?]|[,;][^\s\d\"')]", text):
        return "broken punctuation"
    if not OPENING.match(text):
        return "starts in mid-sentence"
    if not CLOSING.search(text):
        return "no end"
    if re.search(r"\w[!?.][A-Z][a-z]|\.\.\.\w", text):
        return "sentences run together"
    if text.count("(") != text.count(")") or text.count('"') % 2:
        return "unbalanced"
    if not MIN_WORDS <= len(text.split()) <= MAX_WORDS:
        return "length"
    return None


class Distinct:
    """Remembers texts; says whether a new one is (nearly) one of them.

    Only texts that share a word rare in the whole pool are compared, which keeps this quick.
    """

    def __init__(self, pool: list[Snippet]) -> None:
        frequency = Counter(word for snippet in pool for word in snippet.words)
        self._rare = {word for word, count in frequency.items() if count <= RARE}
        self._by_word: dict[str, list[frozenset[str]]] = defaultdict(list)

    def add(self, words: frozenset[str]) -> bool:
        rare = words & self._rare
        for seen in {text for word in rare for text in self._by_word[word]}:
            common, smaller = len(words & seen), min(len(words), len(seen))
            if common >= 0.5 * len(words | seen) or common >= 0.8 * smaller:
                return False
        for word in rare:
            self._by_word[word].append(words)
        return True


def read(path: Path) -> tuple[list[Snippet], Counter[str]]:
    snippets: dict[str, Snippet] = {}
    dropped: Counter[str] = Counter()
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text = row["text"].strip()
            reason = flaw(text)
            key = normalise(text)
            if reason is None and key in snippets:
                reason = "repeated"
            if reason is None:
                snippets[key] = Snippet(text, float(row["rating"]), frozenset(key.split()))
            else:
                dropped[reason] += 1
    return [snippets[key] for key in sorted(snippets)], dropped


def sample(snippets: list[Snippet], seed: int = SEED) -> dict[str, list[Snippet]]:
    rng = random.Random(seed)
    pool = [s for s in snippets if abs(s.rating) >= LEANING]
    rng.shuffle(pool)
    distinct = Distinct(pool)
    pool = [s for s in pool if distinct.add(s.words)]

    chosen: dict[str, list[Snippet]] = {}
    clear = {
        name: [s for s in pool if s.label == name and abs(s.rating) >= CLEAR] for name in LABELS
    }
    for split, per_label in SPLITS.items():
        rows = []
        for name in LABELS:
            if len(clear[name]) < per_label:
                raise SystemExit(f"too few clear-cut {name} rows for {split}.csv")
            rows += clear[name][:per_label]
            del clear[name][:per_label]
        rng.shuffle(rows)
        chosen[split] = rows
    used = {s for rows in chosen.values() for s in rows}
    rest = [s for s in pool if s not in used]
    if len(rest) < UNLABELED:
        raise SystemExit("too few rows for unlabeled.csv")
    chosen["unlabeled"] = rest[:UNLABELED]
    return chosen


def check(chosen: dict[str, list[Snippet]]) -> None:
    """The promises of the README: no text twice, labels balanced, both labels in the pool."""
    keys = [normalise(s.text) for rows in chosen.values() for s in rows]
    assert len(keys) == len(set(keys)), "a text is in two files"
    for split, per_label in SPLITS.items():
        counts = Counter(s.label for s in chosen[split])
        assert all(counts[name] == per_label for name in LABELS), f"{split} is not balanced"
    assert {s.label for s in chosen["unlabeled"]} == set(LABELS)


def write(path: Path, rows: list[Snippet], *, labels: bool) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["text", "label"] if labels else ["text"])
    writer.writerows([s.text, s.label] if labels else [s.text] for s in rows)
    path.write_bytes(buffer.getvalue().encode("utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ratings", type=Path, required=True, help="VADER's movie-review table")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()

    snippets, dropped = read(options.ratings)
    chosen = sample(snippets, options.seed)
    check(chosen)
    options.output.mkdir(parents=True, exist_ok=True)
    for split, rows in chosen.items():
        write(options.output / f"{split}.csv", rows, labels=split != "unlabeled")
        counts = Counter(s.label for s in rows)
        print(f"{split}.csv: {len(rows)} rows, " + ", ".join(f"{counts[n]} {n}" for n in LABELS))
    print("left out: " + ", ".join(f"{n} {reason}" for reason, n in dropped.most_common()))


if __name__ == "__main__":
    main()
