"""Tiny random models of seven architectures, with tokenizers trained on a few sentences."""

from __future__ import annotations

import csv
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

from promptforge.backbone.causal import CausalBackbone
from promptforge.backbone.masked import MaskedBackbone
from promptforge.backbone.seq2seq import Seq2SeqBackbone

EXAMPLES = Path(__file__).parent.parent / "examples" / "movie-reviews"
ARCHITECTURES = ("bert", "roberta", "modernbert", "gpt2", "llama", "t5", "bart")
MASKED = ("bert", "roberta", "modernbert")
CAUSAL = ("gpt2", "llama")
SEQ2SEQ = ("t5", "bart")
SIZE = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
}


@cache
def corpus() -> tuple[str, ...]:
    with (EXAMPLES / "unlabeled.csv").open(encoding="utf-8", newline="") as file:
        return tuple(row["text"] for row in csv.DictReader(file))


def _wordpiece() -> Any:
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tok.train_from_iterator(
        corpus(), trainers.WordPieceTrainer(vocab_size=1200, special_tokens=special)
    )
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def _byte_level(frame: str | None) -> Any:
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] if frame else ["<|endoftext|>"]
    tok.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=1200,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if frame is None:
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tok,
            eos_token="<|endoftext|>",
            bos_token="<|endoftext|>",
            model_max_length=64,
        )
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        cls_token="<s>", sep_token="</s>", mask_token="<mask>", model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def _llama() -> Any:
    tok = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tok.decoder = decoders.Metaspace()
    tok.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=1200, special_tokens=["<unk>", "<s>", "</s>"])
    )
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=64,
    )


def _t5() -> Any:
    tok = Tokenizer(models.Unigram())
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tok.decoder = decoders.Metaspace()
    sentinels = [f"<extra_id_{i}>" for i in range(10)]
    tok.train_from_iterator(
        corpus(),
        trainers.UnigramTrainer(
            vocab_size=1200, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
        ),
    )
    tok.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens=sentinels, model_max_length=64, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


@cache
def tokenizer(architecture: str) -> Any:
    if architecture == "bert":
        return _wordpiece()
    if architecture in ("roberta", "modernbert", "bart"):
        return _byte_level("roberta")
    return {"gpt2": lambda: _byte_level(None), "llama": _llama, "t5": _t5}[architecture]()


def _model(architecture: str, vocabulary: int) -> Any:
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
    model = transformers.BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    return model


@cache
def backbone(architecture: str) -> Any:
    """The backbone, always the same weights."""
    tok = tokenizer(architecture)
    family = (
        MaskedBackbone
        if architecture in MASKED
        else CausalBackbone
        if architecture in CAUSAL
        else Seq2SeqBackbone
    )
    return family(_model(architecture, len(tok)), tok, name=f"tiny-{architecture}")


def save(architecture: str, folder: Path) -> Path:
    """Write the model and tokenizer as `from_pretrained` reads them."""
    made = backbone(architecture)
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder
