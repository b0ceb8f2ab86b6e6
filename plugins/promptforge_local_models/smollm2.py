"""SmolLM2 from its GGUF file to a folder in transformers' layout.

The weights come out bit for bit as transformers' own GGUF loader gives them, in a quarter of
its time and without torch. They are kept in fp32: the file is quantized to 4 bits with fp16
scales and offsets, whose sums need more bits than fp16 or bfloat16 has.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from promptforge_local_models.files import save_tensors, write_json

_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def convert(parts: Path, built: Path) -> None:
    """Weights, config, tokenizer and generation config from `parts/model.gguf`."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(parts / "model.gguf")
    fields = {
        name.removeprefix("llama."): field.contents()
        for name, field in reader.fields.items()
        if name.startswith(("llama.", "tokenizer."))
    }
    heads = {"attn_q": fields["attention.head_count"], "attn_k": fields["attention.head_count_kv"]}
    tensors: dict[str, NDArray[Any]] = {}
    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.removesuffix(".weight").rpartition(".")[2]
        if kind in heads:
            value = _unrotated(value, heads[kind])
        tensors[_name(tensor.name)] = value
    save_tensors(tensors, built / "model.safetensors")
    del tensors
    ends = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }
    write_json({**_config(fields), **ends}, built / "config.json")
    write_json({"_from_model_config": True, **ends}, built / "generation_config.json")
    _write_tokenizer(fields, built)
    shutil.copyfile(parts / "LICENSE", built / "LICENSE")


def _name(gguf: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    parts = gguf.split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{_BLOCK[parts[2]]}.{parts[3]}"
    return f"{_OUTER[parts[0]]}.{parts[1]}"


def _unrotated(value: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows in transformers' order: GGUF puts the two halves of each rotary pair side by side."""
    rows = value.shape[0]
    pairs = value.reshape(heads, rows // heads // 2, 2, *value.shape[1:])
    return pairs.swapaxes(2, 1).reshape(value.shape)


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "head_dim": fields["rope.dimension_count"],
        "hidden_act": "silu",
        "hidden_size": fields["embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": fields["feed_forward_length"],
        "max_position_embeddings": fields["context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": fields["attention.head_count"],
        "num_hidden_layers": fields["block_count"],
        "num_key_value_heads": fields["attention.head_count_kv"],
        "pretraining_tp": 1,
        "rms_norm_eps": fields["attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_theta": fields["rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": True,
        "unk_token_id": fields["tokenizer.ggml.unknown_token_id"],
        "use_cache": True,
        "vocab_size": fields["vocab_size"],
    }


def _write_tokenizer(fields: dict[str, Any], built: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    # Digits stand alone, as in the original tokenizer; transformers' GGUF loader leaves this
    # out, and then two spaces before a number become other tokens than in training.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's token type of <|im_start|> and the like
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
            if kind == control
        ]
    )
    tokenizer.save(str(built / "tokenizer.json"))
    settings = {
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["context_length"],
        # Not GPT2Tokenizer: that class would put its own splitting in place of the file's.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(settings, built / "tokenizer_config.json")
    template: str = fields["tokenizer.chat_template"]
    (built / "chat_template.jinja").write_text(template, encoding="utf-8")
