"""A cluster loses a machine in the middle of an ensemble, and the run ends as if nothing had happened.

Real clusters of two nodes on this machine, on ports of their own on the loopback. These tests take
up to two minutes together.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from promptforge.cli import run as promptforge

pytest.importorskip("ray")
pytest.importorskip("distributed")

Folder = Callable[[str], Path]
#: Seconds that anything may take before a test gives up; a busy machine needs some of them.
PATIENCE = 240
MEMBERS = 4


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> Any:
    """What `what()` gives as soon as it is true; `process` must not end before."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := what():
            return found
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended too early: {process.communicate()}")
        time.sleep(0.02)
    raise AssertionError("waited too long")


@contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is gone, with all it started, when the block is left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, env=environment, text=True, **options)
    family = psutil.Process(process.pid)
    try:
        yield process
    finally:
        with_children = [family]
        with suppress(psutil.NoSuchProcess):
            with_children += family.children(recursive=True)
        slay(with_children)
        process.communicate()


def slay(processes: list[psutil.Process]) -> None:
    """kill -9, and wait until they are gone."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with few rows."""
    source = Path(__file__).parent.parent / "examples" / "movie-reviews"
    folder = tmp_path_factory.mktemp("cluster") / "reviews"
    shutil.copytree(source, folder)
    for split in ("train", "dev", "test", "unlabeled"):
        path = folder / f"{split}.csv"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[:13]), encoding="utf-8")
    return folder


def command(task: Path, model: Path, run: Path, *more: str) -> list[str]:
    """A PET ensemble of four members and the final model that they teach."""
    return [
        sys.executable, "-m", "promptforge", "train", str(task), "--model", str(model), "--run", str(run),
        "--strategy", "pet", "--pattern", "it-was", "--pattern", "tone", "--steps", "60",
        "-o", "strategy.repetitions=2", "-o", "strategy.final_steps=5", "--batch-size", "4",
        "--no-compare-untrained", "--jobs", "2", "--json", *more,
    ]  # fmt: skip


def made(run: Path) -> dict[str, str]:
    """What a run ended with: the digest of each member's weights, and of all that was said."""
    digests = {
        p.parent.name: json.loads(p.read_text(encoding="utf-8"))["sha256"]
        for p in run.glob("members/*/artifact.json")
    }
    said = (run / "predictions.jsonl").read_bytes()
    return {**digests, "predictions": hashlib.sha256(said).hexdigest()}


def under_way(run: Path) -> list[str]:
    """Members whose training has begun and not ended."""
    return [p.stem for p in run.glob("members/*.parts") if any(p.iterdir())]


@pytest.fixture(scope="module")
def undisturbed(
    task: Path, tiny_model: Folder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What the run gives in one process, where nobody is killed."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert promptforge(command(task, tiny_model("bert"), run, "--jobs", "1")[3:]) == 0
    assert len(made(run)) == MEMBERS + 2  # the final model, and what was said
    return made(run)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: Ray's sockets lie below it, and their paths are limited."""
    folder = Path(tempfile.mkdtemp(prefix="pf"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def ray_cluster(short: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with a CPU each."""
    monkeypatch.setenv(
        "RAY_worker_niceness", "0"
    )  # else everything else on the machine comes first
    # Ray writes the cluster's address below its usual folder too, which a fresh machine lacks.
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    (short / "ray").mkdir()
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 100 * 2**20, "num_cpus": 1}
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={**size, "include_dashboard": False, "temp_dir": str(short)},
    )
    try:
        cluster.add_node(**size)
        yield cluster
    finally:
        cluster.shutdown()
        slay([p for p in psutil.Process().children(recursive=True) if p.pid not in before])


def test_ray_loses_a_node(
    ray_cluster: Any, undisturbed: dict[str, str], task: Path, tiny_model: Folder, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (node,) = ray_cluster.worker_nodes
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)

    def at_work() -> list[psutil.Process]:
        """Workers of the node that have a member in hand, once members are being trained."""
        if not under_way(run):
            return []
        return [p for p in raylet.children(recursive=True) if "run_batch" in " ".join(p.cmdline())]

    options = ("--backend", "ray", "-o", f"backend.address={ray_cluster.address}")
    line = command(task, tiny_model("bert"), run, *options)
    with started(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        busy = wait_for(at_work, process)
        slay([raylet, *raylet.children(recursive=True)])
        assert not any(p.is_running() for p in busy)
        assert len(made_so_far(run)) < MEMBERS
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["results"]["test"]["tuned"]
    assert made(run) == undisturbed


def made_so_far(run: Path) -> list[Path]:
    """The members that are done."""
    return list(run.glob("members/*/artifact.json"))


def test_dask_loses_a_worker(
    undisturbed: dict[str, str], task: Path, tiny_model: Folder, tmp_path: Path
) -> None:
    from distributed import Client

    run, told = tmp_path / "run", tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    dask = [sys.executable, "-m", "dask"]
    scheduler = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                 "--scheduler-file", str(told)]  # fmt: skip
    worker = [*dask, "worker", "--scheduler-file", str(told), "--host", "127.0.0.1", "--nthreads", "1",
              "--no-nanny", "--no-dashboard", "--memory-limit", "0"]  # fmt: skip
    with started(scheduler, **quiet):
        address = wait_for(
            lambda: told.exists() and told.read_text() and json.loads(told.read_text())
        )
        options = ("--backend", "dask", "-o", f"backend.address={address['address']}")
        with (
            started(worker, **quiet),
            started(worker, **quiet),
            Client(address["address"], timeout=PATIENCE, set_as_default=False) as client,
        ):
            client.wait_for_workers(2, timeout=PATIENCE)
            pids = client.run(os.getpid)

            def at_work() -> list[str]:
                """Workers that have a member in hand, once members are being trained."""
                return (
                    [w for w, had in client.processing().items() if had] if under_way(run) else []
                )

            line = command(task, tiny_model("bert"), run, *options)
            with started(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                slay([psutil.Process(pids[wait_for(at_work, process)[0]])])
                assert len(made_so_far(run)) < MEMBERS
                out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["results"]["test"]["tuned"]
    assert made(run) == undisturbed
