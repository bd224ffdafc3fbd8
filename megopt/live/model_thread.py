"""The one thread that loads and runs the models of a service.

OpenMP gives every thread that runs a model a team of its own, and keeps it. With more teams than cores the barriers of
small layers no longer spin but sleep: on two cores a denoising step took 2.5 times as long in a thread beside the one
that had loaded the model, and its plain time in the thread that loaded it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class ModelThread:
    """Calls what it is given, one after the other, in one thread that ends with the process at the latest."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name="megopt-models", daemon=True).start()

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Return what becomes of `call`, which waits for the calls before it."""
        future: Future[Result] = Future()
        self._calls.put((future, call))
        return future

    def end(self) -> None:
        """Let the thread end after the calls that it was given."""
        self._calls.put(None)

    def _run(self) -> None:
        while (entry := self._calls.get()) is not None:
            _carry_out(*entry)
            del entry  # what a call held is free while the thread waits


def _carry_out(future: Future[Result], call: Callable[[], Result]) -> None:
    """Let a future know what becomes of its call, unless it was cancelled before its turn."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
