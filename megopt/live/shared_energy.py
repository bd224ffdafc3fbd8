"""Joules of requests that are computed together: each bears an even share of every window that it was there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType

from megopt.live.jobs import Job
from megopt.metering.energy import Meter


class SharedEnergy:
    """One meter over a batch, as a context; a window ends when a request leaves.

    Attributes:
        source: where the joules come from, a key of `megopt.tables.schema.ENERGY_SOURCES`.
    """

    def __init__(self, meter: Meter, jobs: Sequence[Job]) -> None:
        self.source = "not_measured"
        self._meter, self._there = meter, list(jobs)
        self._shares_j, self._is_open = [0.0] * len(self._there), False

    def __enter__(self) -> SharedEnergy:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_open:
            self._meter.end()

    def _begin(self) -> None:
        self._meter.begin()
        self._is_open = True

    def of_leaving(self, job: Job) -> float | None:
        """Return the share of a request that is ready to leave [J]; None where it was not measured."""
        spent, self._is_open = self._meter.end(), False
        self.source = spent.source
        self._shares_j = [share_j + spent.energy_j / len(self._there) for share_j in self._shares_j]
        row = self._there.index(job)
        self._there.pop(row)
        share_j = self._shares_j.pop(row)
        if self._there:
            self._begin()
        return None if math.isnan(share_j) else share_j

    def drop(self, job: Job) -> None:
        """Take a request out that ended without a result; what it has cost stays with it."""
        if job in self._there:
            row = self._there.index(job)
            self._there.pop(row)
            self._shares_j.pop(row)
