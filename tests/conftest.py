"""Fixtures that several test modules use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache that all tests share: each package is downloaded at most once.

    PROMPTFORGE_TEST_CACHE names a folder that outlives the run, so that it can be kept.
    """
    given = os.environ.get("PROMPTFORGE_TEST_CACHE")
    folder = Path(given) if given else tmp_path_factory.mktemp("models-cache")
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
