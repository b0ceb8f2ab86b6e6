"""`promptforge export`: what was tuned as an adapter that plain `peft` reads."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from promptforge import Backbone, UserError, artifact, artifact_files
from promptforge.backbone import Addition
from promptforge.folders import whole
from promptforge.progress import Reporter
from promptforge.template import OPENING
from promptforge.tuning.run import find_artifact
from promptforge_peft.additions import CONFIG, TENSORS
from promptforge_peft.prompts import alike, sees_all, turned

_TASKS = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


def export(
    path: str | Path, folder: str | Path, *, report: Reporter | None = None, **options: Any
) -> Path:
    """Write a tuned prompt, prefix, LoRA or other peft method as a folder that peft reads.

    LoRA, (IA)^3 and the like are in peft's files already, and are copied. Soft tokens before the
    prompt become peft's prompt tuning, for causal and encoder-decoder models. peft puts them before
    everything, special tokens too, and here they stand after these: outputs are equal where the model
    has none in front (GPT-2, T5), and a warning says where it has. A causal model's prefix becomes
    peft's prefix tuning. There the text's positions begin after the prefix, and here at 0: keys are
    turned by as much where positions are rotary (Llama, Qwen), and outputs are equal; elsewhere
    (GPT-2) they are where 0 is given as the first position, which a warning says. So it does where a
    verbalizer that learned or early exits stay in the artifact.

    Args:
        path: the folder of a run or of an artifact.
        folder: made anew; must not exist, or be empty.
        options: for `load_model`: device, batch_tokens.

    Raises:
        UserError: peft has nothing that is the same; a classification head or an attention pattern
            belongs to it; the folder is in use.
        PromptForgeError: a damaged artifact; no space.
    """
    report, folder = report or Reporter(), Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already. Name another folder.")
    found = artifact.open_parts(path, report=report, **options)
    if found.data["kind"] == "head":
        raise UserError(
            f"{path} has a classification head, which an adapter of peft has no place for. Tune it with "
            "a strategy that reads masks, such as prompt."
        )
    if (placed := found.backbone.placed) is not None:
        raise UserError(
            f"{path} reads with attention {placed.pattern.name!r}, which an adapter of peft cannot say. "
            "promptforge predict and promptforge.artifact.load read it as it is."
        )
    if found.weights is None:
        raise UserError(f"{path} changed nothing of its model: there is nothing to export.")
    added, changed = found.weights.added, found.weights.tensors or found.weights.rows
    if added is not None and added.deltas() and added.file != TENSORS:
        raise _unlike(path, added)
    if added is not None and changed:
        again = (
            " For peft, tune it again with -o method.model=none."
            if "model" in added.made_by["options"]
            else ""
        )
        raise UserError(
            f"{path} adds to the model by {added.made_by['name']!r} and changed the model's own weights too, for "
            "which an adapter of peft has no place. promptforge predict and promptforge.artifact.load read "
            f"it as it is.{again}"
        )
    if added is None:
        raise UserError(
            f"{path} changed the model's own weights: promptforge merge writes it as a plain folder."
        )
    with whole(folder) as draft:
        if added.file == TENSORS:
            home = artifact.member_folder(path, "")
            assert home is not None
            for name in (CONFIG, TENSORS):
                shutil.copyfile(home / name, draft / name)
        else:
            repeats = found.data["kind"] != "generator"  # as the prompts of classifiers are read
            _write(found.backbone, added, draft, str(path), repeats, report)
    _warn_of_base(found.backbone, report)
    artifact_files.warn_left_behind(path, found.tensors, "the adapter", report)
    return folder


def _warn_of_base(backbone: Backbone, report: Reporter) -> None:
    """Warn where the adapter belongs to a model that peft cannot load by its name."""
    if find_artifact(backbone.source["name"]) is not None:
        report.warn(
            f"The adapter was tuned on what {backbone.name} had tuned, a run that peft does not read: write that "
            f"with 'promptforge merge {backbone.name} FOLDER', and load the adapter on FOLDER."
        )


def _unlike(path: object, added: Addition) -> UserError:
    return UserError(f"{path}: peft has no method that is the same as {added.made_by['name']!r}.")


def _write(
    backbone: Backbone, added: Addition, folder: Path, path: str, repeats: bool, report: Reporter
) -> None:
    """Let peft itself save its own prompt or prefix with our values."""
    config, values = _prompt(backbone, added.to_device(backbone.device), path, repeats, report)
    flags = [(p, p.requires_grad) for p in backbone.model.parameters()]
    own = set(vars(backbone.model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(backbone.model, config)
        weight = next(iter(model.prompt_encoder.values())).embedding.weight
        try:
            with torch.no_grad():
                weight.copy_(values)
            config.base_model_name_or_path = backbone.name  # peft names what a run has tuned since
            model.save_pretrained(folder)
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for name in set(vars(backbone.model)) - own:
                delattr(backbone.model, name)


def _prompt(
    backbone: Backbone, added: Addition, path: str, repeats: bool, report: Reporter
) -> tuple[peft.PeftConfig, Tensor]:
    """peft's configuration, and the values of its one matrix, [tokens, numbers of each].

    Args:
        repeats: whether a decoder that has masks (BART's) writes its prompt again.
    """
    soft, prefixes = added.soft(), added.prefixes()
    family, name = _TASKS.get(backbone.family), backbone.name
    if bool(soft) == bool(prefixes):
        raise _unlike(path, added)
    if family is None:
        raise UserError(
            f"{path}: peft has prompts and prefixes for causal and encoder-decoder models, not for masked ones. "
            "promptforge predict and promptforge.artifact.load read it as it is."
        )
    if soft:
        if set(soft) != {OPENING}:
            raise UserError(
                f"{path} has soft tokens inside its template, and peft has them only before a prompt."
            )
        if backbone.frame.prefix:
            report.warn(
                f"{name} puts special tokens before a text. Here the soft tokens stand after them, and in peft "
                "before them: outputs will differ."
            )
        if repeats and backbone.decoder_embedding is not None:
            report.warn(
                f"The decoder of {name} writes its prompt again, soft tokens included, and peft's reads "
                "them in the encoder alone: outputs will differ."
            )
        # Two submodules would be a prompt of the decoder's own.
        config = peft.PromptTuningConfig(
            task_type=family, num_virtual_tokens=len(soft[OPENING]), num_transformer_submodules=1
        )
        return config, soft[OPENING]
    if backbone.family != "causal":
        raise UserError(
            f"{path}: peft's prefixes of encoder-decoder models are the decoder's alone, and the same ones "
            "for both of its attentions; these are others."
        )
    sites = [site.name for site in backbone.sites if site.name in prefixes]
    plain = [prefixes[name] for name in sites]
    count = plain[0][0].shape[1]
    # In peft a text's positions begin after the prefix: keys that are turned as far are seen as here.
    pairs = [(turned(backbone, keys, count), values) for keys, values in plain]
    if not (sees_all(backbone) and alike(backbone, pairs, added, count)):
        pairs = plain
        report.warn(
            "peft counts the positions of a text from the end of the prefix, and here they begin at 0, for which "
            f"keys of {name} cannot make up: outputs will differ a little."
        )
    layers = [torch.stack(pair) for pair in pairs]
    kept = torch.stack(layers)  # [layers, 2, heads, tokens, head size]
    config = peft.PrefixTuningConfig(task_type=family, num_virtual_tokens=count)
    return config, kept.permute(3, 0, 1, 2, 4).flatten(1)
