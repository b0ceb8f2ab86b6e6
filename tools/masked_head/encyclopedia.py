"""Plain text of the English Wikipedia articles that the package gensim 4.4.0 carries for its tests.

    pip install gensim==4.4.0
    python tools/masked_head/encyclopedia.py encyclopedia.txt CORPORA

Text that no head here was trained on: articles of 2010, one paragraph a line, markup removed by
gensim, and no paragraph that shares nine words in a row with a file of CORPORA. CC BY-SA 3.0, the authors of Wikipedia; it is for the evaluation, not to be shipped.
"""

from __future__ import annotations

import bz2
import lzma
import re
import sys
from pathlib import Path

from gensim.corpora.wikicorpus import extract_pages, filter_wiki

DUMP = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def main() -> None:
    """Write the paragraphs of at least 20 words to the file named on the command line."""
    import gensim

    lines: list[str] = []
    with bz2.open(Path(gensim.__file__).parent / DUMP) as dump:
        for _, text, _ in extract_pages(dump, filter_namespaces=("0",)):
            plain = filter_wiki(re.sub(r"(?s)<ref[^>]*/>|<ref.*?</ref>", "", text))
            for paragraph in plain.split("\n"):
                words = re.sub(r"'{2,}|\s+", " ", paragraph).split()
                if len(words) >= 20 and paragraph[:1] not in "|=*#:{}!;":
                    lines.append(" ".join(words))
    shared = seen({run for line in lines for run in runs(line)}, Path(sys.argv[2]))
    kept = [line for line in lines if shared.isdisjoint(runs(line))]
    print(f"{len(kept):,} paragraphs; {len(lines) - len(kept)} left out")
    Path(sys.argv[1]).write_text("\n".join(kept) + "\n", encoding="utf-8")


def runs(text: str) -> list[tuple[str, ...]]:
    """Every nine words in a row."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    return list(zip(*(words[i:] for i in range(9)), strict=False))


def seen(wanted: set[tuple[str, ...]], corpora: Path) -> set[tuple[str, ...]]:
    """Those of ``wanted`` that stand in a text file, across its line breaks too."""
    found: set[tuple[str, ...]] = set()
    for path in sorted(corpora.glob("*.txt.xz")):
        before = ""
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                found.update(wanted.intersection(runs(f"{before} {line}")))
                before = " ".join(f"{before} {line}".split()[-8:])
    return found


if __name__ == "__main__":
    main()
