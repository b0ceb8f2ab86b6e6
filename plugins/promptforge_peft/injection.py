"""peft's modules put into a model and taken out again, which leaves every bit as it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from promptforge import Backbone, UserError
from promptforge.backbone.load import quiet_loading
from promptforge.errors import did_you_mean, listed
from promptforge_peft.prompts import READ

#: peft's own name for the one adapter of a model.
ADAPTER = "default"
#: What peft trains in the prompt; ours do it for all three families.
_PROMPTS = {
    "PROMPT_TUNING": "prompt-tuning", "P_TUNING": "p-tuning", "PREFIX_TUNING": "prefix", "CPT": "prompt-tuning",
    "MULTITASK_PROMPT_TUNING": "prompt-tuning", "CARTRIDGE": "prefix",
}  # fmt: skip
_REFUSED = {
    "ADALORA": "changes its ranks by calls from a training loop of its own",
    "POLY": "reads the number of a task in every call of the model",
    "XLORA": "mixes adapters that were trained before",
    "SHADOW": "is a second model beside the first",
    "MIXED": "is no method but several",
}
#: Those of them that run once they are trained.
_RUN = {"ADALORA"}
#: Options that do nothing without calls that peft leaves to whoever trains, in any configuration.
_NEED_CALLS = {
    "kasa_config": "adds to the loss what a training asks the model for",
    "monteclora_config": "adds to the loss what a training asks the model for",
    "use_asa": "changes what is trained by a callback in the training",
    "use_qalora": "is for a model of whole numbers, which this is not",
    "init_lora_weights=eva": "starts from a pass over data that peft makes by itself",
    "init_lora_weights=lora_ga": "starts from a pass over data that peft makes by itself",
}
#: First values by name. Other starts (PiSSA, OLoRA) change the model's own matrices too.
STARTS = {"eva", "gaussian", "kaiming_uniform", "lycoris", "orthogonal", "xavier_uniform"}


def kinds() -> list[str]:
    """The configurations that can be put into a model, in lower case."""
    known = [kind.value.lower() for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING]
    return sorted(k for k in known if k.upper() not in {*_PROMPTS, *_REFUSED})


def class_of(kind: str, *, reading: bool = False) -> Any:
    """peft's class of a configuration.

    Args:
        reading: for an adapter that is trained: some kinds can be run that cannot be trained here.

    Raises:
        UserError: no such name, or one that is not for here.
    """
    name = kind.upper().replace("-", "_")
    if reading and name in _PROMPTS and name not in READ:
        raise UserError(
            f"peft's {kind!r} has parts in the prompt that are none of ours: an adapter of it is not read here. "
            f"Run it with peft, or tune one here: --method {_PROMPTS[name]}."
        )
    if name in _PROMPTS and not reading:
        raise UserError(
            f"peft's {kind!r} changes the prompt and not the model: use --method {_PROMPTS[name]}, "
            "which works for every family."
        )
    if name in _REFUSED and not (reading and name in _RUN):
        raise UserError(f"peft's {kind!r} {_REFUSED[name]}, and cannot be used here.")
    found = {k.value: cls for k, cls in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}.get(name)
    if found is None:
        raise UserError(
            f"peft has no configuration {kind!r}.{did_you_mean(kind.lower(), kinds())} It has: {listed(kinds(), 60)}."
        )
    return found


def options_of(kind: str) -> list[str]:
    """The options of a configuration; errors as `config_of`."""
    return [field.name for field in fields(class_of(kind)) if field.name != "peft_type"]


def config_of(kind: str, options: Mapping[str, Any]) -> PeftConfig:
    """A configuration by name and options.

    Raises:
        UserError: no such name, one that is not for here, an option it does not have.
    """
    found, known = class_of(kind), options_of(kind)
    for option in options:
        if option not in known:
            raise UserError(
                f"peft's {kind!r} has no option {option!r}.{did_you_mean(option, known)} Its options: "
                f"{listed(known, 60)}."
            )
        for name in (option, f"{option}={options[option]}"):
            if name in _NEED_CALLS and options[option] not in (None, False):
                raise UserError(
                    f"peft's {kind!r}: {name} {_NEED_CALLS[name]}, and would do nothing here: leave it out."
                )
    try:
        return found(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"peft's {kind!r}: {error}") from None


def as_json(config: PeftConfig) -> dict[str, Any]:
    """A configuration as peft's own file has it."""
    told = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    return {key: getattr(value, "value", value) for key, value in told.items()}


def injected(
    backbone: Backbone,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    copied: bool = False,
    origin: str = "The adapter",
) -> tuple[PeftModel, Callable[[], None]]:
    """The model with peft's modules in it, and what takes them out.

    Args:
        tensors: their state, by peft's names; None: as peft starts them.
        copied: work on a copy of the model's own weights: they are about to be merged.
        origin: what errors call the state.

    Raises:
        UserError: peft cannot put these into this model; the state is of another shape, lacks
            tensors or has others; whole modules beside the model's own; aLoRA.
    """
    model, _ = backbone.model, backbone.matrices  # under the model's own names
    parts = [(m, dict(m._modules), dict(m._parameters)) for m in model.modules()]
    values = [(p, p.data, p.requires_grad) for p in backbone.parameters.values()]
    own = set(vars(model))

    def undo() -> None:
        for module, modules, parameters in parts:
            module._modules.clear()
            module._modules.update(modules)
            module._parameters.clear()
            module._parameters.update(parameters)
        for parameter, value, flag in values:
            parameter.data = value
            parameter.requires_grad_(flag)
        for name in set(vars(model)) - own:
            delattr(model, name)

    told = {
        k: v for k, v in config.items() if k not in ("inference_mode", "base_model_name_or_path")
    }
    kind = told["peft_type"]
    if told.get("modules_to_save"):
        raise UserError(
            f"peft's {kind} with modules_to_save={told['modules_to_save']} has whole modules beside the model's own, "
            "which is not supported: leave modules_to_save empty."
        )
    if tokens := told.get("alora_invocation_tokens"):
        raise UserError(
            f"peft's {kind} with alora_invocation_tokens={tokens} looks for these tokens in every call of the model, "
            "which is not supported: leave alora_invocation_tokens out, or run such an adapter with peft."
        )
    try:
        # Some starts (OLoRA) write into the model's own matrices: `undo` must find them as they were.
        if copied or other_starts(told):
            for parameter, value, _ in values:
                parameter.data = value.clone()
        # A state that is loaded must not move the random numbers of what comes after it.
        with (
            quiet_loading(),
            torch.random.fork_rng(devices=_devices(backbone))
            if tensors is not None
            else nullcontext(),
        ):
            # What is trained is cast to float32: in half precision small steps round to none.
            made = peft.get_peft_model(model, PeftConfig.from_peft_type(**told), ADAPTER)
        made.promptforge_changed = not all(_same(p.data, value) for p, value, _ in values)
        for parameter, value, _ in values:
            if parameter.requires_grad and parameter.data is not value:
                parameter.data = parameter.data.clone()
        if tensors is not None:
            _load(made, tensors, origin)
        made.to(backbone.device).train(model.training)
    except UserError:
        undo()
        raise
    except (
        AttributeError,
        ImportError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        undo()
        raise UserError(
            f"peft's {kind} cannot be put into {backbone.name}: {str(error).splitlines()[0]} Matrices of the model: "
            f"{listed(list(backbone.matrices), 40)}."
        ) from None
    except BaseException:  # an interrupt too: the model goes on to be used in a notebook
        undo()
        raise
    return made, undo


def other_starts(config: Mapping[str, Any]) -> dict[str, str]:
    """The options that name a start which may change the model's own matrices."""
    return {
        k: v
        for k, v in config.items()
        if k.startswith("init_") and isinstance(v, str) and v not in STARTS
    }


def _same(now: Tensor, before: Tensor) -> bool:
    if now.dtype != before.dtype:
        return False
    return now.data_ptr() == before.data_ptr() or torch.equal(now, before)


def _load(model: PeftModel, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Give peft's modules their state, all of it and nothing else."""
    expected = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    own = model.state_dict()
    # peft saves embeddings that it did not train too, and would write them over the model's own.
    beside = {n for n in tensors if n in own and n not in expected}
    for name in sorted(beside):
        if not torch.equal(tensors[name].to(own[name]), own[name]):
            raise UserError(
                f"{origin} has the model's own {name.removeprefix('base_model.model.')!r} with other values: "
                "an adapter only adds to a model here. Save it with save_embedding_layers=False, or "
                "merge it with peft and use the folder as --model."
            )
    given = {name: tensor for name, tensor in tensors.items() if name not in beside}
    try:
        told = set_peft_model_state_dict(model, given, adapter_name=ADAPTER)
    except KeyError as error:  # some kinds look for theirs by name
        raise _lacking(origin, [str(error.args[0])]) from None
    except RuntimeError as error:
        raise UserError(
            f"{origin} is of another shape: {str(error).splitlines()[-1].strip()}"
        ) from None
    if told.unexpected_keys:
        raise UserError(
            f"{origin} has {told.unexpected_keys[0]!r}, which this model has no place for."
        )
    # Adapters of older versions have other names for some tensors, which peft turns into today's: a
    # tensor is missing where it is there by neither name. What peft packs (VB-LoRA's top weights) is
    # known by its packed name alone.
    rename = type(model.base_model)._remove_adapter_name_from_key
    unset = {rename(name, ADAPTER) for name in told.missing_keys}
    known = {rename(name, ADAPTER) for name in own}
    missing = [n for n in expected if n not in given and (n in unset or n not in known)]
    if missing:
        raise _lacking(origin, missing)


def _lacking(origin: str, names: list[str]) -> UserError:
    return UserError(
        f"{origin} lacks tensors that its configuration asks for: {listed(names, 3)}. Save it again "
        "with peft's save_pretrained."
    )


def _devices(backbone: Backbone) -> list[torch.device]:
    return [backbone.device] if backbone.device.type == "cuda" else []


def uses_conv1d(modules: Mapping[str, nn.Module]) -> bool:
    """Whether matrices lie the other way round, as in GPT-2."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(m, Conv1D) for m in modules.values())
