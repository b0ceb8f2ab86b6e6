"""Someone who types what a page says, from its top to its end.

A page's blocks are run in order, in one folder that holds a copy of `examples/` with fewer rows and
the tables that the page names. Trainings are cut to a few steps of a narrow model, whatever the page
types: the tests are of what is written there, not of how well it does. What Python loads by its name,
and what is only measured, is the real model.
"""

from __future__ import annotations

import atexit
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest

from promptforge import hookimpl, plugins
from tests.doc_pages import ROOT, Step, steps
from tests.doc_tables import copy_examples, make_tables

STEPS, NEW_TOKENS = 2, 6
QUICK, WRITES = "minilm-mlm", "smollm2"
#: Words of a command line that only a shell understands.
OPERATORS = re.compile(r"^[();<>|&]+$")


def run_page(
    page: str, folder: Path, command: Callable[..., Any], patch: pytest.MonkeyPatch
) -> None:
    """Run all steps of a page in `folder`, in their order; one that fails is an `AssertionError`."""
    text = (ROOT / page).read_text(encoding="utf-8")
    copy_examples(folder)
    make_tables(folder, text)
    patch.syspath_prepend(folder)  # as for a script in that folder
    modules = set(sys.modules)
    reader = Reader(page, folder, command, patch)
    plugins.manager().register(Brief(), "brief")
    try:
        for step in steps(page, text):
            reader.does(step)
    finally:
        plugins.manager().unregister("brief")
        for name in set(sys.modules) - modules:
            if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


@cache
def narrow(name: str) -> str:
    """A folder with a model that reads what a packaged one reads, of random weights and few of them."""
    import transformers

    from promptforge.models import locate

    source = locate(name)
    folder = Path(tempfile.mkdtemp(prefix="narrow"), name)
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    config = transformers.AutoConfig.from_pretrained(source)
    config.update(
        {
            "hidden_size": 8 * config.num_attention_heads,
            "intermediate_size": 64,
            "num_hidden_layers": 6,
        }
    )
    if hasattr(config, "head_dim"):
        config.head_dim = 8
    transformers.set_seed(0)
    getattr(transformers, config.architectures[0])(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return str(folder)


class Brief:
    """A plugin that cuts trainings down, and has them train a narrow model."""

    @hookimpl
    def promptforge_configure(self, settings: dict[str, Any]) -> None:
        name = click.get_current_context().info_name
        writes = settings.get("objective") == "generate"
        model = settings.get("model")
        if "max_new_tokens" in settings:
            settings["max_new_tokens"] = NEW_TOKENS
        if name == "search-verbalizer":  # it trains with --rerank alone
            settings["model"] = narrow(QUICK) if model in (None, QUICK) else model
        if "steps" not in settings or name == "search-verbalizer":
            return
        if model in (None, QUICK, WRITES):
            settings["model"] = narrow(model or (WRITES if writes else QUICK))
        settings["steps"] = min(settings["steps"] or STEPS, STEPS)
        settings["batch_size"] = (2,) if isinstance(settings["batch_size"], tuple) else 2
        settings["options"] = tuple(
            re.sub(
                r"generations=\d+$",
                "generations=1",
                re.sub(r"steps=\d+$", f"steps={STEPS}", option),
            )
            for option in settings.get("options") or ()
        )
        if writes:
            settings["options"] += (f"decoding.max_new_tokens={NEW_TOKENS}",)
        if settings.get("exits") == "two-stage":
            settings["options"] += (f"exits.steps={STEPS}",)
        if "compare_untrained" in settings:
            settings["compare_untrained"] = False
        if "eval_every" in settings:
            settings["eval_every"] = STEPS
        if settings.get("shots") or name == "search-template":
            settings["shots"] = min(settings["shots"] or 2, 2)
        if name == "search-template":
            few = ("candidates=4", "beam=4", "left=1", "right=1")
            settings["options"] += tuple(f"template-search.{option}" for option in few)
        if name == "compare":
            settings["seeds"] = settings["seeds"].partition(",")[0]


class Reader:
    """Someone who types what a page says, from its top to its end.

    Commands of promptforge run in this process. What needs a shell runs in one; so does everything
    after something was installed, which goes to an environment of the page's own.
    """

    def __init__(
        self, page: str, folder: Path, command: Callable[..., Any], patch: pytest.MonkeyPatch
    ) -> None:
        self.page, self.folder, self.command, self.patch = page, folder, command, patch
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.environment: Path | None = None

    def does(self, step: Step) -> None:
        where = f"{self.page}:{step.line}"
        if step.kind == "file":
            path = Path(step.told)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(step.text, encoding="utf-8")
        elif step.kind == "python":
            exec(compile(step.text, where, "exec"), self.names)
        elif step.kind == "command":
            code, said = self.types(step.text)
            assert code == 0, f"{where}: {step.text}\nexit code {code}\n{said[-3000:]}"

    def types(self, line: str) -> tuple[int, str]:
        """Exit code and what was said."""
        words, plain = parsed(line)
        if words[0] == "cd" and plain:
            os.chdir(words[1])
            return 0, ""
        if words[0] == "export" and "=" in words[1]:
            name, _, value = words[1].partition("=")
            self.patch.setenv(name, value)
            return 0, ""
        if installs(words):
            self.environment = self.environment or own_environment(self.folder / ".venv")
        if words[0] == "promptforge" and plain and self.environment is None:
            ran = self.command(*words[1:])
            return ran.code, ran.out + ran.err
        return self.shell(line)

    def shell(self, line: str) -> tuple[int, str]:
        scripts = [Path(sys.executable).parent]
        env = {**os.environ, "NO_COLOR": "1"}
        if self.environment:
            scripts.insert(0, self.environment / "bin")
            # Nothing is fetched: what a plugin needs is in the environment of the tests.
            env |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "VIRTUAL_ENV": str(self.environment)}  # fmt: skip
        env["PATH"] = os.pathsep.join([*map(str, scripts), os.environ["PATH"]])
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False, timeout=240,
        )  # fmt: skip
        return done.returncode, done.stdout


def parsed(line: str) -> tuple[list[str], bool]:
    """The words of a command line without its comment, and whether no shell is needed for it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", line.partition(" #")[0])
    assigns = re.match(r"\w+=", words[0])
    shell = assigns or any(OPERATORS.match(w) for w in words) or re.search(r"[$*~`]", bare)
    return words, not shell


def installs(words: list[str]) -> bool:
    return words[:2] in (["pip", "install"], ["promptforge", "install"])


def own_environment(folder: Path) -> Path:
    """An environment that sees all that this one has, and into which a page may install."""
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python*/site-packages"))
    packages = [p for p in sys.path if p.endswith("site-packages")]
    (site / "tests.pth").write_text(
        "".join(f"import site; site.addsitedir({p!r})\n" for p in packages), encoding="utf-8"
    )
    for name in ("pip", "pytest", "promptforge"):
        script = folder / "bin" / name
        script.write_text(
            f'#!/bin/sh\nexec "{folder}/bin/python" -m {name} "$@"\n', encoding="utf-8"
        )
        script.chmod(0o755)
    return folder
