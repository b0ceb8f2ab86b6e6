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
