"""Threads take turns with a language model, and trainings with the random numbers of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from promptforge.backbone.base import Backbone

    class _Reader(Protocol):
        @property
        def backbone(self) -> Backbone: ...


R = TypeVar("R", bound="_Reader")
P = ParamSpec("P")
T = TypeVar("T")

#: A training seeds the random numbers of the process: one at a time.
_training = threading.RLock()


class Turn:
    """A lock that its thread may enter again, as `threading.RLock`, and that counts how often it did.

    Attributes:
        entered: by the thread that has it; of no use to others.
    """

    def __init__(self) -> None:
        self._lock, self.entered = threading.RLock(), 0

    def acquire(self, blocking: bool = True) -> bool:
        """Have it; without `blocking` only where no other thread has."""
        if not self._lock.acquire(blocking):
            return False
        self.entered += 1
        return True

    def release(self) -> None:
        """Leave it once."""
        self.entered -= 1
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def in_turn(
    method: Callable[Concatenate[R, P], T],
) -> Callable[Concatenate[R, P], T]:
    """A method of what reads with a `backbone`: other threads have that model before or after it.

    Not for a generator, which would be over before anything is read.
    """

    @wraps(method)
    def alone(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.backbone.busy:
            return method(self, *args, **kwargs)

    return alone


@contextmanager
def one_training(backbone: Backbone) -> Iterator[None]:
    """Whatever seeds random numbers to train a model does so in here, from its beginning to its end.

    No other thread trains meanwhile, or has the model; and the random numbers that torch gives the
    caller afterwards are those that it would have given before.
    """
    # A seed is for all devices. Those that nobody has used yet are not woken for it.
    awake = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if awake else ()
    with _training, backbone.busy, torch.random.fork_rng(devices):
        yield
