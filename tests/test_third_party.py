"""A plugin of a stranger, installed with pip into an environment of its own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
pytest.importorskip("setuptools")
pytest.importorskip("pip")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs `python ARGS...` in a new environment that sees this one's packages as well."""
    root = tmp_path_factory.mktemp("scratch")
    venv.EnvBuilder(symlinks=os.name != "nt").create(root / "env")
    paths = {"base": str(root / "env"), "platbase": str(root / "env")}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    # addsitedir, unlike a path alone, also takes up the editable install of PromptForge.
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (packages / "outer.pth").write_text(line, encoding="utf-8")
    python = Path(sysconfig.get_path("scripts", "venv", vars=paths)) / "python"
    # No network: pip builds with the setuptools that is here.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_DEPS": "1"}

    def run(*args: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(python), *map(str, args)],
            capture_output=True, text=True, check=False, cwd=root, env={**os.environ, **offline},
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    shutil.copytree(HERE / "plugin_example", root / "source")
    run("-m", "pip", "install", "--no-build-isolation", "--no-deps", root / "source")
    run.root = root  # type: ignore[attr-defined]
    return run


def forge(scratch: Callable[..., Any], *args: object, code: int = 0) -> Any:
    return scratch("-m", "promptforge", *args, code=code)


def test_what_it_provides(scratch: Callable[..., Any]) -> None:
    done = forge(scratch, "plugins", "list", "--json")
    emoji = next(p for p in json.loads(done.stdout) if p["name"] == "emoji")
    assert (emoji["distribution"], emoji["version"]) == ("promptforge-emoji", "1.2.3")
    assert emoji["provides"] == ["verbalizer loudest", "search likeliest"]
    assert emoji["problems"] == []
    assert "promptforge_template_filters" in emoji["hooks"]
    assert not done.stderr


def test_its_command(scratch: Callable[..., Any]) -> None:
    assert "emoji" in forge(scratch, "--help").stdout
    assert forge(scratch, "emoji").stdout == ":) smiling face\n:( sad face\n"
    code = "import sys; from promptforge.cli import run; run(['--help']); print('torch' in sys.modules)"
    assert scratch("-c", code).stdout.endswith("False\n")
    assert "No such command" in forge(scratch, "-p", "no:emoji", "emoji", code=2).stderr


def test_its_filter(scratch: Callable[..., Any]) -> None:
    template = "{{ text | spell_emoji }} It was {{ mask }}"
    done = forge(scratch, "render", template, "--set", "text=Fun :)", "--no-tokens", "--json")
    parts = json.loads(done.stdout)[0]["parts"]
    assert (parts[0]["text"], parts[0]["source"]) == ("Fun smiling face", "text")


def test_its_search_and_verbalizer(
    scratch: Callable[..., Any], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    with (HERE.parent / "examples" / "movie-reviews" / "train.csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as f:
        out = csv.DictWriter(f, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    base = ("--data", tmp_path / "t.csv", "--template", "{{ text | spell_emoji }} It was {{ mask }}",
            "--model", tiny_model("bert"))  # fmt: skip
    words = tmp_path / "words.json"
    forge(scratch, "search-verbalizer", *base, "--search", "likeliest", "--words-per-label", 2,
          "--output", words)  # fmt: skip
    made = json.loads(words.read_text(encoding="utf-8"))
    assert made["origin"]["search"] == "likeliest"
    assert [len(w) for w in made["patterns"]["inline"].values()] == [2, 2]
    words.write_text(json.dumps({**made, "verbalizer": "loudest"}), encoding="utf-8")
    figures = forge(scratch, "evaluate", *base, "--verbalizer", words, "--json",
                    "-o", "sharpness=2.5")  # fmt: skip
    assert json.loads(figures.stdout)["inline"]["rows"] == len(rows)


def test_uninstall_and_install(scratch: Callable[..., Any]) -> None:
    forge(scratch, "uninstall", "promptforge-emoji")
    forge(scratch, "emoji", code=2)
    failed = forge(scratch, "install", "./nowhere", code=1)
    assert "pip install failed" in failed.stderr
    forge(scratch, "install", scratch.root / "source")  # type: ignore[attr-defined]
    assert forge(scratch, "emoji").returncode == 0
