"""Aliases of components: another way to write a name, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from promptforge import UserError
from promptforge.hookspecs import hookimpl
from promptforge.plugins import PluginManager, build, manager


def test_an_alias_is_another_way_to_write_a_name() -> None:
    from promptforge.plugins import component

    made = build("method", "prompt", tokens=3)
    assert made.name == "prompt-tuning" and made.tokens == 3
    assert component("method", "prompt") is component("method", "prompt-tuning")
    registry = manager().registry("method")
    assert "prompt" not in registry.names() and "prompt-tuning" in registry.names()
    assert registry.provider("prompt") == registry.provider("prompt-tuning")
    assert component("method", "p-tuning").name == "p-tuning"  # a subclass has no alias of it
    assert component("strategy", "prompt").name == "prompt"  # each role has its own


def test_an_alias_that_is_taken_names_both_plugins() -> None:
    from promptforge import TuningMethod
    from promptforge.components import Registry

    def method(called: str, *also: str) -> Any:
        class Made(TuningMethod):
            name = called
            aliases = also

        return Made

    registry = Registry("method")
    assert registry.add(method("one", "first"), "ours") is None
    for cls, says in (
        (
            method("two", "one"),
            "'two', and the alias 'one' of it, a name that 'ours' has taken; ignored",
        ),
        (method("first"), "'first', a name that 'ours' has taken as an alias of 'one'; ignored"),
        (
            method("two", "first"),
            "alias 'first' of it, a name that 'ours' has taken as an alias of 'one'",
        ),
    ):
        assert says in str(registry.add(cls, "theirs"))
    assert registry.names() == ["one"] and registry.get("first").name == "one"
    with pytest.raises(UserError, match="There is no method called 'two'"):
        registry.get("two")


def test_an_alias_that_is_taken_is_a_problem_of_the_plugin_that_comes_second() -> None:
    from promptforge import TuningMethod

    class Taken(TuningMethod):
        name = "taken"
        aliases = ("lora",)

    found = PluginManager()

    class Theirs:
        @staticmethod
        @hookimpl
        def promptforge_tuning_methods() -> list[Any]:
            return [Taken]

    found.register(Theirs(), "theirs")
    assert "taken" not in found.registry("method").names()
    said = [p.message for p in found.problems if p.plugin == "theirs"]
    owner = found.registry("method").provider("lora")
    assert any("alias 'lora'" in m and repr(owner) in m for m in said), said


def test_the_alias_on_the_command_line_is_recorded_as_the_name(
    command: Any, tiny_model: Any, reviews: Path
) -> None:
    base = ("train", reviews, "--model", tiny_model("bert"), "--pattern", "it-was", "--steps", 1)
    assert command(*base, "--method", "prompt", "-o", "method.tokens=2").code == 0
    (run,) = Path("runs").iterdir()
    assert run.name.endswith("-prompt-prompt-tuning-13")  # strategy, method and seed
    config = json.loads((run / "config.json").read_text())
    assert config["method"]["name"] == "prompt-tuning"


def test_an_option_with_a_pydantic_alias_is_kept_and_made_again() -> None:
    from promptforge.components import parse_options
    from promptforge.plugins import component

    class Penalised(component("method", "all")):  # type: ignore[misc]
        name = "penalised"
        lambda_: float = Field(0.1, alias="lambda")

    made = Penalised.build(**{"lambda": 0.3})
    assert made.lambda_ == 0.3
    assert Penalised.build(**made.model_dump(mode="json")) == made
    given = parse_options(["lambda_=0.3"], {"method": Penalised})
    assert Penalised.build(**given["method"]) == made
