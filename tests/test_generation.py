"""Text generation: exact beside plain loops, batches that change nothing, training, figures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from generating import METHODS, ROWS, WRITERS, greedy, logits, task, tuned
from torch.nn import functional as F

from promptforge import (
    Decoding,
    Generator,
    Settings,
    TextEvaluation,
    UserError,
    artifact,
    train_generator,
)
from promptforge.backbone.weights import Weights
from promptforge.generation.train import TextObjective
from promptforge.plugins import build
from promptforge.tuning.loop import Training

each = pytest.mark.parametrize("architecture", WRITERS)
every_method = pytest.mark.parametrize("method", METHODS)


# --- exactness -----------------------------------------------------------------------------


@each
@every_method
def test_greedy_equals_a_plain_loop_without_a_cache(architecture: str, method: str) -> None:
    generator = tuned(architecture, method)
    wanted = [generator.writer.text(greedy(generator, row, 8)) for row in ROWS]
    assert generator.generate(ROWS, Decoding(max_new_tokens=8)) == wanted
    assert len(set(wanted)) > 1 or architecture == "t5"
    untrained = Generator(generator.backbone, generator.task)
    assert untrained.generate(ROWS, Decoding(max_new_tokens=8)) != wanted


@each
def test_an_untrained_model_writes(architecture: str) -> None:
    generator = Generator(tiny.backbone(architecture), task())
    wanted = [generator.writer.text(greedy(generator, row, 8)) for row in ROWS]
    assert generator.generate(ROWS, Decoding(max_new_tokens=8)) == wanted


@each
@every_method
def test_batch_beams_and_cache_change_nothing(architecture: str, method: str) -> None:
    generator = tuned(architecture, method)
    for beams in (1, 3):
        decoding = Decoding(beams=beams, max_new_tokens=6)
        together = generator.generate(ROWS, decoding)
        assert together == [generator.generate([row], decoding)[0] for row in ROWS]
        uncached = generator.generate(ROWS, Decoding(beams=beams, max_new_tokens=6, cache=False))
        assert together == uncached


@pytest.mark.parametrize("architecture", ["gpt2", "bart"])
def test_beams_find_what_a_plain_search_finds(architecture: str) -> None:
    """With as many beams as there are texts of two tokens worth following, the best text wins."""
    generator = tuned(architecture, "prompt-tuning")
    generator.backbone.apply(generator.weights)
    end = generator.writer.end
    with torch.no_grad():
        first = logits(generator, ROWS[0], []).log_softmax(-1)
        beams = first.topk(4).indices.tolist()
        found = {}
        for token in beams:
            if token == end:
                found[(token,)] = float(first[token])
                continue
            second = logits(generator, ROWS[0], [token]).log_softmax(-1)
            best = int(second.argmax())
            found[token, best] = float(first[token] + second[best])
    # All are as long as is allowed, or ended: mean log-probability decides.
    best_text = max(found, key=lambda ids: found[ids] / len(ids))
    made = generator.generate(ROWS[:1], Decoding(beams=4, max_new_tokens=2))
    assert made == [generator.writer.text(best_text)]


@each
@every_method
def test_the_loss_is_that_of_the_tokens_of_the_text(architecture: str, method: str) -> None:
    generator = tuned(architecture, method)
    losses, tokens = generator.losses(ROWS)
    backbone = generator.backbone
    backbone.apply(generator.weights)
    for row, loss, n in zip(ROWS, losses, tokens, strict=True):
        prompt = f"{row['table']} ="
        inner = backbone.tokenizer(f"{prompt} {row['text']}", add_special_tokens=False)["input_ids"]
        before = backbone.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if backbone.family == "causal":
            assert inner[: len(before)] == before
            ids = inner[len(before) :]
        else:
            ids = backbone.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        ids = [*ids, backbone.tokenizer.eos_token_id]
        assert int(n) == len(ids)
        with torch.no_grad():
            wanted = sum(
                -float(logits(generator, row, ids[:i]).log_softmax(-1)[token])
                for i, token in enumerate(ids)
            )
        assert float(loss) == pytest.approx(wanted, abs=2e-3)
    # One after the other as together: padding does not count.
    alone = torch.cat([generator.losses([row])[0] for row in ROWS])
    assert torch.allclose(losses, alone, atol=1e-3)


@each
def test_soft_tokens_of_the_template_are_read_once(architecture: str) -> None:
    """A prompt that is one soft token long: a later pass has its shape and must not get it."""
    backbone = tiny.backbone(architecture)
    made = task("{{ soft(n=1) }}{{ mask }}")
    plain = Generator(backbone, made)
    component = build("method", "prompt-tuning")
    addition = component.add(backbone, plain.sources([{}]), {})
    addition.made_by = {"name": "prompt-tuning", "options": component.model_dump(mode="json")}
    with torch.no_grad():
        for parameter in addition.trained().values():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    generator = Generator(backbone, made, weights=Weights(added=addition.folded()))
    for beams in (1, 3):
        texts = [
            generator.generate([{}], Decoding(beams=beams, max_new_tokens=6, cache=cache))
            for cache in (True, False)
        ]
        assert texts[0] == texts[1]


def test_the_models_own_generation_config_does_not_count() -> None:
    backbone = tiny.backbone("bart")
    generator = Generator(backbone, task())
    wanted = generator.generate(ROWS, Decoding(max_new_tokens=6))
    config = backbone.model.generation_config
    given = {"no_repeat_ngram_size": 1, "forced_bos_token_id": 0, "min_length": 5, "num_beams": 4}
    before = {key: getattr(config, key) for key in given}
    try:
        for key, value in given.items():
            setattr(config, key, value)
        assert generator.generate(ROWS, Decoding(max_new_tokens=6)) == wanted
        assert backbone.model.generation_config is config
    finally:
        for key, value in before.items():
            setattr(config, key, value)


def test_samples_follow_their_seed() -> None:
    generator = Generator(tiny.backbone("gpt2"), task())

    def drawn(**options: Any) -> list[str]:
        return generator.generate(ROWS, Decoding.of(sample=True, max_new_tokens=8, **options))

    state = torch.get_rng_state()
    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    greedily = generator.generate(ROWS, Decoding(max_new_tokens=8))
    assert drawn(top_p=1e-6) == drawn(temperature=1e-4) == greedily
    # Equal prompts get draws of their own.
    assert len(set(generator.generate(ROWS[:1] * 4, Decoding(sample=True, max_new_tokens=8)))) > 1


# --- training ------------------------------------------------------------------------------

LEARNED = {"prefix": 0.05, "prompt-tuning": 0.3, "adapter": 0.03, "all": 0.01}


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        ("gpt2", "adapter"),
        ("llama", "all"),
        ("t5", "adapter"),
        ("bart", "adapter"),
    ],
)
def test_training_memorises_a_table(architecture: str, method: str, tmp_path: Path) -> None:
    backbone = tiny.backbone(architecture)
    rows = ROWS[:2]
    settings = Settings.of(
        steps=60, batch_size=2, learning_rate=LEARNED[method], dropout=False, eval_every=20
    )
    run = train_generator(
        task(), rows, backbone=backbone, method=method, dev=rows, test=rows, settings=settings,
        run=tmp_path / "run",
    )  # fmt: skip
    figures = run.results["test"]
    assert figures["tuned"].loss < 0.3 * figures["zero-shot"].loss
    texts = [row["text"] for row in rows]
    assert run.generator.generate(rows) == texts
    assert figures["tuned"].bleu == pytest.approx(100) and figures["tuned"].rougeL == 100
    curve = [e["loss"] for e in run.trained.curve]
    assert curve[-1] < 0.5 * curve[0]
    # The artifact writes the same, from its folder or the run's, and nothing else is changed.
    loaded = Generator.load(tmp_path / "run", backbone=backbone)
    assert loaded.generate(rows, Decoding(beams=3)) == run.generator.generate(
        rows, Decoding(beams=3)
    )
    assert loaded.room == run.generator.room
    with pytest.raises(UserError, match="writes text: use 'promptforge generate'"):
        artifact.load(tmp_path / "run", backbone=backbone)


@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_texts_as_long_as_those_to_learn_are_written(architecture: str) -> None:
    backbone = tiny.backbone(architecture)
    rows = [{"table": "a", "text": "It was a great film. " * n} for n in (2, 7)]
    generator = Generator(backbone, task(), room=60)
    longest = len(generator.tokens(generator.sources(rows), rows)[1])
    assert longest > 64 // 2

    def room(rows: list[dict[str, str]]) -> int:
        settings = Settings(steps=1)
        run = train_generator(task(), rows, backbone=backbone, method="prefix", settings=settings)
        return run.generator.room

    assert longest <= room(rows) <= 63
    if architecture == "gpt2":  # where a prompt takes the space, half of it stays the prompt's
        long = [*rows, {"table": "time " * 40, "text": "good"}]
        with pytest.warns(UserWarning, match=f"has {longest} tokens. At most 31 will be written"):
            assert room(long) == 31


@pytest.mark.parametrize("method", ["prefix", "prompt-tuning"])
@pytest.mark.parametrize("architecture", ["gpt2", "t5"])
def test_small_methods_lower_the_loss_and_leave_the_model_alone(
    architecture: str, method: str, tmp_path: Path
) -> None:
    backbone = tiny.backbone(architecture)
    checksum = backbone.checksum
    settings = Settings.of(
        steps=25, batch_size=2, learning_rate=LEARNED[method], precision="float32"
    )
    run = train_generator(
        task(), ROWS[:2], backbone=backbone, method=method, dev=ROWS[2:], settings=settings,
        compare_untrained=False, run=tmp_path / "run",
    )  # fmt: skip
    before = Generator(backbone, task(), room=run.generator.room).loss(ROWS[:2])
    assert run.generator.loss(ROWS[:2]) < before - 0.2
    # The best look at the dev rows is what is kept.
    assert -run.trained.best == pytest.approx(run.generator.loss(ROWS[2:]), abs=1e-4)
    backbone.apply(None)
    del backbone.__dict__["checksum"]
    assert backbone.checksum == checksum
    weights = (tmp_path / "run" / "artifact" / "weights.safetensors").stat().st_size
    assert weights < 60_000
    loaded = Generator.load(tmp_path / "run", backbone=backbone)
    decoding = Decoding(max_new_tokens=6)
    assert loaded.generate(ROWS, decoding) == run.generator.generate(ROWS, decoding)


def test_a_step_is_the_gradient_of_the_mean_loss_of_a_token() -> None:
    """All rows in a batch: the loss is the mean over all tokens, and so is its gradient."""
    backbone = tiny.backbone("gpt2")
    generator = Generator(backbone, task())
    objective = TextObjective(generator, build("method", "all"), ROWS)
    try:
        loss = objective(objective.targets, 0).mean()
        (found,) = torch.autograd.grad(loss, [backbone.model.lm_head.weight])
        assert loss.item() == pytest.approx(generator.loss(ROWS), abs=1e-5)
        total, count = torch.zeros(()), 0
        for row in ROWS:
            prompt = backbone.tokenizer(f"{row['table']} =")["input_ids"]
            ids = backbone.tokenizer(f"{row['table']} = {row['text']}")["input_ids"]
            ids = torch.tensor([[*ids, backbone.tokenizer.eos_token_id]])
            scores = backbone.model(ids).logits[0, len(prompt) - 1 : -1]
            total = total + F.cross_entropy(scores, ids[0, len(prompt) :], reduction="sum")
            count += len(scores)
        (wanted,) = torch.autograd.grad(total / count, [backbone.model.lm_head.weight])
        assert torch.allclose(found, wanted, atol=1e-5)
    finally:
        objective.close()


def test_a_training_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny.backbone("llama")
    settings = Settings.of(steps=12, batch_size=2, learning_rate=0.03, save_every=4)

    def run(folder: str, **more: Any) -> Any:
        return train_generator(
            task(), ROWS, backbone=backbone, method="prefix", dev=ROWS, settings=settings,
            compare_untrained=False, run=tmp_path / folder, **more,
        )  # fmt: skip

    whole = run("whole")
    update = Training._update
    steps = 0

    def stop(self: Training, *given: Any) -> float:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt
        return update(self, *given)

    monkeypatch.setattr(Training, "_update", stop)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    monkeypatch.setattr(Training, "_update", update)
    assert backbone.model.training is False
    with pytest.raises(UserError, match="--resume"):
        run("parts")
    again = run("parts", resume=True)
    for made, wanted in zip(
        again.generator.weights.added.tensors().values(),
        whole.generator.weights.added.tensors().values(),
        strict=True,
    ):
        assert torch.equal(made, wanted)
    assert [e["loss"] for e in again.trained.curve] == [e["loss"] for e in whole.trained.curve]
    # What has ended is only read.
    monkeypatch.setattr(Training, "run", lambda *_: pytest.fail("trained again"))
    assert run("parts", resume=True).results == again.results
    other = replace(task(), patterns=task("{{ table }}: {{ mask }}").patterns)
    with pytest.raises(UserError, match="other options"):
        train_generator(
            other, ROWS, backbone=backbone, method="prefix", settings=settings,
            run=tmp_path / "parts", resume=True,
        )  # fmt: skip


# --- figures -------------------------------------------------------------------------------


def test_figures_are_those_of_their_libraries() -> None:
    import sacrebleu
    from rouge_score import rouge_scorer

    written = ["the cat sat on the mat today", "a dog"]
    references = [["the cat sat on the mat", "a cat was sitting on the mat"], ["the dog barks"]]
    made = TextEvaluation.of(written, references, loss=2.0, tokens=10)
    bleu = sacrebleu.corpus_bleu(
        written,
        [["the cat sat on the mat", "the dog barks"], ["a cat was sitting on the mat", None]],
    )
    assert made.bleu == pytest.approx(bleu.score) and "tok:13a" in made.signature
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name in ("rouge1", "rouge2", "rougeL"):
        best = [
            max(scorer.score(reference, text)[name].fmeasure for reference in known)
            for text, known in zip(written, references, strict=True)
        ]
        assert getattr(made, name) == pytest.approx(100 * sum(best) / 2)
    assert (made.rows, made.texts) == (3, 2)
    assert made.perplexity == pytest.approx(math.exp(2))
    assert made.length == pytest.approx(9 / (6.5 + 3))


def test_rows_of_one_source_are_its_references(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(tiny.backbone("gpt2"), task())
    rows = [ROWS[0], ROWS[1], {**ROWS[0], "text": "Another text"}]
    seen = {}
    monkeypatch.setattr(
        TextEvaluation, "of", classmethod(lambda _, *given: seen.update(given=given) or given)
    )
    generator.evaluate(rows, Decoding(max_new_tokens=4))
    written, references, loss, tokens = seen["given"]
    assert references == [[ROWS[0]["text"], "Another text"], [ROWS[1]["text"]]]
    assert written == generator.generate(ROWS[:2], Decoding(max_new_tokens=4))
    losses, counts = generator.losses(rows)
    assert loss == pytest.approx(float(losses.sum() / counts.sum())) and tokens == int(counts.sum())
