"""LoRA, (IA)^3 and the rest of peft: against peft itself, both ways, and bit-identical removal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import plain_tuning as plain
import pytest
import tiny
import torch
from promptforge_peft.additions import Injected
from safetensors.torch import load_file

from promptforge import UserError, artifact
from promptforge.backbone import Folded
from promptforge.plugins import build
from tests import adding

each = pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
Command = Callable[..., Any]
Folder = Callable[[str], Path]

#: Further configurations: what they need besides their targets on models of 32 units.
KINDS: dict[str, dict[str, Any]] = {
    "loha": {"r": 4}, "lokr": {"r": 4}, "oft": {"oft_block_size": 8, "r": 0}, "vera": {"r": 8},
    "hra": {}, "ln_tuning": {}, "fourierft": {"n_frequency": 20}, "shira": {"r": 4}, "miss": {"r": 8},
    "road": {"group_size": 8}, "randlora": {"r": 4}, "c3a": {"block_size": 16}, "delora": {},
    "vblora": {"vector_length": 8}, "waveft": {"n_frequency": 50}, "trainable_tokens": {"token_indices": [5, 6]},
    "osf": {}, "tinylora": {}, "psoft": {"r": 8},
}  # fmt: skip


def plain_peft(architecture: str, folder: Path) -> Any:
    """A fresh copy of the model as plain peft reads an adapter into it."""
    return peft.PeftModel.from_pretrained(tiny.fresh(architecture).model, folder)


# --- LoRA and (IA)^3 --------------------------------------------------------------------------


@each
@pytest.mark.parametrize(
    ("method", "options"),
    [("lora", {"targets": "all"}), ("ia3", {}), ("lora", {"rslora": True, "rank": 3, "layers": [1]}),
     ("lora", {"targets": "feed-forward", "options": {"use_dora": True}})],
)  # fmt: skip
def test_trained_here_and_read_by_peft(
    architecture: str, method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    if options.get("layers") and architecture == "modernbert":
        pytest.skip("its first layer alone is like the others")
    backbone = tiny.fresh(architecture)
    unchanged = adding.snapshot(backbone)
    tuner = adding.tuner(backbone, method, **options)
    prompts = adding.encoded(tuner)
    before = adding.read_logits(backbone, prompts)
    attached = backbone.attach([adding.added(tuner)])
    assert torch.allclose(adding.read_logits(backbone, prompts), before, atol=1e-5)
    attached.close()
    assert unchanged()

    member = adding.trained(tuner)
    assert unchanged()
    artifact.save(member, tmp_path / "a")
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert names == {"artifact.json", "adapter_config.json", "adapter_model.safetensors"}
    backbone.apply(member.weights)
    here = adding.read_logits(backbone, prompts)
    assert (here - before).abs().max() > 1e-3
    backbone.apply(None)
    assert unchanged()
    theirs = adding.plain_logits(backbone, plain_peft(architecture, tmp_path / "a"), prompts)
    assert torch.allclose(here, theirs, atol=2e-6 * float(theirs.abs().max()))

    again = artifact.load(tmp_path / "a", backbone=backbone)
    rows = [e.row for e in tuner.train]
    assert (again.predict_proba(rows) == member.predict_proba(rows)).all()


@each
def test_the_matrices_are_those_that_a_model_calls_around_its_attention(architecture: str) -> None:
    backbone = tiny.fresh(architecture)
    changed = {
        targets: set(adding.added(adding.tuner(backbone, "lora", targets=targets)).deltas())
        for targets in ("attention", "feed-forward", "all")
    }
    assert changed["attention"] | changed["feed-forward"] == changed["all"]
    assert not changed["attention"] & changed["feed-forward"]
    body = {n for n in backbone.matrices if ".layer" in n or ".h." in n or ".block." in n}
    assert changed["all"] == body and len(body) < len(backbone.matrices) + (architecture != "bert")
    ffn = {"bert": 4, "roberta": 4, "modernbert": 4, "gpt2": 4, "llama": 6, "t5": 8, "bart": 8}
    assert len(changed["feed-forward"]) == ffn[architecture]


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "t5"])
def test_lora_trains_as_peft_does(architecture: str) -> None:
    """The same start, data and steps: the same losses and the same matrices."""
    backbone = plain.fresh(architecture)
    tuner = adding.tuner(backbone, "lora", targets="all", rank=4)
    start = adding.added(tuner).folded()
    config = json.loads(start.texts()["adapter_config.json"])
    model = peft.get_peft_model(
        plain.fresh(architecture).model, peft.PeftConfig.from_peft_type(**config)
    )
    peft.set_peft_model_state_dict(model, start.tensors())
    addition = adding.added(tuner)
    attached = backbone.attach([addition])
    prompts, words = adding.encoded(tuner)[:4], torch.tensor([5, 6, 7, 8])
    ours = torch.optim.AdamW(addition.trained().values(), lr=1e-2)
    theirs = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for p in backbone.model.parameters():
        p.requires_grad_(False)
    for _ in range(4):
        logits = [model(**adding.inputs(backbone, e)).logits[0, e.reads[0]] for e in prompts]
        loss = torch.nn.functional.cross_entropy(torch.stack(logits), words)
        theirs.zero_grad()
        loss.backward()
        theirs.step()
        own = torch.nn.functional.cross_entropy(
            backbone.logits(backbone.read(prompts)[:, 0]), words
        )
        ours.zero_grad()
        own.backward()
        ours.step()
        assert abs(float((own - loss).detach())) < 1e-5
    attached.close()
    expected, found = peft.get_peft_model_state_dict(model), addition.folded().tensors()
    assert expected.keys() == found.keys() == start.tensors().keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
        assert float((value - start.tensors()[name]).abs().max()) > 1e-3


def test_lora_shares_a_pass_with_other_tasks() -> None:
    backbone = tiny.fresh("llama")
    tuner = adding.tuner(backbone, "lora", targets="all")
    parts = [adding.added(tuner, seed=i) for i in range(3)]
    for i, part in enumerate(parts):
        adding.moved(part, seed=i)
    folded = [p.folded() for p in parts]
    assert all(isinstance(f, Folded) for f in folded)
    prompts = adding.encoded(tuner)[:3]
    attached = backbone.attach(folded)
    together = adding.read_logits(backbone, [replace(e, task=i) for i, e in enumerate(prompts)])
    attached.close()
    for i, one in enumerate(folded):
        attached = backbone.attach([one])
        alone = adding.read_logits(backbone, [prompts[i]])
        attached.close()
        assert torch.allclose(together[i], alone[0], atol=1e-5)


# --- every other configuration ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_any_configuration(kind: str, tmp_path: Path) -> None:
    backbone = tiny.fresh("bert")
    unchanged = adding.snapshot(backbone)
    tuner = adding.tuner(backbone, "peft", config=kind, options=KINDS[kind], steps=2)
    prompts = adding.encoded(tuner)[:3]
    before = adding.read_logits(backbone, prompts)
    member = adding.trained(tuner)
    assert unchanged() and not hasattr(backbone.model, "peft_config")
    assert member.weights is not None and tuner.trained["p"].parameters > 0
    artifact.save(member, tmp_path / "a")
    again = artifact.load(tmp_path / "a", backbone=backbone)
    read = []
    for weights in (member.weights, again.weights):
        backbone.apply(weights)
        read.append(adding.read_logits(backbone, prompts))
    backbone.apply(None)
    assert unchanged()
    assert torch.equal(*read) and not torch.equal(read[0], before)
    theirs = adding.plain_logits(backbone, plain_peft("bert", tmp_path / "a"), prompts)
    assert torch.allclose(read[0], theirs, atol=1e-4)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_starts_that_change_the_matrices_themselves(start: str, tmp_path: Path) -> None:
    backbone = tiny.fresh("bert")
    unchanged, checksum = adding.snapshot(backbone), backbone.checksum
    tuner = adding.tuner(backbone, "lora", options={"init_lora_weights": start})
    member = adding.trained(tuner)
    assert unchanged() and isinstance(member.weights.added, Injected)
    artifact.save(member, tmp_path / "a")
    prompts = adding.encoded(tuner)
    rows = [e.row for e in tuner.train]
    expected = member.predict_proba(rows)
    other = tiny.fresh("bert")
    assert (artifact.load(tmp_path / "a", backbone=other).predict_proba(rows) == expected).all()
    assert other.checksum == checksum
    for read in (
        artifact.load(tmp_path / "a", backbone=backbone).weights.added,
        build("method", "lora").read(backbone, tmp_path / "a"),
    ):
        assert unchanged()
        attached = backbone.attach([read])
        here = adding.read_logits(backbone, prompts)
        attached.close()
        assert unchanged()
        theirs = adding.plain_logits(backbone, plain_peft("bert", tmp_path / "a"), prompts)
        assert torch.allclose(here, theirs, atol=1e-4)


def test_an_interrupt_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny.fresh("bert")
    unchanged = adding.snapshot(backbone)
    make = peft.get_peft_model

    def interrupted(*args: Any) -> None:
        make(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(peft, "get_peft_model", interrupted)
    tuner = adding.tuner(backbone, "lora", options={"init_lora_weights": "olora"})
    with pytest.raises(KeyboardInterrupt):
        adding.added(tuner)
    assert unchanged()


@pytest.mark.parametrize(
    ("architecture", "target", "other"),
    [("gpt2", "lm_head", "transformer.wte"), ("gpt2", "wte", "lm_head"),
     ("bert", "decoder", "word_embeddings"), ("t5", "shared", "lm_head")],
)  # fmt: skip
def test_one_of_two_tied_matrices_is_not_merged(architecture: str, target: str, other: str) -> None:
    backbone = tiny.fresh(architecture)
    output = backbone.model.get_output_embeddings()
    assert backbone.model.get_input_embeddings().weight is output.weight
    unchanged = adding.snapshot(backbone)
    tuner = adding.tuner(backbone, "peft", options={"target_modules": [target]})
    with pytest.raises(UserError, match=rf"^peft's LORA changes .*{target}', .*{other}.* out of"):
        adding.added(tuner).merge_into(backbone)
    assert unchanged()


@pytest.mark.parametrize("method", ["lora", "peft"])
def test_trained_tokens_of_tied_matrices_are_merged(method: str) -> None:
    backbone = tiny.fresh("gpt2")
    options: dict[str, Any] = {"config": "trainable_tokens", "options": {"token_indices": [5, 6]}}
    if method == "lora":
        options = {"options": {"trainable_token_indices": [5, 6]}}
    tuner = adding.tuner(backbone, method, **options)
    prompts = adding.encoded(tuner)
    added = adding.added(tuner)
    attached = backbone.attach([added])
    adding.moved(added)
    expected = adding.read_logits(backbone, prompts)
    attached.close()
    added.merge_into(backbone)
    assert torch.allclose(adding.read_logits(backbone, prompts), expected, atol=1e-5)


def test_layers_by_the_names_of_matrices() -> None:
    """The ways that the errors for `layers_to_transform` point to."""
    backbone = tiny.fresh("bert")
    ways: list[tuple[str, dict[str, Any]]] = [
        ("lora", {"layers": [1]}),
        ("peft", {"targets": r"\.1\..*attention"}),
        ("peft", {"options": {"target_modules": ["query"], "layers_to_transform": 1}}),
    ]
    for method, options in ways:
        found = adding.added(adding.tuner(backbone, method, **options)).deltas()
        assert found and all("layer.1.attention" in name for name in found)


# --- going on from what was tuned -------------------------------------------------------------

QUERY = {"target_modules": ["query"]}


@pytest.mark.parametrize(
    ("method", "first", "second", "says"),
    [
        ("peft", {"config": "loha", "options": {"r": 4, "alpha": 8}}, {"config": "loha", "options": {"r": 4, "alpha": 64}},
         "alpha of peft's LOHA is 8 there, and 64 here"),
        ("lora", {"alpha": 16, "options": {"use_dora": True}}, {"alpha": 32, "options": {"use_dora": True}},
         "lora_alpha of peft's LORA is 16.0 there, and 32.0 here"),
        ("peft", {"config": "oft", "options": KINDS["oft"]}, {"config": "oft", "options": {**KINDS["oft"], "coft": True}},
         "coft of peft's OFT is False there, and True here"),
        ("peft", {"config": "trainable_tokens", "options": {"token_indices": [5, 6]}},
         {"config": "trainable_tokens", "options": {"token_indices": [5, 7]}}, r"token_indices .* is \[5, 6\] there"),
        ("peft", {"config": "unilora", "options": QUERY}, {"config": "unilora", "options": {"target_modules": ["key"]}},
         r"target_modules of peft's UNILORA is \['query'\] there, and \['key'\] here"),
        ("lora", {}, {"options": {"init_lora_weights": "pissa"}}, "init_lora_weights .* is True there, and 'pissa' here"),
        ("lora", {"options": {"use_dora": True}}, {}, "there, and .* here"),
        ("lora", {"options": {"bias": "lora_only"}}, {"options": {"use_dora": True}}, "the two differ in"),
    ],
)  # fmt: skip
def test_another_function_of_the_same_tensors_is_refused(
    method: str, first: dict[str, Any], second: dict[str, Any], says: str, tmp_path: Path
) -> None:
    backbone = tiny.fresh("bert")
    unchanged = adding.snapshot(backbone)
    artifact.save(adding.trained(adding.tuner(backbone, method, **first)), tmp_path / "a")
    tuner = replace(adding.tuner(backbone, method, **second), init_from=str(tmp_path / "a"))
    with pytest.raises(UserError, match=f"^--init-from .*: .*{says}"):
        adding.trained(tuner)
    assert unchanged()


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("lora", {**QUERY, "use_dora": True, "lora_dropout": 0.2, "task_type": "FEATURE_EXTRACTION",
                  "init_lora_weights": "gaussian"}, {"use_dora": True}),
        ("loha", {**QUERY, "r": 4, "rank_dropout": 0.1}, {"r": 4, "init_weights": False}),
        ("vera", {**QUERY, "r": 8, "d_initial": 0.5}, {"r": 8}),
    ],
    ids=["dora", "loha", "vera"],
)  # fmt: skip
def test_the_same_function_in_other_words_goes_on(
    kind: str, first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    """An adapter of plain peft that names its matrices by their endings, of a version with fewer options."""
    config = peft.PeftConfig.from_peft_type(peft_type=kind.upper(), **first)
    theirs = made_with_peft("bert", tmp_path / "a", config)
    file = tmp_path / "a" / "adapter_config.json"
    told = json.loads(file.read_text("utf-8"))
    fewer = {k: v for k, v in told.items() if k not in ("alpha_pattern", "bias", "peft_version")}
    file.write_text(json.dumps(fewer), encoding="utf-8")
    backbone = tiny.fresh("bert")
    options = {"config": kind, "targets": "query", "options": second}
    tuner = adding.tuner(backbone, "peft", **options, steps=1)
    still = tuner.settings.model_copy(update={"learning_rate": 1e-12})
    made = adding.trained(replace(tuner, settings=still, init_from=str(tmp_path / "a")))
    prompts = adding.encoded(tuner)
    backbone.apply(made.weights)
    here = adding.read_logits(backbone, prompts)
    backbone.apply(None)
    assert torch.allclose(here, adding.plain_logits(backbone, theirs, prompts), atol=1e-4)


# --- adapters made with plain peft ------------------------------------------------------------


def made_with_peft(architecture: str, folder: Path, config: Any) -> Any:
    """An adapter with random values, saved by peft; the model with it."""
    model = peft.get_peft_model(tiny.fresh(architecture).model, config)
    torch.manual_seed(4)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("bert", peft.LoraConfig(target_modules="all-linear", r=3)),
        ("gpt2", peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, rank_pattern={"h.1.attn.c_attn": 5})),
        ("llama", peft.LoraConfig(target_modules=["q_proj", "v_proj"], use_dora=True)),
        ("t5", peft.IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"])),
        ("bart", peft.LoHaConfig(target_modules=["fc1", "out_proj"], r=2)),
        ("roberta", peft.LoraConfig(target_modules=["query"], bias="lora_only")),
    ],
    ids=["lora", "rank-pattern", "dora", "ia3", "loha", "biases"],
)  # fmt: skip
def test_an_adapter_of_peft_is_read(architecture: str, config: Any, tmp_path: Path) -> None:
    theirs = made_with_peft(architecture, tmp_path / "theirs", config)
    backbone = tiny.fresh(architecture)
    unchanged = adding.snapshot(backbone)
    prompts = adding.encoded(adding.tuner(backbone))
    found = build("method", "peft").read(backbone, tmp_path / "theirs")
    attached = backbone.attach([found])
    here = adding.read_logits(backbone, prompts)
    attached.close()
    assert unchanged()
    assert torch.allclose(here, adding.plain_logits(backbone, theirs, prompts), atol=1e-5)


def test_an_adapter_is_read_while_another_is_in_the_model(tmp_path: Path) -> None:
    made_with_peft("bert", tmp_path / "theirs", peft.LoraConfig(target_modules=["query"]))
    backbone = tiny.fresh("bert")
    there = adding.tuner(backbone, "peft", config="loha")
    adding.trained(there).predict_proba([e.row for e in there.train])
    found = build("method", "lora").read(backbone, tmp_path / "theirs")
    assert isinstance(found, Folded)
    assert found.deltas().keys() == {n for n in backbone.matrices if n.endswith("query")}


def test_commands_with_an_adapter_of_peft(
    command: Command, tiny_model: Folder, reviews: Path, tmp_path: Path
) -> None:
    config = peft.LoraConfig(target_modules=["query", "value"], r=8, lora_alpha=16)
    made_with_peft("bert", tmp_path / "theirs", config)
    base = (reviews, "--model", tiny_model("bert"), "--pattern", "it-was")
    plain = command("evaluate", *base, "--json").json
    read = command("evaluate", *base, "--adapter", tmp_path / "theirs", "--json").json
    assert plain.keys() == read.keys() and plain != read
    predicted = command(
        "predict", *base, "--data", reviews / "test.csv", "--adapter", tmp_path / "theirs"
    )
    assert predicted.code == 0, predicted.err
    ran = command("evaluate", *base, "--adapter", reviews)
    assert ran.code == 2 and "no adapter_config.json" in ran.err
    options = ("--method", "lora", "-o", r"method.targets=self\.(query|value)", "--steps", 2)
    ran = command(
        "train", *base, *options, "--init-from", tmp_path / "theirs", "--run", "run", "--json"
    )
    assert ran.code == 0, ran.err
    start = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    after = load_file(tmp_path / "run" / "artifact" / "adapter_model.safetensors")
    assert start.keys() == after.keys()
    assert all((start[n] - after[n]).abs().max() < 0.02 for n in start)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("lora", {"targets": "qwery"}, "no matrix matches 'qwery'.*bert.encoder.layer.0.attention.self.query"),
        ("lora", {"targets": "("}, "targets='\\('"),
        ("lora", {"layers": [7]}, "no layer 7; layers: 0 to 1"),
        ("lora", {"options": {"use_dorra": True}}, "no option 'use_dorra'.*Did you mean 'use_dora'"),
        ("lora", {"options": {"modules_to_save": ["cls"]}}, "leave modules_to_save empty"),
        ("lora", {"options": {"alora_invocation_tokens": [5, 6]}}, r"alora_invocation_tokens=\[5, 6\].*leave alora"),
        ("peft", {"options": {"alora_invocation_tokens": [5, 6]}}, "leave alora_invocation_tokens out"),
        ("lora", {"options": {"layer_replication": [[0, 2], [0, 2]]}}, "leave layer_replication out"),
        ("peft", {"options": {"layer_replication": [[0, 2], [0, 2]]}}, "leave layer_replication out"),
        ("lora", {"options": {"r": 4}}, "r in options is the method's own option rank: write -o method.rank=..., and"),
        ("lora", {"options": {"lora_alpha": 4}}, "lora_alpha in options is the method's own option alpha"),
        ("lora", {"options": {"lora_dropout": 0.1}}, "lora_dropout in options is the method's own option dropout"),
        ("lora", {"options": {"use_rslora": True}}, "use_rslora in options is the method's own option rslora"),
        ("lora", {"options": {"target_modules": ["query"]}}, "own option targets: .* leave target_modules out .*peft"),
        ("lora", {"options": {"layers_to_transform": [0]}}, "own option layers"),
        ("lora", {"options": {"layers_pattern": "layer"}}, "own option layers"),
        ("peft", {"targets": "all", "options": {"target_modules": ["query"]}}, "targets='all' and target_modules in"),
        ("peft", {"targets": "all", "config": "ln_tuning"}, "targets='all' names matrices, and .* trains norms"),
        ("peft", {"targets": "all", "config": "trainable_tokens", "options": {"token_indices": [5]}}, "trains embeddings"),
        ("peft", {"options": {"layers_to_transform": 0}}, "has no effect.*in targets"),
        ("peft", {"config": "lorra"}, "no configuration 'lorra'. Did you mean 'lora'"),
        ("peft", {"config": "prefix_tuning"}, "use --method prefix"),
        ("peft", {"config": "p-tuning"}, "use --method p-tuning"),
        ("peft", {"config": "adalora"}, "training loop of its own"),
        ("peft", {"config": "loha", "options": {"target_modules": ["nope"]}}, "nope.*Matrices of the model: 'bert"),
        ("peft", {"config": "adaption_prompt"}, "cannot be put into tiny-bert"),
        ("peft", {"config": "trainable_tokens", "options": {"target_modules": ["word_embeddings"]}}, "name their ids"),
        ("peft", {"config": "trainable_tokens"}, "name their ids, as in -o method.options='{\"token_indices\""),
        ("ia3", {"layers": [2]}, "no layer 2"),
        ("lora", {"options": {"init_lora_weights": "eva"}}, "init_lora_weights=eva starts from a pass over data"),
        ("peft", {"options": {"init_lora_weights": "lora_ga"}}, "init_lora_weights=lora_ga starts from a pass"),
        ("lora", {"options": {"use_qalora": True}}, "use_qalora is for a model of whole numbers"),
        ("lora", {"options": {"kasa_config": {}}}, "kasa_config adds to the loss .* would do nothing here"),
        ("peft", {"config": "adamss", "options": {"use_asa": True}}, "use_asa changes what is trained by a callback"),
        ("lora", {"options": {"rank_pattern": {"nosuch": 4}}}, "rank_pattern has 'nosuch', and no matrix .*self.query"),
        ("peft", {"options": {"alpha_pattern": {"quer": 4}}}, "alpha_pattern has 'quer', and no matrix"),
        ("lora", {"options": {"init_lora_weights": "pissa_niter_4"}}, "other results at every load: .*='pissa'"),
        ("peft", {"options": {"init_lora_weights": "pissa_niter_4"}}, "other results at every load: .*='pissa'"),
    ],
)  # fmt: skip
def test_what_is_refused(method: str, options: dict[str, Any], says: str) -> None:
    backbone = tiny.fresh("bert")
    unchanged = adding.snapshot(backbone)
    tuner = adding.tuner(backbone, method, **options)
    with pytest.raises(UserError, match=f"(?s){says}"):
        adding.added(tuner)
    assert unchanged()


def test_a_start_that_is_drawn_at_every_load_is_not_read(tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["query"], init_lora_weights="pissa_niter_4")
    made_with_peft("bert", tmp_path / "a", config)
    with pytest.raises(UserError, match="other results at every load"):
        build("method", "lora").read(tiny.fresh("bert"), tmp_path / "a")


def test_a_damaged_or_foreign_adapter(
    tmp_path: Path, command: Command, tiny_model: Folder, reviews: Path
) -> None:
    config = peft.LoraConfig(target_modules=["query", "value"])
    made_with_peft("bert", tmp_path / "a", config)
    method, other = build("method", "peft"), tiny.fresh("roberta")
    with pytest.raises(UserError, match=r"no place for|another shape|cannot be put"):
        method.read(other, tmp_path / "a")
    tuner = adding.tuner(tiny.fresh("bert"), "lora")
    member = adding.trained(tuner)
    artifact.save(member, tmp_path / "ours")
    artifact.save(member, tmp_path / "ours")  # one that is there is replaced
    artifact.save(member, tmp_path / "intact")
    tensors = tmp_path / "ours" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    with pytest.raises(Exception, match="checksum is wrong"):
        artifact.load(tmp_path / "ours", backbone=tuner.backbone)
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    ran = command("evaluate", reviews, "--model", tiny_model("bert"), "--adapter", tmp_path / "a")
    assert ran.code == 2 and "could run code" in " ".join(ran.err.split())
    with pytest.raises(UserError, match="weights of 'tiny-roberta' here are others"):
        artifact.load(tmp_path / "intact", backbone=other)
