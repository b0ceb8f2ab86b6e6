"""Fixtures that several test modules use."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A slow machine is no failure.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

# Tiny models gain nothing from threads, which wait for each other where the cores are busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where bytecode is not kept, each of the processes that tests start compiles torch and transformers
# anew: 22 seconds of processor in place of six.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell starts a command with & so that Ctrl-C does not reach it, and so would every process it
# starts: the tests that interrupt one would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


#: Few tests, and minutes: begun last, one would keep a worker busy while the others have nothing to do.
LONGEST = ("test_docs_commands.py", "test_docs_methods.py", "test_cluster.py", "test_quality.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def models_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache that all tests share: each package is downloaded at most once.

    PROMPTFORGE_TEST_CACHE names a folder that outlives the run, so that it can be kept.
    """
    given = os.environ.get("PROMPTFORGE_TEST_CACHE")
    if given:
        folder = Path(given)
    elif "PYTEST_XDIST_WORKER" in os.environ:  # one folder for all workers
        folder = tmp_path_factory.getbasetemp().parent / "models-cache"
        folder.mkdir(exist_ok=True)
    else:
        folder = tmp_path_factory.mktemp("models-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPTFORGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def packaged_models(models_cache: Path) -> Path:
    """The shared cache, and the names of the packaged models known.

    They are also known where PromptForge runs from its sources and has no entry points.
    """
    import promptforge_local_models

    from promptforge import plugins

    manager = plugins.manager()
    if "packaged" not in manager.registry("model-source").names():
        manager.register(promptforge_local_models, "local-models")
    return models_cache


@pytest.fixture
def own_models_cache(
    packaged_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A cache of the test's own with `minilm` and `minilm-mlm`, to be damaged freely.

    Its files may be hard links to the shared cache's: replace them, do not write into them.
    """
    from promptforge.models import locate

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # the caches lie on different disks
            shutil.copy2(source, target)

    for name in ("minilm", "minilm-mlm"):
        shutil.copytree(locate(name), tmp_path / "models" / name, copy_function=link)
    monkeypatch.setenv("PROMPTFORGE_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Architecture -> the folder of a tiny model of it, as a user has one."""
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        import tiny

        if architecture not in made:
            # The folder's name is the model's in messages, so it is a plain one.
            root = tmp_path_factory.mktemp("tiny")
            made[architecture] = tiny.save(architecture, root / architecture)
        return made[architecture]

    return folder


@dataclass
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its standard output, which is JSON."""
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Ran]:
    """Runs `promptforge ARGS...` in this process, in a folder of the test's own."""
    from promptforge.cli import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # tables are not wrapped, whatever their figures

    def execute(*args: object) -> Ran:
        capsys.readouterr()
        code = run([str(a) for a in args])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return execute


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """The task folder `reviews`: the example's, with fewer rows."""
    source = Path(__file__).parent.parent / "examples" / "movie-reviews"
    folder = tmp_path / "reviews"
    shutil.copytree(source, folder)
    for split, most in (("test", 40), ("unlabeled", 100)):
        path = folder / f"{split}.csv"
        with path.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.reader(handle))[: most + 1]
        with path.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows(rows)
    return folder
