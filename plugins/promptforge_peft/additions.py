"""What `peft` adds to a model: as deltas where these say it, else as peft's own modules.

Either way an artifact keeps it as peft does, in `adapter_config.json` and
`adapter_model.safetensors`, so that `peft.PeftModel.from_pretrained` reads the artifact's folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftModel
from peft.tuners.ia3 import Linear as IA3Linear
from peft.tuners.lora import Linear as LoRALinear
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from promptforge import Backbone, PromptForgeError, UserError
from promptforge.backbone import Addition, Delta, Folded
from promptforge.backbone.addition import Computed
from promptforge.errors import listed
from promptforge_peft.injection import ADAPTER, STARTS, as_json, class_of, config_of, injected

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
Config = Mapping[str, Any]
#: Options that leave what the tensors do as it is: where a configuration is from; which matrices it changes,
#: as the tensors' names say that; `fan_in_fan_out`, which peft itself puts right; first values.
_UNREAD = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type",
    "exclude_modules", "layers_pattern", "layers_to_transform", "modules_to_save", "target_modules",
    "fan_in_fan_out", "d_initial", "delora_lambda", "eva_config",
}  # fmt: skip


class PeftDeltas(Folded):
    """Deltas that an artifact keeps as peft keeps LoRA and (IA)^3.

    Attributes:
        config: peft's configuration, as JSON has it.
    """

    file: ClassVar[str] = TENSORS

    def __init__(self, *parts: Any, config: Config | None = None) -> None:
        super().__init__(*parts)
        self.config = dict(config or {})

    def tensors(self) -> dict[str, Tensor]:
        """By peft's names."""
        out: dict[str, Tensor] = {}
        for name, delta in self.deltas().items():
            base = f"base_model.model.{name}"
            if delta.down is not None and delta.up is not None:
                out[f"{base}.lora_A.weight"] = delta.down.T
                out[f"{base}.lora_B.weight"] = delta.up.T
            if delta.multiply is not None:
                shape = (1, -1) if delta.at == "input" else (-1, 1)
                out[f"{base}.ia3_l"] = delta.multiply.reshape(shape)
        return out

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "peft": dict(self.config)}

    def texts(self) -> Mapping[str, str]:
        return {CONFIG: json.dumps(dict(self.config), indent=2, sort_keys=True) + "\n"}

    @classmethod
    def from_parts(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PeftDeltas:
        """The reverse of `to_json` and `tensors`."""
        parts = {"lora_A.weight": "down", "lora_B.weight": "up", "ia3_l": "multiply"}
        own: dict[str, Tensor] = {}
        for key, value in tensors.items():
            name = key.removeprefix("base_model.model.")
            ending = next(e for e in parts if name.endswith(f".{e}"))
            turned = value.flatten() if ending == "ia3_l" else value.T.contiguous()
            own[f"delta/{name.removesuffix(f'.{ending}')}/{parts[ending]}"] = turned
        made = Folded.from_parts(data, own)
        return cls.with_config(made, data["peft"])

    @classmethod
    def with_config(cls, deltas: Addition, config: Config) -> PeftDeltas:
        """The deltas of an addition as they are now."""
        made = cls.of(deltas)
        assert isinstance(made, PeftDeltas)
        made.config = dict(config)
        return made

    def to_device(self, device: torch.device) -> PeftDeltas:
        if all(t.device == device for t in self.tensors().values()):
            return self
        moved = {name: value.to(device) for name, value in self.tensors().items()}
        return PeftDeltas.from_parts(self.to_json(), moved)


class TrainedDeltas(Computed):
    """Deltas of peft's kind while they are trained.

    Args:
        start: where they start.
    """

    def __init__(self, start: PeftDeltas) -> None:
        super().__init__()
        self.config = start.config
        self._deltas = dict(start.deltas())
        self._parts = [
            (name, part)
            for name, delta in self._deltas.items()
            for part in ("down", "up", "multiply")
            if getattr(delta, part) is not None
        ]
        self.values = nn.ParameterList(
            nn.Parameter(getattr(self._deltas[name], part).clone()) for name, part in self._parts
        )

    def deltas(self) -> Mapping[str, Delta]:
        changes: dict[str, dict[str, Any]] = {name: {} for name in self._deltas}
        for (name, part), value in zip(self._parts, self.values, strict=True):
            changes[name][part] = value
        return {name: replace(delta, **changes[name]) for name, delta in self._deltas.items()}

    def folded(self) -> Addition:
        return PeftDeltas.with_config(self, self.config)

    def starts(self) -> Mapping[str, Tensor]:
        made = zip(self._parts, self.values, strict=True)
        return {f"delta/{name}/{part}": value for (name, part), value in made}


class Injected(Addition):
    """peft's own modules, in the model while they are attached.

    Args:
        config: peft's configuration, as JSON has it.
        tensors: their state by peft's names; none: as peft starts them.
    """

    file: ClassVar[str] = TENSORS

    def __init__(self, config: Config, tensors: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.config, self._tensors = config, dict(tensors or {})
        self._live: list[PeftModel] = []  # in a list: the model is no part of this module

    def install(self, backbone: Backbone) -> Callable[[], None]:
        model, undo = injected(backbone, self.config, self._tensors or None)
        self._live = [model]

        def take_out() -> None:
            self._tensors = self._state()
            self._live = []
            undo()

        return take_out

    def _state(self) -> dict[str, Tensor]:
        # AdaLoRA's are only read, and no training of ours changes them.
        if not self._live or self.config["peft_type"] == "ADALORA":
            return self._tensors
        found = get_peft_model_state_dict(
            self._live[0], adapter_name=ADAPTER, save_embedding_layers=False
        )
        return {name: value.detach().clone() for name, value in found.items()}

    def trained(self) -> dict[str, nn.Parameter]:
        """peft's trained parameters; none while it is not attached."""
        return {
            name.replace(f".{ADAPTER}", ""): p
            for model in self._live
            for name, p in model.named_parameters()
            if p.requires_grad
        }

    def folded(self) -> Addition:
        made = Injected(self.config, self._state())
        made.made_by = self.made_by
        return made

    def to_device(self, device: torch.device) -> Addition:
        return self  # put onto the model's device when it is put into the model

    def tensors(self) -> dict[str, Tensor]:
        return self._state()

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "peft": dict(self.config)}

    def texts(self) -> Mapping[str, str]:
        return {CONFIG: json.dumps(dict(self.config), indent=2, sort_keys=True) + "\n"}

    def start_from(self, other: Addition) -> None:
        own, theirs = self._state(), other.tensors()
        shapes = [{n: tuple(t.shape) for n, t in state.items()} for state in (own, theirs)]
        if self._live and shapes[0] != shapes[1]:
            strange = next(n for n in {**own, **theirs} if shapes[0].get(n) != shapes[1].get(n))
            raise UserError(f"the two differ in {strange!r}.")
        _check_same(self.config, other.to_json()["peft"])
        if self._live:
            from peft.utils import set_peft_model_state_dict

            set_peft_model_state_dict(self._live[0], theirs, adapter_name=ADAPTER)
        else:
            self._tensors = dict(theirs)

    def merge_into(self, backbone: Backbone) -> None:
        shared = _shared(backbone.model)
        model, undo = injected(backbone, self.config, self._tensors or None, copied=True)
        kind = self.config["peft_type"]
        try:
            _check_alone(model, shared, kind)
            merged = model.merge_and_unload(safe_merge=True).state_dict()
            values = {name: merged[name].detach().clone() for name in backbone.parameters}
        except UserError:
            raise
        except (
            AttributeError,
            KeyError,
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise UserError(f"peft cannot merge {kind}: {str(error).rstrip('.')}.") from None
        finally:
            undo()
        with torch.no_grad():
            for name, value in values.items():
                backbone.parameters[name].copy_(value)


def _shared(model: nn.Module) -> dict[str, list[str]]:
    """By the names of modules: the other ones that have the same weight."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if (weight := module._parameters.get("weight")) is not None:
            names.setdefault(id(weight), []).append(name)
    return {n: [o for o in group if o != n] for group in names.values() for n in group}


def _check_alone(model: PeftModel, shared: Mapping[str, list[str]], kind: str) -> None:
    """Raise a `UserError` where merging into one matrix would change another, which is tied to it."""
    for name, layer in model.get_base_model().named_modules():
        # peft's trained tokens change both of a tied pair by themselves.
        if not isinstance(layer, BaseTunerLayer) or isinstance(layer, TrainableTokensLayer):
            continue
        if others := shared.get(name):
            raise UserError(
                f"peft's {kind} changes {name!r}, whose weights are those of {listed(others, 3)} too: merging would "
                f"change it there as well. Use it unmerged, or leave {name.rpartition('.')[2]!r} out of target_modules "
                "and tune again."
            )


def _check_same(own: Config, theirs: Config) -> None:
    """Raise a `UserError` where two configurations do different things with the same tensors."""
    kind = own["peft_type"]
    # UniLoRA has one tensor for all matrices, whose name says none of them.
    unread = _UNREAD - ({"target_modules", "layers_to_transform"} if kind == "UNILORA" else set())
    there = _whole(theirs)
    for name, here in _whole(own).items():
        was = there.get(name)
        starts = all(not isinstance(v, str) or v in STARTS for v in (here, was))
        if name in unread or "dropout" in name or (name.startswith("init_") and starts):
            continue
        if here != was:
            raise UserError(
                f"{name} of peft's {kind} is {was!r} there, and {here!r} here. Give the options that it was tuned with."
            )


def _whole(config: Config) -> Config:
    """A configuration as a file has it, with the options that an older peft did not have."""
    options = {name: value for name, value in config.items() if name != "peft_type"}
    made: Config = json.loads(json.dumps(as_json(config_of(config["peft_type"], options))))
    return made


def read_folder(folder: Path) -> tuple[Config, dict[str, Tensor]]:
    """Configuration and tensors of an adapter as peft saves it.

    Raises:
        UserError: a kind that no model can be given here; tensors that are pickled, none, or hold
            values that are no numbers.
        PromptForgeError: its files are damaged.
    """
    try:
        config: Config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        class_of(config["peft_type"], reading=True)
    except UserError:
        raise
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise PromptForgeError(f"{folder / CONFIG} is damaged: {error}.") from None
    if not (folder / TENSORS).is_file():
        raise UserError(
            f"{folder} has no {TENSORS}. Only that is read: what is pickled (.bin) could run code."
        )
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise PromptForgeError(f"{folder / TENSORS} is damaged: {error}.") from None
    # As floats: some types of eight bits cannot be asked.
    if strange := [n for n, v in tensors.items() if not bool(torch.isfinite(v.float()).all())]:
        raise UserError(
            f"{folder} holds values that are no numbers (in {listed(strange, 3)}): its training went "
            "wrong. Train it again, with a lower learning rate."
        )
    return config, tensors


def addition(
    backbone: Backbone,
    config: Config,
    tensors: Mapping[str, Tensor] | None = None,
    origin: str = "The adapter",
) -> PeftDeltas | Injected:
    """What a configuration of peft adds: deltas where these say the same, else peft's modules.

    Args:
        origin: what errors call the tensors.

    Raises:
        UserError: peft cannot put it into this model; tensors are missing or are of another model.
    """
    model, undo = injected(backbone, config, tensors, origin=origin)
    try:
        found = _deltas(model, backbone)
    finally:
        undo()
    if found is None:
        return Injected(config, tensors)
    return PeftDeltas.with_config(Folded({}, {}, found), config)


def _deltas(model: PeftModel, backbone: Backbone) -> dict[str, Delta] | None:
    """The deltas that do what peft's layers do; None where there are other layers than these."""
    if getattr(model.peft_config[ADAPTER], "layer_replication", None):
        return None  # the layers are others, also where none of the new ones has an adapter
    base = model.get_base_model()
    layers = {n: m for n, m in base.named_modules() if isinstance(m, BaseTunerLayer)}
    made: dict[str, Delta] = {}
    known: set[int] = set()
    for name, layer in layers.items():
        if name not in backbone.matrices:
            return None
        if type(layer) is LoRALinear and not layer.lora_variant and not layer.lora_bias[ADAPTER]:
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            rate = getattr(layer.lora_dropout[ADAPTER], "p", 0.0)
            scale = float(layer.scaling[ADAPTER])
            made[name] = Delta(
                a.detach().T.contiguous(),
                b.detach().T.contiguous(),
                name,
                scale=scale,
                dropout=rate,
            )
            known |= {id(a), id(b)}
        elif type(layer) is IA3Linear:
            factors = layer.ia3_l[ADAPTER]
            at = "input" if layer.is_feedforward else "output"
            made[name] = Delta(multiply=factors.detach().flatten().clone(), at=at)
            known.add(id(factors))
        else:
            return None
    moved = {n for n, p in model.named_parameters() if p.requires_grad and id(p) not in known}
    # Some starts (PiSSA, OLoRA) change the model's own matrices, which deltas leave alone.
    return None if moved or model.promptforge_changed else made
