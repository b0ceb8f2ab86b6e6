"""What is read from artifacts besides plain prompt models: several labels, precisions, generators."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generating
import numpy as np
import pytest
import tiny
import torch
from labelling import some, task
from promptforge_peft.export import export

from promptforge import (
    Generator,
    PromptForgeError,
    PromptModel,
    Settings,
    Task,
    Template,
    UserError,
    artifact,
    train,
)
from promptforge.backbone import load_model
from promptforge.bank import TaskBank
from promptforge.exits.model import ExitModel
from promptforge.merging import merge
from promptforge.tuning.members import HeadModel
from tests import adding

Command = Callable[..., Any]
Folder = Callable[[str], Path]


def trained(folder: Path, model: Path, method: str, **options: Any) -> Path:
    """An artifact of a task with several labels a row."""
    backbone = options.pop("backbone", None) or load_model(str(model))
    run = train(
        task(name="topics"), some(8), backbone=backbone, method=method, dev=some(8),
        settings=Settings(steps=2, batch_size=4), **options,
    )  # fmt: skip
    artifact.save(run.classifier, folder, {"task": task(name="topics").to_json()})
    return folder


def loaded(folder: Path, **options: Any) -> Any:
    """The classifier of an artifact."""
    return artifact.load(folder, **options)


# --- several labels a row -----------------------------------------------------------------------


def test_a_task_of_several_labels_is_the_first_of_a_bank(
    tiny_model: Folder, tmp_path: Path, command: Command
) -> None:
    first = trained(tmp_path / "first", tiny_model("bert"), "prefix")
    other = trained(tmp_path / "other", tiny_model("bert"), "lora")
    bank = TaskBank.load({"a": first, "b": other})
    rows = [e.row for e in some(6)]
    alone = loaded(first).predict_proba(rows)
    found = bank.predict_proba([("a", row) for row in rows])
    np.testing.assert_allclose(found, alone, atol=1e-5)
    data = tmp_path / "rows.jsonl"
    lines = [{"task": "topics", "text": row["text"]} for row in rows]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    ran = command("predict-many", first, "--data", data, "--format", "jsonl")
    assert ran.code == 0, ran.err
    told = [json.loads(line) for line in ran.out.splitlines()]
    assert [r["prediction"] for r in told] == loaded(first).predict(rows)


def test_a_task_of_several_labels_is_merged_and_exported(
    tiny_model: Folder, tmp_path: Path
) -> None:
    lora = trained(tmp_path / "lora", tiny_model("bert"), "lora")
    merge(lora, tmp_path / "merged")
    rows = [e.row for e in some(4)]
    tuned = loaded(lora)
    plain = PromptModel(load_model(str(tmp_path / "merged")), task().binary)
    questions = list(tuned.multi_label.asked(rows))
    there = plain.predict_proba(questions)
    np.testing.assert_allclose(tuned.binary.predict_proba(questions), there, atol=1e-5)
    export(lora, tmp_path / "peft")
    copied = (tmp_path / "peft" / "adapter_model.safetensors").read_bytes()
    inner = lora / "members" / "binary" / "adapter_model.safetensors"
    assert copied == inner.read_bytes()


# --- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prefix", "lora", "prompt-tuning", "all"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_the_model_of_an_artifact_is_cast(
    architecture: str, method: str, tiny_model: Folder, tmp_path: Path
) -> None:
    folder = trained(tmp_path / "a", tiny_model(architecture), method)
    rows = [e.row for e in some(8)]
    own = loaded(folder)
    half = loaded(folder, dtype="bfloat16")
    dtypes = {p.dtype for p in half.binary.backbone.model.parameters()}
    assert dtypes == {torch.bfloat16}
    away = abs(own.predict_proba(rows) - half.predict_proba(rows)).max()
    assert 0 < away < 0.05
    # It is still the model that it was: saved again it loads as it did.
    artifact.save(half, tmp_path / "again")
    again = loaded(tmp_path / "again")
    assert again.binary.backbone.model.dtype == torch.float32
    assert abs(own.predict_proba(rows) - again.predict_proba(rows)).max() < 0.05
    if method != "all":
        bank = TaskBank.load({"a": folder, "b": folder}, dtype="bfloat16")
        assert bank.backbone.model.dtype == torch.bfloat16
        found = bank.predict_proba([("b", row) for row in rows])
        np.testing.assert_allclose(found, half.predict_proba(rows), atol=0.02)


def test_a_cast_model_is_what_transformers_loads(tiny_model: Folder, tmp_path: Path) -> None:
    folder = trained(tmp_path / "a", tiny_model("llama"), "prefix")
    half = loaded(folder, dtype="bfloat16").binary.backbone.model
    theirs = load_model(str(tiny_model("llama")), dtype="bfloat16").model
    for (name, here), (_, there) in zip(
        [*half.named_parameters(), *half.named_buffers()],
        [*theirs.named_parameters(), *theirs.named_buffers()],
        strict=True,
    ):
        assert here.dtype == there.dtype and torch.equal(here, there), name


@pytest.mark.parametrize("options", [{"strategy": "finetune"}, {"exits": "joint"}])
def test_heads_and_exits_are_cast_too(
    options: dict[str, Any], tiny_model: Folder, tmp_path: Path
) -> None:
    folder = trained(tmp_path / "a", tiny_model("bert"), "all", **options)
    rows = [e.row for e in some(4)]
    half = loaded(folder, dtype="bfloat16")
    assert isinstance(half.binary, HeadModel | ExitModel)
    away = abs(loaded(folder).predict_proba(rows) - half.predict_proba(rows)).max()
    assert away < 0.03


def test_commands_cast_only_where_they_are_told(
    tiny_model: Folder, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = load_model(str(tiny_model("bert")), dtype="bfloat16")
    folder = trained(tmp_path / "a", tiny_model("bert"), "prefix", backbone=half)
    data = tmp_path / "rows.jsonl"
    name = task(name="topics").name
    lines = [{"task": name, "text": e.row["text"]} for e in some(3)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    seen: list[torch.dtype] = []
    checked = artifact._parts

    def parts(*given: Any) -> Any:
        made = checked(*given)
        seen.append(made.backbone.model.dtype)
        return made

    monkeypatch.setattr(artifact, "_parts", parts)
    for name in ("predict", "predict-many"):
        for asked, expected in (((), torch.bfloat16), (("--dtype", "float32"), torch.float32)):
            seen.clear()
            ran = command(name, folder, "--data", data, *asked)
            assert ran.code == 0, ran.err
            assert set(seen) == {expected}
    with pytest.raises(UserError, match="dtype 'float31': choose one of float32"):
        loaded(folder, dtype="float31")


# --- generators ---------------------------------------------------------------------------------


def edited(folder: Path, old: str, new: str) -> None:
    path = folder / "artifact.json"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("method", ["prefix", "prompt-tuning"])
def test_a_generator_with_another_template_is_refused(method: str, tmp_path: Path) -> None:
    made = generating.tuned("gpt2", method)
    made.save(tmp_path / "a")
    assert Generator.load(tmp_path / "a", backbone=made.backbone).room == made.room
    edited(tmp_path / "a", "{{ table }} = {{ mask }}", "{{ table }}: {{ mask }}")
    with pytest.raises(UserError, match=r"templates of the task 'tables'.*changed after"):
        Generator.load(tmp_path / "a", backbone=made.backbone)
    made.backbone.apply(None)


@pytest.mark.parametrize("soft", ["soft(n=4, id='own')", "soft(n=3, id='other')"])
def test_a_generator_reads_only_the_soft_tokens_that_were_tuned(soft: str) -> None:
    backbone = tiny.backbone("gpt2")
    backbone.apply(None)
    asked = generating.task("{{ soft(n=3, id='own') }} {{ table }} = {{ mask }}")
    from promptforge.backbone.weights import Weights
    from promptforge.plugins import build

    method = build("method", "prompt-tuning")
    sources = Generator(backbone, asked).sources(generating.ROWS)
    added = method.add(backbone, sources, {})
    added.made_by = {"name": method.name, "options": method.model_dump(mode="json")}
    weights = Weights(added=added.folded())
    assert Generator(backbone, asked, weights=weights).generate(generating.ROWS[:1])
    other = generating.task("{{ " + soft + " }} {{ table }} = {{ mask }}")
    with pytest.raises(UserError, match=r"what was tuned are.*own.*3 tokens"):
        Generator(backbone, other, weights=weights).generate(generating.ROWS[:1])
    backbone.apply(None)


# --- the model's revision -----------------------------------------------------------------------


def test_the_commit_of_a_hub_model_is_kept(tiny_model: Folder, tmp_path: Path) -> None:
    backbone = load_model(str(tiny_model("bert")))
    film = Task.inline(
        [Template("{{ text }} It was {{ mask }}")], labels={"a": ["bad"], "b": ["good"]}
    )
    made = PromptModel(backbone, film)

    def revision(folder: str) -> Any:
        artifact.save(made, tmp_path / folder)
        return json.loads((tmp_path / folder / "artifact.json").read_text())["backbone"]["revision"]

    assert revision("folder") is None
    backbone.model.config._commit_hash = "0f1e2d"
    assert revision("still-a-folder") is None
    backbone.source = {**backbone.source, "name": "someone/bert"}
    assert revision("hub") == "0f1e2d"
    backbone.source["revision"] = "main"
    assert revision("branch") == "0f1e2d"


# --- a model that was loaded otherwise ----------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        ({}, {"dtype": "bfloat16"}, "with dtype='float32' then, and has dtype='bfloat16' now"),
        ({"max_length": 96, "positions": "copy"}, {"max_length": 96, "positions": "interpolate"},
         "with positions='copy' then, and has positions='interpolate' now"),
        ({"max_length": 96, "positions": "copy"}, {},
         "with max_length=96, positions='copy' then, and has max_length=None, positions=None now"),
        ({"attention": "linformer", "max_length": 32}, {"attention": "linformer"},
         "with max_length=32 then, and has max_length=64 now"),
    ],
)  # fmt: skip
def test_why_a_model_has_other_weights_is_said(
    then: dict[str, Any], now: dict[str, Any], says: str, tiny_model: Folder, tmp_path: Path
) -> None:
    name = str(tiny_model("bert"))
    first = load_model(name, trained=True, **then)
    folder = trained(tmp_path / "a", tiny_model("bert"), "lora", backbone=first)
    with pytest.raises(
        UserError, match=f"here are others, as it was loaded {says}.*Load the model"
    ):
        loaded(folder, backbone=load_model(name, trained=True, **now))
    with pytest.raises(UserError, match=r"here are others\. Load .* tuned from\.$"):
        loaded(folder, backbone=load_model(str(tiny_model("roberta")), dtype="bfloat16"))
    again = loaded(folder, backbone=load_model(name, trained=True, **then))
    rows = [e.row for e in some(3)]
    np.testing.assert_allclose(
        again.predict_proba(rows), loaded(folder).predict_proba(rows), atol=1e-6
    )


def test_a_model_that_reads_otherwise_is_refused(tiny_model: Folder, tmp_path: Path) -> None:
    folder = trained(tmp_path / "a", tiny_model("bert"), "lora")
    short = load_model(str(tiny_model("bert")), max_length=24)
    with pytest.raises(UserError, match=r"with max_length=64, and .* has max_length=24: .* itself"):
        loaded(folder, backbone=short)
    assert artifact.open_parts(folder, backbone=short, alike=False).weights is not None


# --- damaged files ------------------------------------------------------------------------------


def damaged(folder: Path, *keys: str, value: Any = None) -> None:
    """Delete a key of `artifact.json`, or write a value in its place."""
    path = folder / "artifact.json"
    data = inner = json.loads(path.read_text(encoding="utf-8"))
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of all kinds."""
    folder = tmp_path_factory.mktemp("whole")
    backbone = tiny.fresh("bert")
    for name in ("prefix", "lora", "all"):
        artifact.save(adding.trained(adding.tuner(backbone, name)), folder / name)
    model = tiny.save("bert", folder / "model")
    trained(folder / "several", model, "prefix")
    heads = trained(folder / "heads", model, "all", strategy="finetune")
    shutil.copytree(heads / "members" / "binary", folder / "head")
    generating.tuned("gpt2", "prefix").save(folder / "generator")
    return folder


def read(folder: Path) -> Any:
    if folder.name == "generator":
        return Generator.load(folder, backbone=tiny.backbone("gpt2"))
    made = folder.name in ("prefix", "lora", "all")
    return loaded(folder, **({"backbone": tiny.backbone("bert")} if made else {}))


@pytest.mark.parametrize(
    ("kind", "keys", "value", "says"),
    [
        ("prefix", ["kind"], None, "it has no 'kind'"),
        ("prefix", ["version"], None, "it has no 'version'"),
        ("prefix", ["backbone"], None, "it has no 'backbone'"),
        ("prefix", ["backbone", "sha256"], None, "no 'sha256'"),
        ("prefix", ["backbone", "name"], None, "no 'name'"),
        ("prefix", ["task"], None, "it has no 'task'"),
        ("prefix", ["task"], {}, "no 'patterns'"),
        ("prefix", ["task"], "", "string indices"),
        ("prefix", ["task", "labels"], None, "labels"),
        ("prefix", ["verbalizer"], {}, "no 'name'"),
        ("prefix", ["demonstrations"], None, "it has no 'demonstrations'"),
        ("prefix", ["added"], None, "it has no 'added'"),
        ("prefix", ["added", "method"], None, "no 'method'"),
        ("prefix", ["added", "deltas"], None, "no 'deltas'"),
        ("prefix", ["sha256"], None, "it has no 'sha256'"),
        ("lora", ["added"], None, "it has no 'added'"),
        ("lora", ["files"], None, "no file with the tensors of its 'added'"),
        ("all", ["sha256"], None, "it has no 'sha256'"),
        ("several", ["multi_label"], None, "it has no 'multi_label'"),
        ("several", ["multi_label"], {}, "no 'labels'"),
        ("several", ["threshold"], None, "it has no 'threshold'"),
        ("head", ["labels"], None, "it has no 'labels'"),
        ("head", ["sha256"], None, "it has no 'sha256'"),
        ("generator", ["backbone"], None, "it has no 'backbone'"),
        ("generator", ["task"], {}, "no 'patterns'"),
        ("generator", ["decoding"], None, "it has no 'decoding'"),
    ],
)  # fmt: skip
def test_a_header_that_lacks_something_is_damaged(
    kind: str, keys: list[str], value: Any, says: str, whole: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(whole / kind, tmp_path / kind)
    assert read(folder) is not None
    damaged(folder, *keys, value=value)
    with pytest.raises(PromptForgeError, match=rf"artifact\.json is damaged: .*{says}") as caught:
        read(folder)
    assert not isinstance(caught.value, UserError)


def test_the_parts_of_a_damaged_artifact(whole: Path, tmp_path: Path, command: Command) -> None:
    folder = shutil.copytree(whole / "several", tmp_path / "several")
    damaged(folder / "members" / "binary", "backbone")
    with pytest.raises(PromptForgeError, match="it has no 'backbone'"):
        artifact.open_parts(folder)
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"text": "a film"}) + "\n", encoding="utf-8")
    ran = command("predict", folder, "--data", data)
    assert ran.code == 1 and "artifact.json is damaged: it has no 'backbone'" in ran.err
    damaged(folder, "kind")
    with pytest.raises(PromptForgeError, match="it has no 'kind'"):
        artifact.member_folder(folder, "a")
    damaged(folder, "about")
    with pytest.raises(PromptForgeError, match="it has no 'about'"):
        artifact.about(folder)
