"""Previews of a run that is under way: what it is heading for, shown while the edge goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType

from megopt.diffusion.checkpoint import Checkpoint
from megopt.live import runs
from megopt.live.handover import Image
from megopt.live.own_models import OwnModels
from megopt.live.telemetry import LOGGER


class Previews:
    """Makes one preview at a time, and only where the device's models have nothing else to do.

    Nobody waits for a preview but who leaves the context `async with previews`: then the last one is there, too.

    Attributes:
        show: called with the steps done and the image, in a thread; None for no previews.
    """

    def __init__(self, own: OwnModels) -> None:
        self.show: Callable[[int, Image], None] | None = None
        self._own = own
        self._shown: asyncio.Task[None] | None = None

    def offer(self, run: Checkpoint) -> None:
        """Begin a preview of `run`, or pass it over."""
        if self.show is None or (self._shown is not None and not self._shown.done()):
            return
        made = self._own.when_idle(runs.preview, self._own.pipeline, run)
        if made is not None:
            self._shown = asyncio.get_running_loop().create_task(_shown(made, run.step, self.show))

    async def __aenter__(self) -> Previews:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown is not None:
            await self._shown


async def _shown(made: Future[Image], step: int, show: Callable[[int, Image], None]) -> None:
    try:
        await asyncio.to_thread(show, step, await asyncio.wrap_future(made))
    except Exception as error:  # whatever a preview raises must not cost the user the image
        LOGGER.warning("preview at step %d: %s: %s", step, type(error).__name__, error)
