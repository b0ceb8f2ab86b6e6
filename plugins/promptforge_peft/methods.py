"""LoRA, (IA)^3 and any other configuration of `peft` as tuning methods."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig
from pydantic import Field
from torch import Tensor

from promptforge import Backbone, TuningMethod, UserError
from promptforge.backbone import Addition
from promptforge.backbone.sites import chosen_layers, need_sites
from promptforge.components import changed
from promptforge.encode import Encoded
from promptforge.errors import listed
from promptforge.verbalizer import Words
from promptforge_peft.additions import (
    CONFIG,
    Injected,
    PeftDeltas,
    TrainedDeltas,
    addition,
    read_folder,
)
from promptforge_peft.injection import as_json, config_of, options_of, other_starts, uses_conv1d
from promptforge_peft.prompts import READ, prompt

#: peft's names of what `lora` has under its own: two places for one thing, of which one would not count.
_OWN = {
    "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_rslora": "rslora",
    "target_modules": "targets", "layers_to_transform": "layers", "layers_pattern": "layers",
}  # fmt: skip
_KINDS = {
    "attention": ("attention", "cross-attention"),
    "feed-forward": ("feed-forward",),
    "all": ("attention", "cross-attention", "feed-forward"),
}


class PeftMethod(TuningMethod):
    """A method of the `peft` library: its configuration says all."""

    learning_rate: ClassVar[float] = 1e-3

    @abstractmethod
    def configuration(self, backbone: Backbone) -> PeftConfig:
        """The configuration for a model.

        Raises:
            UserError: the model cannot have it.
        """

    def add(self, backbone: Backbone, prompts: Sequence[Encoded], words: Words) -> Addition:
        """What the configuration adds: deltas where these say the same, else peft's modules.

        Raises:
            UserError: peft cannot put it into this model; the candidates are listed. It repeats layers.
                It starts from a drawn decomposition.
        """
        config = {**as_json(self.configuration(backbone)), "base_model_name_or_path": backbone.name}
        _check_start(config, f"method {self.name!r}")
        if config.get("layer_replication"):
            raise UserError(
                f"method {self.name!r}: layer_replication={config['layer_replication']} makes another model of this "
                "one, and what is tuned here belongs to the model as it is: leave layer_replication out."
            )
        made = addition(backbone, config)
        return TrainedDeltas(made) if isinstance(made, PeftDeltas) else made

    def read(self, backbone: Backbone, folder: Path) -> Addition | None:
        """An adapter as peft saves it; None: no such folder.

        Raises:
            UserError: it is none that a model can be given here, or of another model.
            PromptForgeError: its files are damaged.
        """
        if not (folder / CONFIG).is_file():
            return None
        config, tensors = read_folder(folder)
        _check_start(config, str(folder))
        backbone.apply(None)  # peft finds its places in the model as it is by itself
        if config["peft_type"] in READ:
            return prompt(backbone, config, tensors, str(folder))
        made = addition(backbone, config, tensors, str(folder))
        made.made_by = {"name": self.name, "options": self.model_dump(mode="json")}
        return made

    def restore(
        self, backbone: Backbone, data: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> Addition:
        if "deltas" in data:
            return PeftDeltas.from_parts(data, tensors).to_device(backbone.device)
        made = Injected(data["peft"], tensors)
        made.made_by = data["method"]
        return made


def _check_patterns(options: Mapping[str, Any], targets: Sequence[str], who: str) -> None:
    """Raise a `UserError` for a rank or alpha of matrices that are not among the targets."""
    for option in ("rank_pattern", "alpha_pattern"):
        for pattern in options.get(option) or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in targets):
                raise UserError(
                    f"method {who!r}: {option} has {pattern!r}, and no matrix that is tuned ends so: "
                    f"{listed(list(targets), 40)}."
                )


class LoRA(PeftMethod):
    """Low-rank matrices added to the model's own: `W + (alpha / rank) B A` (Hu et al. 2022).

    A starts random and B at zero, so the model starts as it was. The matrices are found by what the
    model calls around its attention, whatever they are named.
    """

    name: ClassVar[str] = "lora"

    targets: str = Field(
        "attention",
        description="attention, feed-forward, all, or a regular expression for the names of matrices.",
    )
    rank: int = Field(8, ge=1, description="Rank of what is added.")
    alpha: float = Field(16.0, gt=0, description="What is added counts alpha / rank times.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Of what the matrices take, in training.")
    rslora: bool = Field(False, description="alpha / sqrt(rank) instead (Kalajdzievski 2023).")
    layers: list[int] = Field([], description="Numbers of the layers; none: all.")
    options: dict[str, Any] = Field(
        {},
        description="Further options of peft's LoraConfig, such as use_dora; not r and others that stand above.",
    )

    def configuration(self, backbone: Backbone) -> PeftConfig:
        for name in self.options:
            if own := _OWN.get(name):
                other = " (embeddings and the output matrix: --method peft)" * (own == "targets")
                raise UserError(
                    f"method {self.name!r}: {name} in options is the method's own option {own}: write -o method.{own}=..., "
                    f"and leave {name} out{other}."
                )
        targets = matrices(backbone, self.targets, self.layers, self.name)
        _check_patterns(self.options, targets, self.name)
        return config_of(
            "lora",
            {
                "r": self.rank, "lora_alpha": self.alpha, "lora_dropout": self.dropout,
                "use_rslora": self.rslora, "target_modules": targets,
                "fan_in_fan_out": uses_conv1d({n: backbone.matrices[n] for n in targets}), **self.options,
            },
        )  # fmt: skip


class IA3(PeftMethod):
    """Trained factors of keys, values and the feed-forward part's middle (Liu et al. 2022).

    They start at one. Where a model computes queries, keys and values with one matrix (GPT-2,
    ModernBERT), all that this matrix gives is scaled, as in peft.
    """

    name: ClassVar[str] = "ia3"
    learning_rate: ClassVar[float] = 1e-2

    layers: list[int] = Field([], description="Numbers of the layers; none: all.")

    def configuration(self, backbone: Backbone) -> PeftConfig:
        who = f"method {self.name!r}"
        sites = chosen_layers(need_sites(backbone, _KINDS["all"], who), self.layers, who)
        middle = [site.output for site in sites if site.kind == "feed-forward"]
        scaled = [
            name
            for site in sites
            if site.kind != "feed-forward"
            for name in (site.inputs[1:] if len(site.inputs) > 1 else site.inputs)
        ]
        targets = list(dict.fromkeys([*scaled, *middle]))
        return config_of(
            "ia3",
            {
                "target_modules": targets, "feedforward_modules": list(dict.fromkeys(middle)),
                "fan_in_fan_out": uses_conv1d({n: backbone.matrices[n] for n in targets}),
            },
        )  # fmt: skip


class Peft(PeftMethod):
    """Any configuration of `peft` by name: `-o method.config=loha -o method.options='{"r": 8}'`.

    Those that change the prompt are refused: ours do that for every family. What cannot go without
    a training loop of its own (AdaLoRA's schedule) is refused too.
    """

    name: ClassVar[str] = "peft"

    config: str = Field("lora", description="Name of peft's configuration: lora, loha, vera, ...")
    targets: str = Field(
        "attention",
        description="attention, feed-forward, all, or a regular expression for the names of matrices; "
        "counts where options has no target_modules.",
    )
    options: dict[str, Any] = Field({}, description="Options of the configuration.")

    def configuration(self, backbone: Backbone) -> PeftConfig:
        options, known = dict(self.options), options_of(self.config)
        kind, own = self.config.lower().replace("-", "_"), None
        if kind == "trainable_tokens" and not options.get("token_indices"):
            raise UserError(
                "peft's 'trainable_tokens' trains the embeddings of some tokens: name their ids, as in "
                "-o method.options='{\"token_indices\": [2204, 2919]}'."
            )
        self._check_targets(kind)
        if "target_modules" in known and not options.get("target_modules"):
            if kind == "ln_tuning":
                options["target_modules"] = list(backbone.norms)
            elif kind != "trainable_tokens":
                if _picks_layers(options):
                    raise UserError(
                        f"method {self.name!r}: layers_to_transform in options has no effect, as the matrices are given "
                        "with their full names: name those of a layer in targets, as in "
                        r"-o 'method.targets=\.0\..*attention', or give target_modules in options too."
                    )
                own = matrices(backbone, self.targets, [], self.name)
                options["target_modules"] = own
                _check_patterns(options, own, self.name)
        if "feedforward_modules" in known:
            options.setdefault("feedforward_modules", [])
        if "fan_in_fan_out" in known and "fan_in_fan_out" not in options:
            chosen = {n: m for n, m in backbone.matrices.items() if own is None or n in own}
            options["fan_in_fan_out"] = uses_conv1d(chosen)
        return config_of(self.config, options)

    def _check_targets(self, kind: str) -> None:
        """Raise a `UserError` where `targets` would not count."""
        if not changed(self, "targets"):
            return
        who = f"method {self.name!r}: targets={self.targets!r}"
        if self.options.get("target_modules"):
            raise UserError(f"{who} and target_modules in options name the same: leave one out.")
        if part := {"ln_tuning": "norms", "trainable_tokens": "embeddings"}.get(kind):
            raise UserError(
                f"{who} names matrices, and peft's {kind!r} trains {part}: leave targets out, or name some of "
                "them as target_modules in options."
            )


def _check_start(config: Mapping[str, Any], who: str) -> None:
    """Raise a `UserError` for a start that is drawn anew in every model, and changes its matrices.

    What is trained counts from there, so that it would be another classifier at every load.
    """
    for option, value in other_starts(config).items():
        if "_niter_" in value:
            raise UserError(
                f"{who}: {option}={value!r} starts from a random decomposition that no adapter keeps, so it would "
                f"give other results at every load: tune with {option}='pissa', which is exact."
            )


def _picks_layers(options: Mapping[str, Any]) -> bool:
    """Whether peft's own option for it is given; peft does not look at it for full names."""
    return options.get("layers_to_transform") not in (None, [])


def matrices(backbone: Backbone, targets: str, layers: Sequence[int], who: str) -> list[str]:
    """Names of the model's matrices that `targets` means, in the order of the calls.

    Raises:
        UserError: none; the candidates are listed.
    """
    who = f"method {who!r}"
    if targets in _KINDS:
        sites = chosen_layers(need_sites(backbone, _KINDS[targets], who), layers, who)
        return list(dict.fromkeys(n for site in sites for n in (*site.inputs, site.output)))
    if layers:
        raise UserError(
            f"{who}: layers goes with targets={', '.join(_KINDS)}; {targets!r} is none of them."
        )
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise UserError(f"{who}: targets={targets!r}: {error}.") from None
    found = [name for name in backbone.matrices if pattern.search(name)]
    if not found:
        raise UserError(
            f"{who}: no matrix matches {targets!r}. Write {', '.join(_KINDS)}, or a regular expression for some of: "
            f"{listed(list(backbone.matrices), 40)}."
        )
    return found
