"""Previews of a run that is under way: what it is heading for, shown while the edge goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from megopt.diffusion.checkpoint import Checkpoint
from megopt.diffusion.pipelines import Pipeline
from megopt.live import runs
from megopt.live.handover import Image
from megopt.live.telemetry import LOGGER


class Previews:
    """Makes one preview at a time; checkpoints that come meanwhile are passed over, and no request waits.

    Attributes:
        show: called with the steps done and the image, in a thread; None for no previews.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.show: Callable[[int, Image], None] | None = None
        self._pipeline = pipeline
        self._made: asyncio.Task[None] | None = None

    def offer(self, run: Checkpoint) -> None:
        """Begin a preview of `run`, unless one is under way."""
        if self.show is not None and (self._made is None or self._made.done()):
            self._made = asyncio.get_running_loop().create_task(asyncio.to_thread(self._make, run, self.show))

    async def end(self) -> None:
        """Wait for the preview that is under way."""
        if self._made is not None:
            await self._made
            self._made = None

    def _make(self, run: Checkpoint, show: Callable[[int, Image], None]) -> None:
        try:
            show(run.step, runs.preview(self._pipeline, run))
        except Exception as error:  # whatever a preview raises must not cost the user the image
            LOGGER.warning("preview at step %d: %s: %s", run.step, type(error).__name__, error)
