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

from promptforge import Example, UserError, artifact
from tests import adding

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
