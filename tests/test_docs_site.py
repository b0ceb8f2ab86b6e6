"""The documentation site: it builds without a warning, is complete, and names nothing of a machine."""

from __future__ import annotations

import ast
import html
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import promptforge
import promptforge.testing
from promptforge import plugins
from promptforge.cli import cli
from promptforge.hookspecs import ROLES
from promptforge.surface import surface
from tests.doc_pages import ROOT, pages

pytest.importorskip("sphinx")
pytest.importorskip("myst_parser")
pytest.importorskip("furo")

#: Hosts that a page may link to: papers, libraries, and where things are kept.
HOSTS = {
    "arxiv.org", "aclanthology.org", "doi.org", "openreview.net", "papers.nips.cc", "proceedings.mlr.press",
    "www.jmlr.org", "jmlr.org", "github.com", "huggingface.co", "pypi.org",
    "docs.python.org", "docs.ray.io", "docs.dask.org", "joblib.readthedocs.io", "scikit-learn.org",
    "pluggy.readthedocs.io", "jinja.palletsprojects.com", "slurm.schedmd.com", "filesystem-spec.readthedocs.io",
}  # fmt: skip
#: What the theme puts under every page.
THEME = {"pradyunsg.me", "github.com", "www.sphinx-doc.org"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning fails it."""
    root = tmp_path_factory.mktemp("docs")
    source = root / "source"
    # Where one was built by hand, that is not what is tested.
    shutil.copytree(ROOT / "docs", source, ignore=shutil.ignore_patterns("_build", "reference"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(source), str(root / "site")],
        capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return root / "site"


@pytest.fixture(scope="module")
def texts(site: Path) -> dict[str, str]:
    """Path of a page in the site -> its HTML."""
    return {
        path.relative_to(site).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.relative_to(site).parts
    }


def anchors(page: str) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', page))


def links(page: str) -> Iterator[str]:
    for link in re.findall(r'(?:href|src)="([^"]+)"', page):
        yield html.unescape(link)


# --- it is complete ----------------------------------------------------------------------------


def test_each_command_has_its_options(texts: dict[str, str]) -> None:
    import click

    def examined(command: click.Command, page: str, label: str) -> None:
        assert label in anchors(page), label
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.opts[0] in html.unescape(page), (label, parameter.opts)
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                examined(inner, page, f"{label}-{name}")

    context = click.Context(cli)
    names = cli.list_commands(context)
    assert {"train", "report", "train-multitask", "export"} <= set(names)
    for name in names:
        command = cli.get_command(context, name)
        assert command is not None
        examined(command, texts[f"reference/commands/{name}.html"], f"command-{name}")


def test_each_component_has_its_options(texts: dict[str, str]) -> None:
    for role in ROLES:
        page = html.unescape(texts[f"reference/components/{role}.html"])
        assert f"role-{role}" in anchors(page)
        registry = plugins.manager().registry(role)
        for name in registry.names():
            assert f"component-{role}-{name}" in anchors(page)
            part = page.partition(f'id="component-{role}-{name}"')[2].partition("<section")[0]
            for option in registry.get(name).option_table():
                assert f'<span class="pre">{option["name"]}</span>' in part, (role, name, option)
                assert re.sub(r"\W", "", option["description"]) in re.sub(
                    r"\W", "", re.sub(r"<[^>]+>", "", part)
                ), (role, name, option)  # fmt: skip


def test_each_hook_is_there(texts: dict[str, str]) -> None:
    page = texts["reference/hooks.html"]
    told = surface()["hooks"]
    assert len(told) > 20
    for name in told:
        assert f"hook-{name.replace('_', '-')}" in anchors(page), name
        assert html.escape(name) in page


def test_each_public_name_is_there_with_its_documentation(texts: dict[str, str]) -> None:
    documented: dict[str, str] = {}
    for path, page in texts.items():
        if path.startswith("reference/python/"):
            documented |= dict.fromkeys(anchors(page), path)
    for name in promptforge.__all__:
        assert f"promptforge.{name}" in documented, name
    for name in promptforge.testing.__all__:
        assert f"promptforge.testing.{name}" in documented, name
    assert "promptforge.Task.load" in documented
    task = re.sub(r"<[^>]+>", "", texts[documented["promptforge.Task"]])
    assert (promptforge.Task.__doc__ or "").split("\n")[0] in html.unescape(task)


def test_all_pages_are_reached_from_the_first(texts: dict[str, str]) -> None:
    """By the navigation at the side, which is the tree of contents."""
    side = texts["index.html"].partition('class="sidebar-tree"')[2].partition("</aside>")[0]
    reached = {"index.html", *(urlsplit(link).path for link in links(side))}
    extra = {"search.html", "genindex.html", "py-modindex.html"}
    assert set(texts) - extra <= reached, set(texts) - extra - reached
    for page in pages():
        if page.startswith("docs/"):
            assert page.removeprefix("docs/").removesuffix(".md") + ".html" in texts


# --- links -------------------------------------------------------------------------------------


def test_links_inside_lead_somewhere(site: Path, texts: dict[str, str]) -> None:
    known = {path: anchors(page) for path, page in texts.items()}
    checked = 0
    for path, page in texts.items():
        for link in links(page):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith(("data:", "mailto:")):
                continue
            target = (site / path).parent / unquote(parts.path) if parts.path else site / path
            target = Path(os.path.normpath(target))
            assert target.is_file(), (path, link)
            name = target.relative_to(site).as_posix()
            if parts.fragment and name in known:
                assert unquote(parts.fragment) in known[name], (path, link)
                checked += 1
    assert checked > 500


def test_links_in_pages_of_the_repository() -> None:
    """README.md and CONTRIBUTING.md link to files that are there."""
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith(("http:", "https:", "#")):
                assert (ROOT / link.partition("#")[0]).exists(), (page, link)


def test_links_outside_are_to_known_hosts() -> None:
    """Whether they answer is for `sphinx-build -b linkcheck`, where there is a network."""
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"https?://[^\s)>\]\"'`]+", text):
            parts = urlsplit(link)
            if parts.hostname in ("127.0.0.1", "localhost"):
                continue
            assert parts.scheme == "https" and parts.hostname in HOSTS, (page, link)
            if parts.hostname == "arxiv.org":
                assert re.fullmatch(r"/(abs|pdf)/(\d{4}\.\d{4,5}(v\d+)?|[a-z-]+/\d{7})", parts.path), (page, link)  # fmt: skip
            if parts.hostname == "doi.org":
                assert re.match(r"/10\.\d{4,}/\S+", parts.path), (page, link)


def test_it_loads_nothing_from_a_network(texts: dict[str, str]) -> None:
    for path, page in texts.items():
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]*?(?:src|href)="([^"]+)"', page)
        assert loaded and not [link for link in loaded if re.match(r"(https?:)?//", link)], path
        for link in links(page):
            host = urlsplit(link).hostname
            assert host is None or host in HOSTS | THEME, (path, link)


def test_it_names_nothing_of_a_machine(site: Path) -> None:
    names = {str(ROOT), str(Path.home()), os.uname().nodename, sys.prefix, str(site.parent)}
    names = {name for name in names if len(name) > 4}
    for path in site.rglob("*"):
        if path.suffix in (".html", ".js", ".inv", ".txt"):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not [name for name in names if name in text], path
            assert not re.search(r"(?:/home|/Users|/root|/tmp)/\w", text), path


# --- what the architecture page says -----------------------------------------------------------

STEPS = ("data", "template", "encode", "readout", "verbalizer", "model")


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere but for types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_who_may_import_whom() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    built_in = set(config["project"]["entry-points"]["promptforge"].values())
    for path in (ROOT / "promptforge").rglob("*.py"):
        within = path.relative_to(ROOT / "promptforge")
        found = imports(path)
        assert not {name.partition(".")[0] for name in found} & built_in, within
        if within.parts[0] not in ("cli", "__main__.py", "doctor.py"):
            assert not [name for name in found if name.startswith("promptforge.cli")], within
    for plugin in built_in:
        for path in (ROOT / "plugins" / plugin).rglob("*.py"):
            others = {name.partition(".")[0] for name in imports(path)} & (built_in - {plugin})
            assert not others, (path.name, others)
    for i, step in enumerate(STEPS):
        later = {f"promptforge.{name}" for name in STEPS[i + 1 :]}
        top = ast.parse((ROOT / "promptforge" / f"{step}.py").read_text(encoding="utf-8")).body
        named = {node.module for node in top if isinstance(node, ast.ImportFrom)}
        assert not named & later, (step, named & later)
