"""One at a time, and the newest of a page wins: what nobody waits for any more is left."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

#: Pages whose last request is remembered.
_PAGES = 64


class Stale(Exception):
    """The page has asked for something newer."""


class Turns:
    """Lets one request work at a time, and drops those that a newer one of the same page replaced.

    Args:
        layers: modules that a model runs through: between two of them a request that is stale is
            broken off.
    """

    def __init__(self, layers: Sequence[nn.Module] = ()) -> None:
        self._newest: OrderedDict[str, int] = OrderedDict()
        self._known = threading.Lock()
        self._working = threading.Lock()
        self._now: tuple[str, int] | None = None
        self._closed = False
        self._hooks = [layer.register_forward_pre_hook(self._between) for layer in layers]

    @contextmanager
    def turn(self, page: str = "", serial: int = 0) -> Iterator[None]:
        """Wait for the turn of request `serial` of `page`; those with a lower number are stale.

        Raises:
            Stale: at the beginning, or from within the model.
        """
        with self._known:
            self._newest[page] = max(serial, self._newest.pop(page, serial))
            while len(self._newest) > _PAGES:
                self._newest.popitem(last=False)
        with self._working:
            self._now = (page, serial)
            try:
                self._check()
                yield
            finally:
                self._now = None

    def close(self) -> None:
        """Have nothing begin any more, and wait until what is under way has ended."""
        self._closed = True
        with self._working:
            for hook in self._hooks:
                hook.remove()

    def _check(self) -> None:
        if self._now is not None:
            page, serial = self._now
            if self._closed or self._newest.get(page, serial) > serial:
                raise Stale

    def _between(self, *_: Any) -> None:
        self._check()
