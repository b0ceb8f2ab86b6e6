"""Tiny random models of seven architectures, with tokenizers trained on a few sentences.

They are made in memory in well under a second: no file, no network, always the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from promptforge.backbone import Backbone
from promptforge.backbone.causal import CausalBackbone
from promptforge.backbone.masked import MaskedBackbone
from promptforge.backbone.seq2seq import Seq2SeqBackbone
from promptforge.testing.rows import TEXTS

MASKED = ("bert", "roberta", "modernbert")
CAUSAL = ("gpt2", "llama")
SEQ2SEQ = ("t5", "bart")
ARCHITECTURES = (*MASKED, *CAUSAL, *SEQ2SEQ)
#: One of each family: what most checks are made on.
FAMILIES = ("bert", "gpt2", "t5")
SIZE = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
}
#: Most tokens of a prompt.
LENGTH = 64
VOCABULARY = 1200


def _wordpiece(texts: Sequence[str]) -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=True)
    # The trainer numbers inner letters in the order of a hash map, which no two processes share, and
    # breaks ties by these numbers. What it takes for special tokens has its number beforehand.
    letters = {c for text in texts for c in normalizer.normalize_str(text) if not c.isspace()}
    inner = [f"##{letter}" for letter in sorted(letters)]
    learned = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learned.normalizer, learned.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    learned.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special + inner)
    )
    tok = Tokenizer(models.WordPiece(learned.get_vocab(), unk_token="[UNK]"))
    tok.add_special_tokens(special)
    tok.normalizer, tok.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def _byte_level(texts: Sequence[str], framed: bool) -> Any:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if framed else ["<|endoftext|>"]
    tok.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if not framed:
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tok,
            eos_token="<|endoftext|>",
            bos_token="<|endoftext|>",
            model_max_length=LENGTH,
        )
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        cls_token="<s>", sep_token="</s>", mask_token="<mask>", model_max_length=LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _metaspace(texts: Sequence[str]) -> Any:
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tok.decoder = decoders.Metaspace()
    tok.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>", "</s>"]),
    )
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=LENGTH,
    )


def _unigram(texts: Sequence[str]) -> Any:
    special = ["<pad>", "</s>", "<unk>"]
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    learned = Tokenizer(models.Unigram())
    learned.pre_tokenizer = metaspace
    learned.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>"),
    )
    # The trainer sums, and ranks letters, in the order of a hash map: the last digits of its scores, and with them
    # the numbers of pieces, are other ones in each process.
    found = json.loads(learned.to_str())["model"]["vocab"][len(special) :]
    pieces = sorted(
        ((p, round(score, 2)) for p, score in found), key=lambda piece: (-piece[1], piece)
    )
    tok = Tokenizer(models.Unigram([*((s, 0.0) for s in special), *pieces], unk_id=2))
    tok.add_special_tokens(special)
    tok.pre_tokenizer, tok.decoder = metaspace, decoders.Metaspace()
    sentinels = [f"<extra_id_{i}>" for i in range(10)]
    tok.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens=sentinels, model_max_length=LENGTH, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def tokenizer(architecture: str, texts: Sequence[str] = TEXTS) -> Any:
    """A fast tokenizer of an architecture's kind, trained on `texts`."""
    if architecture == "bert":
        return _wordpiece(texts)
    if architecture in ("roberta", "modernbert", "bart"):
        return _byte_level(texts, framed=True)
    if architecture == "gpt2":
        return _byte_level(texts, framed=False)
    return {"llama": _metaspace, "t5": _unigram}[architecture](texts)


def model(architecture: str, vocabulary: int) -> Any:
    """A transformers model of two layers, 32 wide, with random weights: always the same."""
    torch.manual_seed(0)
    common = {"vocab_size": vocabulary, "initializer_range": 0.2}
    if architecture == "bert":
        return transformers.BertForMaskedLM(
            transformers.BertConfig(**common, **SIZE, max_position_embeddings=64)
        )
    if architecture == "roberta":
        config = transformers.RobertaConfig(
            **common, **SIZE, max_position_embeddings=66, pad_token_id=1, type_vocab_size=1
        )
        return transformers.RobertaForMaskedLM(config)
    if architecture == "modernbert":
        config = transformers.ModernBertConfig(
            **common, **SIZE, max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2,
            cls_token_id=0, sep_token_id=2, global_attn_every_n_layers=2, local_attention=16,
        )  # fmt: skip
        return transformers.ModernBertForMaskedLM(config)
    if architecture == "gpt2":
        config = transformers.GPT2Config(**common, n_embd=32, n_head=4, n_layer=2, n_positions=64)
        return transformers.GPT2LMHeadModel(config)
    if architecture == "llama":
        return transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                **common, **SIZE, num_key_value_heads=2, max_position_embeddings=64
            )
        )
    if architecture == "t5":
        config = transformers.T5Config(
            vocab_size=vocabulary, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0,
            pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.BartConfig(
        vocab_size=vocabulary, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_layers=2,
        decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64,
        init_std=0.2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    made = transformers.BartForConditionalGeneration(config)
    made.final_logits_bias.normal_()
    return made


@torch.inference_mode(False)  # it may be trained later
def wrapped(architecture: str, tok: Any) -> Backbone:
    """A new backbone of an architecture around a tokenizer."""
    family: type[Backbone] = (
        MaskedBackbone
        if architecture in MASKED
        else CausalBackbone
        if architecture in CAUSAL
        else Seq2SeqBackbone
    )
    return family(model(architecture, len(tok)), tok, name=f"tiny-{architecture}")


@cache
def _tokenizer(architecture: str) -> Any:
    return tokenizer(architecture)


def fresh(architecture: str) -> Backbone:
    """A backbone that nobody else has: to be changed freely."""
    return wrapped(architecture, _tokenizer(architecture))


@cache
def backbone(architecture: str) -> Backbone:
    """The backbone of an architecture, one for all who only read it."""
    return fresh(architecture)


def write(made: Backbone, folder: Path) -> Path:
    """Write model and tokenizer as `from_pretrained` reads them; returns the folder."""
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def save(architecture: str, folder: Path) -> Path:
    """Write the tiny model of an architecture into a folder: a `--model` for command lines."""
    return write(backbone(architecture), folder)
