"""`new_plugin`: a whole distribution with one working component, for its author to change.

The modules beside this one are the components and their tests. They work where they stand, so they
are checked with everything else; in a copy the word "blank" gives way to the plugin's name.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from promptforge._version import __version__
from promptforge.errors import UserError, did_you_mean, listed
from promptforge.folders import check_new, whole
from promptforge.hookspecs import ROLES
from promptforge.plugins import manager

#: role -> what such a component is called, and a command that uses it
KINDS: dict[str, tuple[str, str]] = {
    "model-source": ("model source", "BLANK_MODELS=/path/to/models promptforge models"),
    "renderer": ("template language", "promptforge templates copy sentiment my-task  # then add a pattern my-task/it-was.blank"),
    "verbalizer": ("verbalizer", "promptforge train sentiment --data rows.csv --verbalizer blank"),
    "search": ("search for label words", "promptforge search-verbalizer sentiment --data rows.csv --search blank"),
    "template-search": ("search for templates", "promptforge search-template sentiment --data rows.csv --search blank"),
    "scorer": ("scorer of words of several tokens", "promptforge evaluate sentiment --data rows.csv -o verbalizer.scorer=blank"),
    "calibration": ("calibration", "promptforge evaluate sentiment --data rows.csv --calibration blank --unlabeled more.csv"),
    "demonstrations": ("selector of demonstrations", "promptforge train sentiment --data rows.csv --strategy priming --demonstrations blank"),
    "method": ("tuning method", "promptforge train sentiment --data rows.csv --method blank"),
    "parametrization": ("parametrization of soft prompts", "promptforge train sentiment --data rows.csv --method prompt-tuning -o method.parametrization=blank"),
    "strategy": ("tuning strategy", "promptforge train sentiment --data rows.csv --strategy blank"),
    "exit-policy": ("exit policy", "promptforge predict RUN --data rows.csv --exit-policy blank"),
    "attention": ("attention pattern", "promptforge evaluate sentiment --data rows.csv --attention blank"),
    "reader": ("reader of tables", "promptforge predict sentiment --data rows.blank"),
    "importer": ("importer of templates", "promptforge import-templates prompts.blank --importer blank --output tasks"),
    "exporter": ("exporter of templates", "promptforge export-templates sentiment --exporter blank --output prompts"),
}  # fmt: skip

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def new_plugin(name: str, kind: str, output: str | Path | None = None) -> Path:
    """Write a distribution `promptforge-NAME` with one working component and its tests.

    Args:
        name: of plugin and component: small letters, digits and single hyphens.
        kind: a role, a key of `hookspecs.ROLES`.
        output: the folder, made anew; `promptforge-NAME` here by default.

    Returns:
        the folder.

    Raises:
        UserError: an unknown kind, a name that is none or is taken, a folder that is in use.
        PromptForgeError: no space, no permission.
    """
    name = name.removeprefix("promptforge-")
    _check(name, kind)
    folder = Path(output if output is not None else f"promptforge-{name}").absolute()
    check_new(folder)
    source = files(__name__)
    module = kind.replace("-", "_")
    component = source.joinpath(f"{module}.py").read_text(encoding="utf-8")
    cls = re.search(r"^class (Blank\w+)", component, re.MULTILINE)
    assert cls is not None
    what, use = KINDS[kind]
    article = "An" if what[0] in "aeiou" else "A"
    marks = {
        "@KIND@": what, "@ARTICLE@": article, "@ARTICLE_LOWER@": article.lower(),
        "@ROLE@": kind, "@HOOK@": ROLES[kind], "@CLASS@": cls[1], "@CHECK@": f"check_{module}",
        "@USE@": use, "@VERSION@": __version__,
        f"promptforge.plugin_skeleton.{module}": "promptforge_blank.component",
    }  # fmt: skip
    with whole(folder) as draft:
        for target, text in {
            "promptforge_blank/component.py": f"{module}.py",
            "tests/test_component.py": f"test_{module}.py",
            "promptforge_blank/__init__.py": "files/__init__.py.txt",
            "tests/test_plugin.py": "files/test_plugin.py.txt",
            "pyproject.toml": "files/pyproject.toml.txt",
            "README.md": "files/README.md",
            ".github/workflows/tests.yml": "files/tests.yml",
            ".gitignore": "files/gitignore",
        }.items():
            made = source.joinpath(text).read_text(encoding="utf-8")
            for mark, value in marks.items():
                made = made.replace(mark, value)
            path = draft / _named(target, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_named(made, name), encoding="utf-8")
    return folder


def _check(name: str, kind: str) -> None:
    if kind not in KINDS:
        known = list(KINDS)
        raise UserError(f"There is no kind of plugin {kind!r}.{did_you_mean(kind, known)} Kinds: {listed(known, 30)}.")  # fmt: skip
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name for a plugin: write small letters, digits and single hyphens, with a "
            "letter first, for example 'word-pairs'."
        )
    found = manager()
    if any(info.name == name for info in found.plugins):
        raise UserError(f"A plugin called {name!r} is installed already. Choose another name.")
    registry = found.registry(kind)
    if name in registry:
        raise UserError(
            f"The plugin {registry.provider(name)!r} has a {kind} called {name!r} already, and the first of "
            "a name keeps it. Choose another name."
        )


def _named(text: str, name: str) -> str:
    """`text` with the plugin's name: as a module, a class, a variable of the environment, or as it is."""
    words = name.split("-")
    module = "_".join(words)
    marks = {
        "promptforge_blank": f"promptforge_{module}", "BLANK": module.upper(), "blank": name,
        "Blank": "".join(word.capitalize() for word in words),
    }  # fmt: skip
    # In one go: a name may have "blank" in it.
    return re.sub("promptforge_blank|BLANK|Blank|blank", lambda mark: marks[mark[0]], text)
