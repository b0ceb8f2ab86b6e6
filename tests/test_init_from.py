"""`--init-from`: a training that starts where another one ended, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from promptforge import Example, PromptModel, UserError, artifact
from promptforge.backbone import load_model
from promptforge.classifier import Classifier
from promptforge.exits.model import ExitModel
from promptforge.exits.train import Joint
from promptforge.merging import tuned_backbone
from promptforge.plugins import build
from promptforge.tuning.members import Ensemble
from promptforge.tuning.tuner import Member, Tuner
from tests import adding
from tests.reference import some_words

Command = Callable[..., Any]
Folder = Callable[[str], Path]

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "all": ("all", {}),
    "bitfit": ("bitfit", {}),
    "houlsby": ("houlsby", {}),
    "trained-scale": ("adapter", {"composition": "scaled", "scale": "trained", "norm": True}),
    "lora": ("lora", {"targets": "all"}),
    "dora": ("lora", {"options": {"use_dora": True}}),
    "ia3": ("ia3", {}),
    "loha": ("peft", {"config": "loha", "options": {"r": 2}}),
    "prefix": ("prefix", {"length": 3}),
    "prefix-mlp": ("prefix", {"length": 3, "mlp": True, "hidden": 8}),
    "prompt-tuning": ("prompt-tuning", {"tokens": 4}),
    "residual": ("prompt-tuning", {"tokens": 4, "parametrization": "mlp"}),
    "low-rank": ("prompt-tuning", {"tokens": 4, "parametrization": "low-rank"}),
    "p-tuning": ("p-tuning", {"tokens": 4}),
    "unfrozen": ("prompt-tuning", {"tokens": 4, "model": "all"}),
    "mam": ("mam", {"methods": {"prefix": {"length": 3}, "scaled-parallel": {"size": 4}}}),
}


@pytest.mark.parametrize("architecture", ["bert", "t5"])
@pytest.mark.parametrize("method", METHODS)
def test_a_training_starts_where_the_other_ended(
    architecture: str, method: str, tmp_path: Path
) -> None:
    if (architecture, method) == ("t5", "bitfit"):
        pytest.skip("T5 has no biases")
    backbone = tiny.fresh(architecture)
    unchanged = adding.snapshot(backbone)
    name, options = METHODS[method]
    tuner = adding.tuner(backbone, name, **options)
    first = adding.trained(tuner)
    artifact.save(first, tmp_path / "a")
    rows = [e.row for e in tuner.train]
    expected = first.predict_proba(rows)
    untuned = tuner.untrained().predict_proba(rows)
    assert np.abs(expected - untuned).max() > 1e-3
    # Another task: other texts, and steps so short that nothing moves.
    texts = [" ".join(t.split()[:6]) for t in tiny.corpus()[20:28]]
    other = [Example({"text": t}, ("no", "yes")[i % 2], i + 1) for i, t in enumerate(texts)]
    still = tuner.settings.model_copy(update={"learning_rate": 1e-12, "steps": 1})
    second = replace(
        tuner, train=other, settings=still, init_from=str(tmp_path / "a"), trained={},
    )  # fmt: skip
    made = adding.trained(second)
    assert unchanged()
    assert np.allclose(made.predict_proba(rows), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ("lora", ("ia3", {}), "it was tuned by method 'lora', and this is method 'ia3'"),
        ("lora", ("all", {}), "it was tuned by method 'lora', and this is method 'all'.*--model"),
        ("all", ("lora", {}), "a method that adds nothing"),
        ("bitfit", ("all", {}), "were tuned here alone: it was another method"),
        ("lora", ("lora", {"targets": "all", "rank": 4}), r"down is \(32, 8\) there, and \(32, 4\) here"),
        ("lora", ("lora", {"targets": "all", "alpha": 2}), "scale of .* is 2.0 there, and 0.25 here"),
        ("lora", ("lora", {}), "there, and nothing here"),
        ("prefix", ("prefix", {"length": 5}), r"keys is \(4, 3, 8\) there, and \(4, 5, 8\) here"),
        ("prompt-tuning", ("prompt-tuning", {"tokens": 6}), r"soft/opening is \(4, 32\) there"),
        ("loha", ("peft", {"config": "loha", "options": {"r": 3}}), "differ in 'base_model.model.bert"),
    ],
)  # fmt: skip
def test_what_is_refused(
    first: str, second: tuple[str, dict[str, Any]], says: str, tmp_path: Path
) -> None:
    backbone = tiny.fresh("bert")
    unchanged = adding.snapshot(backbone)
    name, options = METHODS[first]
    artifact.save(adding.trained(adding.tuner(backbone, name, **options)), tmp_path / "a")
    tuner = adding.tuner(backbone, second[0], **second[1])
    with pytest.raises(UserError, match=f"(?s)^--init-from {re.escape(str(tmp_path))}.*{says}"):
        adding.trained(replace(tuner, init_from=str(tmp_path / "a")))
    assert unchanged()


@pytest.mark.parametrize("method", METHODS)
def test_model_is_advised_only_where_it_can_be_given(method: str, tmp_path: Path) -> None:
    backbone = tiny.fresh("bert")
    name, options = METHODS[method]
    made = adding.trained(adding.tuner(backbone, name, **options))
    artifact.save(made, tmp_path / "a")
    artifact.save(Ensemble({"p": made, "q": made}), tmp_path / "both")
    other = adding.tuner(backbone, "lora" if method in ("all", "bitfit") else "all")
    advised = []
    for folder in (tmp_path / "a", tmp_path / "both"):
        with pytest.raises(UserError, match="Choose the same method") as caught:
            adding.trained(replace(other, init_from=str(folder)))
        advised += re.findall(r"give --model (.*)\.$", str(caught.value))
    if method in (
        "loha",
        "dora",
    ):  # modules of peft: whether they can is known when it has merged them
        assert not advised
        return
    try:
        tuned_backbone(tmp_path / "a", backbone=tiny.fresh("bert"))
    except UserError:
        assert not advised
    else:
        folders = [str(tmp_path / "a"), str(tmp_path / "both" / "members" / "p")]
        assert advised == folders
        tuned_backbone(folders[1], backbone=tiny.fresh("bert"))


# --- what scores labels -------------------------------------------------------------------------


def scoring(backbone: Any, kind: str, labels: int = 2, **options: Any) -> Tuner:
    """A tuner of a verbalizer that is trained, or of a head."""
    tuner = adding.tuner(backbone, "lora", **options.pop("method", {}))
    if labels > 2:
        words = {f"label{i}": [word] for i, word in enumerate(some_words(backbone, labels))}
        train = [replace(e, label=f"label{i % labels}") for i, e in enumerate(tuner.train)]
        tuner = replace(tuner, task=replace(tuner.task, labels=words), train=train)
    made = build("verbalizer", "manual" if kind == "head" else kind, **options)
    return replace(tuner, verbalizer=made)


def scored(tuner: Tuner, kind: str) -> Classifier:
    """What it trains."""
    return tuner.member(Member("p", tuner.targets(), None if kind == "head" else "p", 3))


def still(tuner: Tuner, folder: Path) -> Tuner:
    """The same from an artifact, in a step so short that nothing moves."""
    settings = tuner.settings.model_copy(update={"learning_rate": 1e-12, "steps": 1})
    return replace(tuner, settings=settings, init_from=str(folder), trained={})


KINDS = ("soft", "prototypical", "knowledgeable", "head")


@pytest.mark.parametrize("kind", KINDS)
def test_what_scores_labels_starts_where_it_ended(kind: str, tmp_path: Path) -> None:
    tuner = scoring(tiny.fresh("bert"), kind)
    if kind == "knowledgeable":
        tuner.unlabeled = [e.row for e in tuner.train]
    rows = [e.row for e in tuner.train]
    first = scored(tuner, kind)
    expected = first.predict_proba(rows)
    artifact.save(first, tmp_path / "a")
    made = scored(still(replace(tuner, unlabeled=[]), tmp_path / "a"), kind)
    assert np.allclose(made.predict_proba(rows), expected, atol=2e-5)
    if isinstance(first, PromptModel):  # its values are what makes the difference
        first.tuned = {}
        artifact.save(first, tmp_path / "lost")
        made = scored(still(replace(tuner, unlabeled=[]), tmp_path / "lost"), kind)
        assert np.abs(made.predict_proba(rows) - expected).max() > 1e-3


def test_exits_of_a_head_start_from_it_too(tmp_path: Path) -> None:
    tuner = scoring(tiny.fresh("bert"), "head")
    first: Any = scored(tuner, "head")
    artifact.save(first, tmp_path / "a")
    made = scored(replace(still(tuner, tmp_path / "a"), exits=Joint(learning_rate=1e-12)), "head")
    assert isinstance(made, ExitModel)
    for module in made.exits.each:
        for name, value in module.named_parameters():
            assert torch.allclose(value, first.head.get_parameter(name), atol=1e-5)


def test_what_was_fitted_on_the_task_s_own_rows_stays(tmp_path: Path) -> None:
    tuner = scoring(tiny.fresh("bert"), "knowledgeable")
    tuner.unlabeled = [e.row for e in tuner.train[:3]]
    first: Any = scored(tuner, "knowledgeable")
    artifact.save(first, tmp_path / "a")
    again = still(
        replace(tuner, unlabeled=[{"text": t} for t in tiny.corpus()[20:30]]), tmp_path / "a"
    )
    made: Any = scored(again, "knowledgeable")
    fitted = again.untrained().tuned["p"]
    own, theirs = made.tuned["p"], first.tuned["p"]
    assert torch.equal(own["log_prior"], fitted["log_prior"])
    assert not torch.equal(own["log_prior"], theirs["log_prior"])
    assert torch.allclose(own["weights"], theirs["weights"], atol=1e-6)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (("soft", {}), ("manual", {}), "verbalizer 'soft' learned .* verbalizer 'manual' begins anew: they are not"),
        (("soft", {}), ("prototypical", {}), "verbalizer 'prototypical' begins anew: they are not of one"),
        (("soft", {}), ("head", {}), "verbalizer 'soft' .* classification head begins anew: they are"),
        (("head", {}), ("soft", {}), "classification head learned .* verbalizer 'soft' begins anew: they"),
        (("soft", {}), ("soft", {"labels": 3}), "begins anew: the labels there are 'no', 'yes'"),
        (("head", {}), ("head", {"labels": 3}), "begins anew: the labels there are 'no', 'yes'"),
        (("prototypical", {}), ("prototypical", {"dimension": 8}),
         r"begins anew: pro.* is \(64, 32\) there, and \(8, 32\) here"),
    ],
)  # fmt: skip
def test_what_scores_other_labels_begins_anew(
    first: tuple[str, dict[str, Any]], second: tuple[str, dict[str, Any]], says: str, tmp_path: Path
) -> None:
    backbone = tiny.fresh("bert")
    artifact.save(scored(scoring(backbone, first[0], **first[1]), first[0]), tmp_path / "a")
    tuner = still(scoring(backbone, second[0], **second[1]), tmp_path / "a")
    with pytest.warns(UserWarning, match=f"(?s)^--init-from .*/a: what .*{says}"):
        made: Any = scored(tuner, second[0])
    plain: Any = scored(replace(tuner, init_from=""), second[0])
    if second[0] != "head":
        for name, value in plain.tuned.get("p", {}).items():
            assert torch.allclose(made.tuned["p"][name], value, atol=1e-6)


def test_other_label_words_begin_anew(tmp_path: Path) -> None:
    backbone = tiny.fresh("bert")
    tuner = scoring(backbone, "soft")
    artifact.save(scored(tuner, "soft"), tmp_path / "a")
    words = some_words(backbone, 4)[2:]
    task = replace(tuner.task, labels={"no": [words[0]], "yes": [words[1]]})
    with pytest.warns(UserWarning, match="begins anew: the label words there are others"):
        scored(still(replace(tuner, task=task), tmp_path / "a"), "soft")


def test_what_learned_nothing_is_not_spoken_of(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    backbone = tiny.fresh("bert")
    artifact.save(scored(scoring(backbone, "manual"), "manual"), tmp_path / "a")
    for kind in ("soft", "head"):
        scored(still(scoring(backbone, kind), tmp_path / "a"), kind)
    assert not [w for w in recwarn if "--init-from" in str(w.message)]


def test_a_model_that_reads_otherwise_may_start_there(tiny_model: Folder, tmp_path: Path) -> None:
    name = str(tiny_model("bert"))
    first = adding.trained(adding.tuner(load_model(name), "lora"))
    artifact.save(first, tmp_path / "a")
    short = adding.tuner(load_model(name, max_length=24), "lora")
    made = adding.trained(still(short, tmp_path / "a"))
    theirs, own = (m.weights.added.tensors() for m in (first, made))  # type: ignore[union-attr]
    assert all(torch.allclose(own[n], t, atol=1e-6) for n, t in theirs.items())


# --- no start, and the command ------------------------------------------------------------------


def test_another_model_and_no_artifact(tmp_path: Path) -> None:
    tuner = adding.tuner(tiny.fresh("bert"), "bitfit")
    artifact.save(adding.trained(tuner), tmp_path / "a")
    other = adding.tuner(tiny.fresh("roberta"), "bitfit")
    with pytest.raises(UserError, match="weights of 'tiny-roberta' here are others"):
        adding.trained(replace(other, init_from=str(tmp_path / "a")))
    with pytest.raises(
        UserError, match="there is no artifact, and nothing that method 'bitfit' reads"
    ):
        adding.trained(replace(other, init_from=str(tmp_path)))


def test_the_command_resumes_and_says_where_it_started(
    command: Command, tiny_model: Folder, reviews: Path
) -> None:
    base = ("train", reviews, "--model", tiny_model("bert"), "--steps", 2, "--method", "pfeiffer")
    assert command(*base, "--pattern", "it-was", "--run", "one").code == 0
    args = (*base, "--pattern", "it-was", "--init-from", "one", "--run", "two")
    assert command(*args).code == 0
    assert command("runs", "diff", "one", "two", "--json").json["init_from"] == [None, "one"]
    assert command(*args, "--resume").code == 0
    ran = command(*args[:-4], "--run", "two", "--resume")
    assert ran.code == 2 and "init_from" in ran.err
    ran = command(
        *base[:-1], "houlsby", "--pattern", "it-was", "--init-from", "one", "--run", "three"
    )
    assert ran.code == 2 and "it was tuned by method 'pfeiffer'" in " ".join(ran.err.split())


@pytest.mark.parametrize("strategy", ["zero-shot", "priming"])
def test_what_trains_nothing_starts_from_nothing(
    strategy: str, command: Command, reviews: Path, tiny_model: Folder
) -> None:
    asked = ("train", reviews, "--model", tiny_model("bert"), "--run", "r", "--strategy", strategy)
    ran = command(*asked, "--demonstrations", "random", "--init-from", "nowhere")
    assert ran.code == 2 and "leave out --init-from nowhere" in ran.err
    assert not Path("r").exists()
