"""The last layer's feed-forward part is computed at the reads alone, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from promptforge import Template
from promptforge.backbone.layers import layer_modules
from promptforge.encode import Encoded
from tests import tiny

#: architecture -> the first matrix of its feed-forward part
FIRST = {
    "bert": "intermediate.dense", "roberta": "intermediate.dense", "modernbert": "mlp.Wi",
    "gpt2": "mlp.c_fc", "llama": "mlp.up_proj",
}  # fmt: skip
each = pytest.mark.parametrize("architecture", list(FIRST))


def prompts(backbone: Any, masks: int = 1) -> list[Encoded]:
    source = "{{ text }} It was {{ mask }}"
    if masks == 2:
        source = "{{ text }} It was {{ mask(2) }}."
    template = Template(source, name="p")
    texts = [" ".join(t.split()[: 5 + 3 * i]) for i, t in enumerate(tiny.corpus()[:5])]
    return backbone.encode([template.render({"text": t}) for t in texts])


def plain(backbone: Any, encoded: Encoded) -> Tensor:
    """States at the reads of one prompt, from the body alone."""
    inputs = {"input_ids": torch.tensor([encoded.ids])}
    if backbone.frame.segments:
        inputs["token_type_ids"] = torch.tensor([encoded.types])
    return backbone.body(**inputs).last_hidden_state[0, list(encoded.reads)]


@each
@pytest.mark.parametrize("masks", [1, 2])
def test_states_and_gradients_are_those_of_the_whole_layer(architecture: str, masks: int) -> None:
    backbone = tiny.fresh(architecture)
    if masks == 2 and backbone.family == "causal":
        masks = 1
    encoded = prompts(backbone, masks)
    seen = []
    first = layer_modules(backbone.body)[-1].get_submodule(FIRST[architecture])
    handle = first.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    states = backbone.read(encoded)
    handle.remove()
    # One vector for each read, of all the tokens of five prompts.
    assert sum(x.numel() // x.shape[-1] for x in seen) == 5 * masks
    assert masks == states.shape[1]

    wanted = torch.stack([plain(backbone, e) for e in encoded])
    torch.testing.assert_close(states, wanted, rtol=0, atol=1e-5)
    weights = [p for p in backbone.body.parameters() if p.requires_grad]
    pull = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0))
    found, expected = (
        torch.autograd.grad((made * pull).sum(), weights, allow_unused=True)
        for made in (states, wanted)
    )
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@each
def test_outside_of_a_reading_the_model_is_as_it_was(architecture: str) -> None:
    backbone = tiny.fresh(architecture)
    encoded = prompts(backbone)
    ids = torch.tensor([encoded[0].ids])
    before = backbone.body(input_ids=ids).last_hidden_state
    backbone.read(encoded)
    assert torch.equal(backbone.body(input_ids=ids).last_hidden_state, before)
    with pytest.raises(RuntimeError):
        backbone.model.get_input_embeddings().register_forward_hook(_broken)
        backbone.read(encoded)
    backbone.model.get_input_embeddings()._forward_hooks.clear()
    assert torch.equal(backbone.body(input_ids=ids).last_hidden_state, before)


def _broken(*_: Any) -> None:
    raise RuntimeError


def test_prompts_with_different_numbers_of_reads_are_read_whole() -> None:
    backbone = tiny.fresh("bert")
    one, two = prompts(backbone)[0], prompts(backbone, 2)[1]
    found = backbone.states_each([one, two])
    for encoded, states in zip((one, two), found, strict=True):
        torch.testing.assert_close(states, plain(backbone, encoded), rtol=0, atol=1e-5)
