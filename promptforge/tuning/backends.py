"""Where jobs run: processes of this machine, a Ray or a Dask cluster, by joblib's backend for each.

A backend only says to joblib where to go, with `joblib.parallel_config`; code that runs jobs knows
none of them. So a program that has called `parallel_config` itself needs no backend from here.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, ClassVar, TextIO, cast

from pydantic import Field

from promptforge.components import Component
from promptforge.errors import PromptForgeError, UserError, did_you_mean, listed

#: Seconds that a cluster has to answer, and to have a worker.
PATIENCE = 60


class Backend(Component):
    """A place for jobs."""

    role: ClassVar[str] = "backend"
    #: modules that it needs, by the names that install them
    modules: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Raise a `UserError` where it is not installed; imports nothing."""
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                raise UserError(
                    f"backend {self.name!r} needs the package {module}: pip install {' '.join(self.modules)}"
                )

    @abstractmethod
    def started(self, jobs: int, stack: ExitStack) -> int:
        """Make this joblib's backend until `stack` is left.

        Args:
            jobs: how many at a time; -1: as many as there are CPUs.
            stack: closes what was opened.

        Returns:
            How many will run at a time.

        Raises:
            UserError: what it needs is not installed or not there, or is too small for `jobs`.
        """


class Loky(Backend):
    """Processes of this machine."""

    name: ClassVar[str] = "loky"

    def started(self, jobs: int, stack: ExitStack) -> int:
        """Errors and arguments as for every backend."""
        from joblib import effective_n_jobs, parallel_config

        stack.enter_context(parallel_config(backend="loky"))
        return int(effective_n_jobs(jobs))


class Ray(Backend):
    """Actors of a Ray cluster, by `ray.util.joblib`. A job whose machine is lost begins again elsewhere.

    An actor asks for half a CPU, so that those of lost machines find room on the others while half of the
    CPUs are left. (One that asks for none is placed at random, however full a machine is.)
    """

    name: ClassVar[str] = "ray"
    modules: ClassVar[tuple[str, ...]] = ("ray",)

    address: str = Field(
        "", description="A running cluster: auto or HOST:PORT. Empty: $RAY_ADDRESS, else one of this machine for this run."
    )  # fmt: skip
    gpus: float = Field(0.0, ge=0, description="GPUs of a job; 0.5: two jobs have one together.")
    retries: int = Field(3, ge=0, description="How often a worker begins again after its machine was lost.")  # fmt: skip

    def started(self, jobs: int, stack: ExitStack) -> int:
        """Errors and arguments as for every backend."""
        # Ray tells its makers about clusters that it starts, unless told not to.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from joblib import parallel_config
        from ray.util.joblib import register_ray

        stack.enter_context(redirect_stdout(cast(TextIO, _Aside(sys.stderr))))
        if not ray.is_initialized():
            self._connect(ray, jobs, stack)
        register_ray()
        there = int(ray.cluster_resources().get("CPU", 0))
        jobs = _fitting(jobs, there, "Ray")
        arguments = {
            # Calls to a lost actor fail, many a second, until Ray has seen that it is lost: restarts count.
            "num_cpus": 0.5, "max_restarts": self.retries, "max_task_retries": -1, "scheduling_strategy": "SPREAD",
            **({"num_gpus": self.gpus} if self.gpus else {}),
        }  # fmt: skip
        stack.enter_context(parallel_config(backend="ray", ray_remote_args=arguments))
        return jobs

    def _connect(self, ray: Any, jobs: int, stack: ExitStack) -> None:
        address = self.address or os.environ.get("RAY_ADDRESS") or "local"
        options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}  # fmt: skip
        if address == "local":
            stack.enter_context(_threads(jobs))
            options |= {"num_cpus": None if jobs < 0 else jobs, "include_dashboard": False}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"There is no Ray cluster at {address!r}: {_first(error)}. Start one with 'ray start --head', "
                "or leave out backend.address (and RAY_ADDRESS) to have one of this machine."
            ) from error
        stack.callback(ray.shutdown)


class Dask(Backend):
    """Workers of a Dask cluster. A job whose worker is lost begins again on another."""

    name: ClassVar[str] = "dask"
    modules: ClassVar[tuple[str, ...]] = ("dask", "distributed")

    address: str = Field(
        "", description="A running scheduler: tcp://HOST:8786. Empty: this program's Client, else one of this machine for this run."
    )  # fmt: skip
    retries: int = Field(3, ge=0, description="How often a job begins again after its worker was lost.")  # fmt: skip

    def started(self, jobs: int, stack: ExitStack) -> int:
        """Errors and arguments as for every backend."""
        import dask
        import distributed
        from joblib import parallel_config

        # The scheduler of a running cluster has a number of its own.
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": self.retries}))  # fmt: skip
        client = self._client(distributed, jobs, stack)
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise UserError(
                f"The Dask cluster at {client.scheduler.address} has no worker: start some with 'dask worker "
                f"{client.scheduler.address} --nthreads 1'."
            ) from None
        jobs = _fitting(jobs, sum(client.ncores().values()), "Dask")
        stack.enter_context(parallel_config(backend="dask", client=client))
        return jobs

    def _client(self, distributed: Any, jobs: int, stack: ExitStack) -> Any:
        import dask

        if self.address:
            try:
                return stack.enter_context(
                    distributed.Client(self.address, timeout=PATIENCE, set_as_default=False)
                )
            except (OSError, TimeoutError, ValueError) as error:
                raise UserError(
                    f"There is no Dask scheduler at {self.address!r}: {_first(error)}. Start one with 'dask "
                    "scheduler', or leave out backend.address to have one of this machine."
                ) from error
        try:
            return distributed.get_client()
        except ValueError:
            stack.enter_context(_threads(jobs))
        # Dask has workers give freed memory back at once, which costs a training a third of its time.
        # Its profiler looks at every thread a hundred times a second, for a dashboard that is not there.
        stack.enter_context(dask.config.set({
            "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
            "distributed.worker.profile.enabled": False,
        }))  # fmt: skip
        cluster = stack.enter_context(
            distributed.LocalCluster(
                n_workers=jobs if jobs > 0 else os.cpu_count(), threads_per_worker=1, memory_limit=0,
                dashboard_address=None, silence_logs=logging.ERROR,
            )
        )  # fmt: skip
        return stack.enter_context(distributed.Client(cluster, set_as_default=False))


BACKENDS: dict[str, type[Backend]] = {made.name: made for made in (Loky, Ray, Dask)}


def backend_class(name: str) -> type[Backend]:
    """The class of a backend by its name.

    Raises:
        UserError: there is none of this name.
    """
    if name not in BACKENDS:
        raise UserError(
            f"backend {name!r}: choose one of {listed(list(BACKENDS))}.{did_you_mean(name, list(BACKENDS))}"
        )
    return BACKENDS[name]


@contextmanager
def started(backend: str | Backend | None, jobs: int | None) -> Iterator[int]:
    """Jobs run on `backend` in this block; gives how many at a time.

    Args:
        backend: one of `BACKENDS`, or its name; None: what `joblib.parallel_config` says, else loky.
        jobs: how many at a time; -1: as many as there are CPUs; None: what `parallel_config` says,
            else 1.

    Raises:
        UserError: no such backend or number; the backend is not installed, not there or too small.
    """
    from joblib import effective_n_jobs

    if jobs is not None and jobs < 1 and jobs != -1:
        raise UserError(f"jobs is {jobs}: give 1 or more, or -1 for as many as there are CPUs.")
    made = backend_class(backend)() if isinstance(backend, str) else backend
    if made is None:
        yield int(effective_n_jobs(jobs))
        return
    if made.name != "loky" and jobs in (None, 1):
        raise UserError(
            f"backend {made.name!r} runs jobs side by side: say how many with --jobs N (in Python: jobs=N); "
            "-1: as many as it has CPUs."
        )
    made.check()
    with ExitStack() as stack:
        yield made.started(jobs or 1, stack)


def _fitting(jobs: int, there: int, what: str) -> int:
    if there < 1:
        raise PromptForgeError(f"The {what} cluster has no CPU for jobs.")
    if jobs > there:
        raise UserError(
            f"jobs is {jobs}, and the {what} cluster has {there} CPU(s): give at most that many, or -1 for all."
        )
    return there if jobs < 0 else jobs


def _first(error: BaseException) -> str:
    """The first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class _Aside:
    """What Ray prints of its machines belongs beside the results, on standard error.

    That an actor of a pool ends, at its end, is no news.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or leave out."""
        return len(text) if "__ray_terminate__" in text else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _threads(jobs: int) -> Iterator[None]:
    """Workers that are started here share this machine's cores, as loky's do."""
    name = "OMP_NUM_THREADS"
    cores = os.cpu_count() or 1
    before = os.environ.get(name)
    os.environ.setdefault(name, str(max(1, cores // jobs if jobs > 0 else 1)))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
