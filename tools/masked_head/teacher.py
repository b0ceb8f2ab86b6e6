"""A causal model as a teacher: what it thinks comes next, in the words of the student's vocabulary.

A causal model sees only what stands before a hidden token, so it is a weaker judge than the text
itself, but it spreads its belief over all words that would do.
"""

from __future__ import annotations

import numpy as np
import torch
from corpus import Ids
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from promptforge.models import locate

NO_SPACE_BEFORE = set(".,;:!?)]}%'")
NO_SPACE_AFTER = set("([{$")


class Teacher:
    """Next-word distributions of a causal model.

    Args:
        name: the model, as PromptForge knows it.
        tokenizer: the student's.
        top: words kept per place; what they lack of 1 is left to the true token.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, device: str, top: int = 32) -> None:
        folder = locate(name)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).to(device).eval()
        self.device, self.top = device, top
        self.pieces = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
        known = {piece: i for i, piece in enumerate(self.pieces)}
        theirs = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        begins = [(i, t[1:].lower()) for i, t in enumerate(theirs) if t and t[0] == "Ġ"]
        pairs = [(i, known[t]) for i, t in begins if t.isalpha() and t in known]
        self.theirs = torch.tensor([i for i, _ in pairs], device=device)
        self.ours = torch.tensor([i for _, i in pairs], device=device)

    @torch.inference_mode()
    def opinions(self, ids: Ids, positions: Ids) -> tuple[Tensor, Tensor]:
        """Words (rows * k, top) and their probabilities; all zero where a place begins no word."""
        found = [self._text(row) for row in ids]
        batch = self.tokenizer(
            [text for text, _ in found], return_offsets_mapping=True, padding=True,
            return_tensors="pt", padding_side="right", add_special_tokens=False,
        )  # fmt: skip
        offsets = batch.pop("offset_mapping").numpy()
        places = []  # flat position -> (row, index of the teacher's token before it)
        for row, (_, starts) in enumerate(found):
            before = {int(a) + 1: t - 1 for t, (a, b) in enumerate(offsets[row]) if b > a and t}
            places += [(row, before.get(starts[p], -1)) for p in positions[row]]
        words = torch.zeros(len(places), self.top, dtype=torch.long, device=self.device)
        shares = torch.zeros(len(places), self.top, device=self.device)
        kept = [i for i, (_, t) in enumerate(places) if t >= 0]
        states = self.model.model(**batch.to(self.device)).last_hidden_state
        for part in np.array_split(kept, max(1, len(kept) // 512)):
            rows, columns = zip(*(places[i] for i in part), strict=True)
            logits = self.model.lm_head(states[list(rows), list(columns)]).float()
            mine = logits.new_zeros(len(part), len(self.pieces))
            mine.index_add_(1, self.ours, logits.softmax(-1)[:, self.theirs])
            share, word = mine.topk(self.top)
            words[list(part)], shares[list(part)] = word, share
        return words, shares

    def _text(self, row: Ids) -> tuple[str, list[int]]:
        """The text again, and where each token's word begins in it (-1: inside of a word)."""
        text, starts, glue = "", [], True
        for i in row:
            piece = self.pieces[i]
            inside = piece.startswith("##")
            if piece in ("[CLS]", "[SEP]"):
                starts.append(-1)
                text += "\n" if text else ""
                glue = True
                continue
            if inside:
                piece = piece[2:]
            elif not glue and piece not in NO_SPACE_BEFORE:
                text += " "
            starts.append(-1 if inside or glue else len(text))
            text += piece
            glue = piece in NO_SPACE_AFTER or piece == "'"
        return text, starts
