"""What the README shows is what happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import promptforge_multitask
import promptforge_playground
import promptforge_report
import pytest
import tiny

from promptforge import PromptModel, Task, Template, plugins

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippets() -> list[str]:
    return re.findall(r"<!-- snippet -->\n```python\n(.*?)```", README, re.DOTALL)


def ran(code: str, cache: Path) -> list[str]:
    """What a snippet prints, run from the root of the repository."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PROMPTFORGE_CACHE": str(cache)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_python_snippets_run(packaged_models: Path) -> None:
    """With `minilm-mlm`, as the README has them."""
    search, classifier = snippets()
    words, accuracy, label = ran(search, packaged_models)
    assert words.startswith("{'negative': [") and 0 < float(accuracy) < 1
    assert label in ("['positive']", "['negative']")
    assert ran(classifier, packaged_models) in (["['good']"], ["['bad']"])


def test_ci_runs_the_readmes_test_command() -> None:
    """What `.ci/run` takes from the README is the command between the markers, and nothing else."""
    block = README.split("<!-- test command -->")[1].split("<!-- end -->")[0]
    shown = [line for line in block.splitlines() if line and not line.startswith("```")]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    extraction = next(line for line in script.splitlines() if line.startswith("command="))
    done = subprocess.run(
        ["bash", "-c", f'{extraction}; echo "$command"'],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == shown
    assert len(shown) == 1 and "constraints.txt" in shown[0] and shown[0].endswith("pytest")


def test_every_command_the_readme_names_exists() -> None:
    from promptforge.cli import BUILT_IN

    plugins = (promptforge_multitask, promptforge_report, promptforge_playground)
    known = {*BUILT_IN, *(c.name for plugin in plugins for c in plugin.promptforge_commands())}
    named = set(re.findall(r"(?:^|[`/])promptforge ([a-z][a-z-]+)", README, re.MULTILINE))
    assert len(named) > 5 and named <= known, named - known


def test_the_plugin_in_contributing_works(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The verbalizer shown there equals the manual one with aggregate=max."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    match = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert match
    module = types.ModuleType("my_plugin")
    monkeypatch.setitem(sys.modules, "my_plugin", module)
    exec(match[1], module.__dict__)
    plugins.manager.cache_clear()
    fresh = plugins.manager()
    request.addfinalizer(plugins.manager.cache_clear)
    fresh.register(module, "my-plugin")
    assert not fresh.problems
    task = Task.inline(
        [Template("{{ text }} It was {{ mask }}.")],
        labels={"no": ["bad", "dull"], "yes": ["good", "love"]},
    )
    rows = [{"text": text} for text in tiny.corpus()[:5]]
    both = [
        PromptModel(tiny.backbone("bert"), task, verbalizer=verbalizer).predict_proba(rows)
        for verbalizer in (
            fresh.registry("verbalizer").build("loudest"),
            fresh.registry("verbalizer").build("manual", aggregate="max"),
        )
    ]
    assert abs(both[0] - both[1]).max() < 1e-5
