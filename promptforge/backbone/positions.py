"""Input beyond the length that a model was trained with, by a stated rule for its positions."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from promptforge.backbone.probe import most_tokens
from promptforge.errors import UserError

RULES = ("copy", "interpolate", "rope")
_NAMES = ("max_position_embeddings", "n_positions")


def scale_rope(config: Any, rule: str | None, length: int, name: str) -> bool:
    """Have a config's rotary positions reach `length` tokens, before its model is made.

    `rope` is YaRN (Peng et al. 2024): the slow frequencies are stretched by `length` over the model's
    own maximum, the fast ones stay. The frequencies are the same for every text, so what a row gives
    does not depend on the others in its batch. Local layers of a model with two kinds keep theirs.

    Args:
        config: of the model; changed in place.
        rule: one of `RULES`, or None.
        length: most tokens of an input from now on.
        name: of the model, for messages.

    Returns:
        Whether the model has rotary positions and `length` is beyond its maximum.

    Raises:
        UserError: no such rule, or one that is not for rotary positions.
    """
    if rule is not None and rule not in RULES:
        raise UserError(f"positions {rule!r}: choose one of {', '.join(RULES)}.")
    config = config.get_text_config()
    known = getattr(config, "rope_parameters", None)
    most = getattr(config, "max_position_embeddings", None)
    if not known or not most:
        return False
    if rule not in (None, "rope"):
        raise UserError(
            f"positions {rule!r}: {name} has rotary positions and no table of them: use positions rope."
        )
    if length <= most:
        return False
    if rule is None:
        raise UserError(_too_long(name, length, most, "rope"))
    made = copy.deepcopy(dict(known))
    tables = [made["full_attention"]] if "full_attention" in made else [made]
    for table in tables:
        if table.get("rope_type", "default") != "default":
            raise UserError(
                f"positions rope: {name} scales its rotary positions already ({table['rope_type']}, to {most} "
                "tokens); they are not scaled twice."
            )
        table |= {
            "rope_type": "yarn", "factor": length / most, "original_max_position_embeddings": most,
        }  # fmt: skip
    config.rope_parameters = made
    config.max_position_embeddings = length
    return True


def extend(model: Any, tokenizer: Any, rule: str | None, length: int, name: str) -> None:
    """Have a model's table of learned positions, and its tokenizer, reach `length` tokens.

    `copy` repeats the table (Beltagy et al. 2020, section 5); `interpolate` stretches it linearly, its
    first and last row kept. Rows in front of the first position (RoBERTa's padding, BART's offset)
    stay where they are. A model without positions of its own needs no rule.

    Args:
        model: the transformers model; changed in place. Rotary ones went through `scale_rope`.
        tokenizer: its tokenizer; its limit is raised.
        rule: one of `RULES`, or None.
        length: most tokens of an input from now on.
        name: of the model, for messages.

    Raises:
        UserError: the model has a table and no rule for it is given, or one for rotary positions; it
            has neither, and a rule is given.
    """
    config = model.config.get_text_config()
    option = next((n for n in _NAMES if getattr(config, n, None)), None)
    tables = _tables(model, int(getattr(config, option))) if option else {}
    _check_kind(rule, bool(tables), bool(getattr(config, "rope_parameters", None)), name)
    if length <= most_tokens(model, tokenizer):
        return
    if tables:
        own = min(table.num_embeddings - front for table, front in tables.values())
        if rule is None and own < length:
            raise UserError(_too_long(name, length, own, "copy (or interpolate)"))
        if rule and own < length:
            for table, front in tables.values():
                table.weight = nn.Parameter(_longer(table.weight.detach(), front, length, rule))
                table.num_embeddings = len(table.weight)
            _longer_buffers(model, length - own)
            assert option is not None
            setattr(config, option, int(getattr(config, option)) + length - own)
    tokenizer.model_max_length = length


def _check_kind(rule: str | None, table: bool, rotary: bool, name: str) -> None:
    """Refuse a rule that is for other positions than the model's, whatever the length."""
    if rule == "rope" and table:
        raise UserError(
            f"positions rope: {name} has a table of learned positions: use copy or interpolate."
        )
    if rule and not table and not (rotary and rule == "rope"):
        raise UserError(
            f"positions {rule!r}: {name} has neither a table of learned positions nor rotary ones to extend; "
            "it needs no such option."
        )


def _too_long(name: str, length: int, most: int, rules: str) -> str:
    return (
        f"--max-length {length}: {name} takes at most {most} tokens. Give --positions {rules} "
        "(positions=... in Python) to have it take more."
    )


def _tables(model: nn.Module, stated: int) -> dict[str, tuple[nn.Embedding, int]]:
    """Tables of learned positions by name, and how many rows stand in front of the first position."""
    found = {}
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if not isinstance(module, nn.Embedding) or not ("position" in last or last == "wpe"):
            continue
        front = module.num_embeddings - stated  # BART and OPT put their offset on top
        if front == 0 and module.padding_idx:  # RoBERTa counts it in
            front = module.padding_idx + 1
        if front >= 0:
            found[name] = (module, front)
    return found


def _longer(table: Tensor, front: int, length: int, rule: str) -> Tensor:
    own = table[front:]
    if rule == "copy":
        grown = own.repeat(-(-length // len(own)), 1)[:length]
    else:
        grown = nn.functional.interpolate(
            own.T[None].float(), size=length, mode="linear", align_corners=True
        )[0].T.to(table)
    return torch.cat([table[:front], grown])


def _longer_buffers(model: nn.Module, more: int) -> None:
    """The position numbers and segment zeros that some embedding modules keep, as long as their tables."""
    for module in model.modules():
        for name in ("position_ids", "token_type_ids"):
            old = module._buffers.get(name)
            if old is None:
                continue
            size = old.shape[-1] + more
            new = torch.arange(size) if name == "position_ids" else torch.zeros(size).long()
            module._buffers[name] = new.expand(1, -1).to(old.device)
