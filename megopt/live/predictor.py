"""What a device predicts of a row before it asks for it: the table on the link, as earlier requests correct it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from megopt.live.calibration import Calibration, Taken
from megopt.live.course import Course, no_link
from megopt.live.predictions import hidden_s
from megopt.schemes.action_table import ActionTable
from megopt.system.link import LinkState
from megopt.system.outcome import Outcome, Work, outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a request will cost.

    Attributes:
        outcome: fields of shape (1,); NaN for a decision that is no row.
        runtime_s: part of its latency that is neither models nor link, a wait at the edge included [s].
        table_s: latency by the table alone [s].
        spent_s: part of the runtime that was over when it was predicted [s].
    """

    outcome: Outcome
    runtime_s: float
    table_s: float
    spent_s: float


class Predictor:
    """Predicts the rows of one table, and learns from what came.

    Attributes:
        calibration: what earlier requests teach.
    """

    def __init__(self, table: ActionTable, calibration: Calibration) -> None:
        self.calibration = calibration
        self._table = table

    def of(self, row: int, link: LinkState | None, spent_s: float, wait_s: float = 0.0) -> Prediction:
        """Return what a row will cost.

        Args:
            row: of the table; -1 for none.
            link: that it meets; None for none.
            spent_s: time that is over already [s].
            wait_s: at the edge, as it states it; counted where the row asks the edge [s].
        """
        work, unknown, runtime_s = self._work(row), np.full(1, np.nan), spent_s + self.calibration.runtime_s
        runtime_s += wait_s if work.num_round_trips[0] > 0.0 else 0.0
        found, plain = (outcome(one, link or no_link(), unknown) for one in (self.calibration.corrected(work), work))
        return Prediction(
            outcome=replace(found, latency_s=found.latency_s + runtime_s - hidden_s(self._table, row, found)),
            runtime_s=runtime_s,
            table_s=float(plain.latency_s[0]) - hidden_s(self._table, row, plain),
            spent_s=spent_s,
        )

    def learn(self, row: int, predicted: Prediction, measured: Outcome, course: Course) -> None:
        """Take a request into account; one that did not go as decided, or is no row, teaches nothing."""
        if row < 0 or course.notes:
            return
        known_s = course.edge_s + course.device_s + course.link_s + course.queue_s + predicted.spent_s
        runtime_s = max(0.0, float(measured.latency_s[0]) - known_s)
        took = Taken(edge_s=course.edge_s, device_s=course.device_s, runtime_s=runtime_s)
        self.calibration.learn(self._work(row), took)

    def _work(self, row: int) -> Work:
        """Return the work of a row, fields of shape (1,); NaN for -1."""
        if row >= 0:
            return self._table.work.take(np.array([row]))
        return Work(**{name: np.full(1, np.nan) for name in Work.__dataclass_fields__})
