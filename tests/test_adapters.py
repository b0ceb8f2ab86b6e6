"""Adapters in every form on seven architectures, against hooks of the test's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F

from promptforge import PromptModel, UserError
from promptforge.backbone.weights import Weights
from promptforge.components import parse_options
from promptforge.plugins import build, component
from tests import adding
from tests.test_exits import albert

each = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
Command = Callable[..., Any]

#: stack -> sub-layers: kind, a matrix that takes its input, the matrix that gives its output
_BERT = [
    ("attention", "attention.self.query", "attention.output.dense"),
    ("ff", "intermediate.dense", "output.dense"),
]
_T5 = [("attention", "layer.0.SelfAttention.q", "layer.0.SelfAttention.o"),
       ("attention", "layer.1.EncDecAttention.q", "layer.1.EncDecAttention.o"),
       ("ff", "layer.2.DenseReluDense.wi", "layer.2.DenseReluDense.wo")]  # fmt: skip
_BART = [("attention", "self_attn.q_proj", "self_attn.out_proj"),
         ("attention", "encoder_attn.q_proj", "encoder_attn.out_proj"), ("ff", "fc1", "fc2")]  # fmt: skip
LAYERS: dict[str, dict[str, list[tuple[str, str, str]]]] = {
    "bert": {"bert.encoder.layer": _BERT},
    "roberta": {"roberta.encoder.layer": _BERT},
    "modernbert": {"model.layers": [("attention", "attn.Wqkv", "attn.Wo"), ("ff", "mlp.Wi", "mlp.Wo")]},
    "gpt2": {"transformer.h": [("attention", "attn.c_attn", "attn.c_proj"), ("ff", "mlp.c_fc", "mlp.c_proj")]},
    "llama": {"model.layers": [("attention", "self_attn.q_proj", "self_attn.o_proj"),
                               ("ff", "mlp.gate_proj", "mlp.down_proj")]},
    "t5": {"encoder.block": [_T5[0], ("ff", "layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo")],
           "decoder.block": _T5},
    "bart": {"model.encoder.layers": [_BART[0], _BART[2]], "model.decoder.layers": _BART},
}  # fmt: skip

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "houlsby": ("houlsby", {}),
    "pfeiffer": ("pfeiffer", {"size": 5}),
    "parallel": ("parallel", {}),
    "scaled-parallel": ("scaled-parallel", {"scale": 2.5}),
    "parallel-attention": ("adapter", {"form": "parallel", "at": "attention", "activation": "tanh"}),
    "trained-scale": ("adapter", {"composition": "scaled", "scale": "trained"}),
    "norm": ("adapter", {"norm": True, "activation": "silu"}),
    "gated": ("adapter", {"composition": "gated", "form": "parallel"}),
    "multi-head": ("adapter", {"form": "multi-head", "at": "attention", "size": 3}),
    "one-layer": ("adapter", {"layers": [1]}),
}  # fmt: skip
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh}


def places(architecture: str, at: str, layers: list[int]) -> list[tuple[str, str]]:
    """The matrices that take a sub-layer's input and give its output, by names written down here."""
    kinds = {"attention": ["attention"], "feed-forward": ["ff"], "both": ["attention", "ff"]}[at]
    return [
        (f"{stack}.{n}.{first}", f"{stack}.{n}.{last}")
        for stack, parts in LAYERS[architecture].items()
        for n in (layers or [0, 1])
        for kind, first, last in parts
        if kind in kinds
    ]


def plain(
    model: Any, where: list[tuple[str, str]], values: Mapping[str, Tensor], method: Any
) -> None:
    """Put adapters into a model by plain hooks, from the tensors of an artifact."""
    seen: dict[str, Tensor] = {}

    def made(name: str, h: Tensor, source: str) -> Tensor:
        t = {k.rpartition("/")[2]: v for k, v in values.items() if k.startswith(f"delta/{name}/")}
        x = h if method.form == "sequential" else seen[source]
        if "norm" in t:
            x = F.layer_norm(x, x.shape[-1:], t["norm"][0], t["norm"][1])
        act = ACTIVATIONS[method.activation]
        if method.form == "multi-head":
            size, heads = method.size, 4
            width = t["up"].shape[1] // heads
            parts = []
            for i in range(heads):
                one = slice(i * size, (i + 1) * size)
                up = t["up"][one, i * width : (i + 1) * width]
                parts.append(act(x @ t["down"][:, one] + t["down_bias"][one]) @ up)
            added = torch.cat(parts, -1) + t["up_bias"]
        else:
            added = act(x @ t["down"] + t["down_bias"]) @ t["up"] + t["up_bias"]
        if method.composition == "scaled":
            added = added * (t["scale"] if method.scale == "trained" else method.scale)
        if method.composition == "gated":
            share, closed = torch.sigmoid(t["gate"]), torch.sigmoid(torch.tensor(-4.0))
            return h + (share - closed) * (added - h) + closed * added
        return h + added

    for first, last in where:
        before, after = model.get_submodule(first), model.get_submodule(last)
        before.register_forward_pre_hook(lambda _, args, n=first: seen.__setitem__(n, args[0]))
        if method.form == "multi-head":
            after.register_forward_pre_hook(lambda _, a, n=last, s=first: (made(n, a[0], s),))
        else:
            after.register_forward_hook(lambda _, a, out, n=last, s=first: made(n, out, s))


@each
@pytest.mark.parametrize("form", FORMS)
def test_a_form(architecture: str, form: str) -> None:
    method, options = FORMS[form]
    backbone = tiny.fresh(architecture)
    unchanged = adding.snapshot(backbone)
    tuner = adding.tuner(backbone, method, **options)
    prompts = adding.encoded(tuner)[:4]
    frozen = adding.plain_logits(backbone, backbone.model, prompts)
    addition = adding.added(tuner)
    attached = backbone.attach([addition])
    start = adding.read_logits(backbone, prompts)
    assert torch.allclose(start, frozen, atol=1e-5)
    assert addition.undecayed() == {name for name in addition.trained() if "norm" in name}
    assert bool(addition.undecayed()) == tuner.method.norm
    adding.moved(addition, by=0.3)
    after = adding.read_logits(backbone, prompts)
    attached.close()
    assert unchanged()
    assert (after - frozen).abs().max() > 1e-2
    made: Any = tuner.method
    where = places(architecture, made.at, made.layers)
    values = addition.folded().tensors()
    assert {name.split("/")[1] for name in values} == {last for _, last in where}
    plain(backbone.model, where, values, made)
    expected = adding.plain_logits(backbone, backbone.model, prompts)
    assert torch.allclose(after, expected, atol=1e-5 * max(1.0, float(expected.abs().max())))


@each
def test_only_the_adapters_are_trained(architecture: str) -> None:
    backbone = tiny.fresh(architecture)
    unchanged = adding.snapshot(backbone)
    for method in ("pfeiffer", "houlsby"):
        tuner = adding.tuner(backbone, method, size=4)
        made = adding.trained(tuner)
        assert unchanged()
        assert made.weights is not None and made.weights.added is not None
        norms = set(made.weights.tensors)
        assert all("norm" in n.lower() or ".ln_" in n or "layer_norm" in n for n in norms)
        assert bool(norms) == (method == "houlsby")
        widths = 2 * 32 * 4 + 4 + 32
        where = places(architecture, made_at(tuner), [])
        own = sum(backbone.parameters[n].numel() for n in norms)
        assert tuner.trained["p"].parameters == widths * len(where) + own
        assert any(
            not torch.equal(v, backbone.parameters[n]) for n, v in made.weights.tensors.items()
        ) == (method == "houlsby")


def made_at(tuner: Any) -> str:
    at: str = tuner.method.at
    return at


@each
def test_mam_is_a_prefix_and_a_scaled_parallel_adapter(architecture: str) -> None:
    backbone = tiny.fresh(architecture)
    parts = {"prefix": {"length": 4}, "scaled-parallel": {"size": 6}}
    mam = adding.added(adding.tuner(backbone, "mam", methods=parts))
    combined = adding.added(adding.tuner(backbone, "combined", methods=parts))
    prefix = adding.added(adding.tuner(backbone, "prefix", length=4))
    adapter = adding.added(adding.tuner(backbone, "scaled-parallel", size=6))
    adding.moved(mam)
    adding.moved(combined)
    both = mam.folded().tensors()
    assert both.keys() == prefix.folded().tensors().keys() | adapter.folded().tensors().keys()
    assert all(torch.equal(both[n], v) for n, v in combined.folded().tensors().items())
    tuner = adding.tuner(backbone, "prefix", length=4)
    prompts = adding.encoded(tuner)[:3]
    attached = backbone.attach([mam])
    here = adding.read_logits(backbone, prompts)
    attached.close()
    # The prefix alone, and the adapter by plain hooks.
    with torch.no_grad():
        mine = list(mam.folded().prefixes())
        for name, pair in zip(mine, prefix.trained().values(), strict=True):
            pair.copy_(torch.stack(mam.prefixes()[name]))
    plain(
        backbone.model,
        places(architecture, "feed-forward", []),
        both,
        adding.tuner(backbone, "scaled-parallel").method,
    )
    attached = backbone.attach([prefix])
    there = adding.read_logits(backbone, prompts)
    attached.close()
    assert torch.allclose(here, there, atol=1e-5)


def test_targets_by_pattern() -> None:
    backbone = tiny.fresh("llama")
    made = adding.added(adding.tuner(backbone, "adapter", targets=r"\.0\.mlp\.down"))
    assert set(made.deltas()) == {"model.layers.0.mlp.down_proj"}


@each
def test_targets_beside_a_sub_layer_take_what_it_takes(architecture: str) -> None:
    """By the names of the outputs it is the same adapter as by what they are."""
    backbone = tiny.fresh(architecture)
    where = places(architecture, "both", [])
    names = "|".join(re.escape(last) for _, last in where)
    tuner = adding.tuner(backbone, "adapter", form="parallel", targets=f"^({names})$", size=4)
    prompts = adding.encoded(tuner)[:3]
    addition = adding.added(tuner)
    assert {name: d.source for name, d in addition.deltas().items()} == {b: a for a, b in where}
    adding.moved(addition, by=0.3)
    attached = backbone.attach([addition])
    here = adding.read_logits(backbone, prompts)
    attached.close()
    plain(backbone.model, where, addition.folded().tensors(), tuner.method)
    there = adding.plain_logits(backbone, backbone.model, prompts)
    assert torch.allclose(here, there, atol=1e-5 * max(1.0, float(there.abs().max())))


def test_targets_beside_a_matrix_inside_take_what_it_takes() -> None:
    backbone = tiny.fresh("bert")
    tuner = adding.tuner(backbone, "adapter", form="parallel", targets=r"1\.intermediate\.dense")
    ((name, delta),) = adding.added(tuner).deltas().items()
    assert delta.source == name == "bert.encoder.layer.1.intermediate.dense"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": "mlp.dwon"}, "no matrix matches 'mlp.dwon'. There are: 'bert.encoder.layer.0.attention.self.query'"),
        ({"targets": "["}, "targets='\\['"),
        ({"layers": [0, 5]}, "no layer 5; layers: 0 to 1"),
        ({"form": "multi-head"}, "form=multi-head is for attention: add at=attention"),
        ({"targets": "output.dense", "layers": [99]}, "layers goes with at, and targets='output.dense' stands in its"),
        ({"targets": "output.dense", "form": "multi-head"}, "form=multi-head needs the heads.*Write at=attention"),
        ({"targets": "output.dense", "at": "attention"}, "at=attention and targets='output.dense' both say where"),
        ({"scale": 2.0}, "scale=2.0 is of composition=scaled, and composition=simple has none: add composition=scaled"),
        ({"scale": "trained", "composition": "gated"}, "scale=trained is of composition=scaled, and composition=gated"),
        ({"size": 0}, "option 'size'"),
        ({"form": "diagonal"}, "option 'form'"),
    ],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"(?s){says}"):
        adding.added(adding.tuner(tiny.fresh("bert"), "adapter", **options))


@pytest.mark.parametrize("name", ["houlsby", "pfeiffer", "parallel"])
def test_a_scale_that_does_not_count(name: str) -> None:
    with pytest.raises(UserError, match=f"method '{name}': scale=3.0 is of composition=scaled"):
        adding.added(adding.tuner(tiny.fresh("bert"), name, scale=3))
    both = adding.tuner(tiny.fresh("bert"), name, scale=3, composition="scaled")
    assert {d.scale for d in adding.added(both).deltas().values()} == {3.0}


@pytest.mark.parametrize("method", ["adapter", "parallel", "lora", "ia3"])
def test_layers_that_share_their_matrices_are_changed_together(method: str) -> None:
    """ALBERT calls one layer again and again: what is added to it is added to all."""
    backbone = albert()
    with pytest.raises(
        UserError, match=rf"{method}': layers=\[0, 2\] .* the same matrices in layers 1, 3, 4 too"
    ):
        adding.added(adding.tuner(backbone, method, layers=[2, 0]))
    with pytest.raises(UserError, match=r"the same matrices in layer 4 too"):
        adding.added(adding.tuner(backbone, method, layers=[0, 1, 2, 3]))
    every = [
        adding.added(adding.tuner(backbone, method, layers=layers)).deltas()
        for layers in ([], [0, 1, 2, 3, 4])
    ]
    assert every[0].keys() == every[1].keys() and every[0]


@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_what_cannot_be_put_in_leaves_the_model_its_own(method: str) -> None:
    backbone = tiny.fresh("bert")
    same = adding.snapshot(backbone)
    there = adding.tuner(backbone, method)
    tuned = adding.trained(there)
    tuned.forget()
    rows = [e.row for e in there.train]
    expected = tuned.predict_proba(rows)
    other = adding.trained(adding.tuner(tiny.fresh("gpt2"), "lora")).weights
    assert other is not None and tuned.weights is not None
    foreign = replace(tuned.weights, added=other.added)
    with pytest.raises(UserError, match="tuned on another model"):
        PromptModel(backbone, tuned.task, weights=foreign).predict_proba(rows)
    assert same()
    assert (tuned.predict_proba(rows) == expected).all()
    if names := list(tuned.weights.tensors):
        strange = {names[0]: tuned.weights.tensors[names[0]], "no.such.weight": torch.zeros(1)}
        with pytest.raises(KeyError):
            backbone.apply(Weights(strange))
    backbone.apply(None)
    assert same()


def test_two_that_change_one_matrix() -> None:
    methods: dict[str, Any] = {"pfeiffer": {}, "houlsby": {}}
    with pytest.raises(UserError, match=r"two methods add to .*output\.dense"):
        adding.added(adding.tuner(tiny.fresh("bert"), "combined", methods=methods))
    with pytest.raises(UserError, match="two methods or more"):
        adding.added(adding.tuner(tiny.fresh("bert"), "combined", methods={"prefix": {}}))
    twice: list[dict[str, Any]] = [{"prefix": {}, "mam": {}}, {"prompt-tuning": {}, "p-tuning": {}}]
    for methods in twice:
        with pytest.raises(UserError, match="method 'combined': two methods add to"):
            adding.added(adding.tuner(tiny.fresh("bert"), "combined", methods=methods))


def test_the_model_s_own_weights_keep_their_rate_beside_others() -> None:
    methods: dict[str, Any] = {"lora": {}, "prompt-tuning": {"tokens": 2, "model": "bitfit"}}
    parts = [build("method", name, **options) for name, options in methods.items()]
    made = build("method", "combined", methods=methods)
    alone = parts[1].learning_rate * parts[1].model_share
    assert alone != made.learning_rate
    assert made.learning_rate * made.model_share == pytest.approx(alone)
    # Norms that an adapter trains beside it learn as it does.
    houlsby = build("method", "combined", methods={"houlsby": {}, "prompt-tuning": {}})
    assert houlsby.model_share == 1.0


def test_one_option_of_mam_is_set_alone() -> None:
    found = parse_options(
        ["method.methods.prefix.length=3"], {"method": component("method", "mam")}
    )
    methods = build("method", "mam", **found["method"]).methods
    assert methods == {"prefix": {"length": 3}, "scaled-parallel": {"size": 48}}


def test_the_command_says_how_many_parameters(
    command: Command, tiny_model: Callable[[str], Path], reviews: Path
) -> None:
    base = ("train", reviews, "--model", tiny_model("gpt2"), "--pattern", "it-was", "--steps", 2)
    ran = command(*base, "--method", "parallel", "-o", "method.size=8", "--run", "run")
    assert ran.code == 0, ran.err
    count = 2 * (2 * 32 * 8 + 8 + 32)
    said = " ".join(ran.out.split())
    assert f"{count:,} trained parameters, an artifact of" in said
    shown = " ".join(command("runs", "show", "run").out.split())
    assert f"trained parameters {count:,}, artifact" in shown
    assert re.search(r"training \d+ s, at most [\d.]+ MB of memory", shown)
    size = sum(p.stat().st_size for p in Path("run/artifact").iterdir())
    results = command("runs", "show", "run", "--json").json["results"]
    assert (results["parameters"], results["size"]) == (count, size)
    assert Path("run/artifact/weights.safetensors").stat().st_size < 4 * count + 4000
