"""A tuned classifier's language model as a model of its own: loaded, or as a plain folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from promptforge import artifact, artifact_files
from promptforge.backbone.base import Backbone
from promptforge.backbone.merge import merge_weights
from promptforge.backbone.weights import Weights
from promptforge.errors import UserError
from promptforge.folders import check_new, whole
from promptforge.progress import Reporter


def merge(
    path: str | Path, folder: str | Path, *, report: Reporter | None = None, **options: Any
) -> Path:
    """Write the language model of an artifact, its tuned parameters merged into its own.

    The folder is a plain one of transformers: model and tokenizer. Template and label words are the
    task's, and stay there; the same prompts read with the folder as their model give the same
    probabilities.

    Args:
        path: the folder of a run or of an artifact.
        folder: made anew; must not exist, or be empty.
        options: for `load_model`: device, batch_tokens.

    Raises:
        UserError: what was tuned cannot be merged (soft tokens, prefixes, adapters with an
            activation, a classification head, an ensemble); the folder is in use.
        PromptForgeError: a damaged artifact; no space.
    """
    report, folder = report or Reporter(), Path(folder).absolute()
    check_new(folder)
    found = artifact.open_parts(path, report=report, **options)
    if found.data["kind"] == "head":
        raise UserError(
            f"{path} has a classification head, which a language model has no place for. Tune it with "
            "a strategy that reads masks, such as prompt."
        )
    if found.weights is None:
        raise UserError(f"{path} changed nothing of its model: there is nothing to merge.")
    if (placed := found.backbone.placed) is not None:
        raise UserError(
            f"{path} reads with attention {placed.pattern.name!r}, which a plain folder of transformers cannot "
            f"say. promptforge predict and promptforge.artifact.load read it as it is."
        )
    try:
        merge_weights(found.backbone, found.weights)
    except UserError as error:
        raise UserError(f"{path} cannot be merged: {error}") from None
    artifact_files.warn_left_behind(path, found.tensors, "the merged model", report)
    with whole(folder) as draft:
        found.backbone.model.save_pretrained(draft)
        found.backbone.tokenizer.save_pretrained(draft)
    return folder


def tuned_backbone(path: str | Path, *, report: Reporter | None = None, **options: Any) -> Backbone:
    """The language model with the tuned weights of an artifact as its own; errors as `load`.

    What was tuned once is a model like any other: prompted for other tasks, tuned further.

    Raises:
        UserError: it was tuned by a method that adds parts to the model.
    """
    found = artifact.open_parts(path, report=report, **options)
    backbone = found.backbone
    try:
        merge_weights(backbone, found.weights or Weights())
    except UserError as error:
        raise UserError(
            f"{path} is more than a model with other weights: {error} Tune it with another method, "
            "such as all or lora."
        ) from None
    except KeyError as error:
        raise UserError(
            f"{path} was tuned by a method that adds {error} to the model: its weights are none for "
            "the model alone. Tune it with --method all."
        ) from None
    backbone.name = str(path)
    # The rest of what its model was loaded with is said in the folder.
    own = ("dtype", "max_length", "trust_remote_code")
    kept = {key: value for key, value in backbone.source.items() if key in own}
    backbone.source = {**kept, "name": str(path)}
    return backbone
