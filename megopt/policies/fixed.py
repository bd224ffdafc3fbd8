"""The same row for every request: the baseline of a deployment without a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from megopt.arrays import BoolArray, IntArray
from megopt.errors import NotOfferedError
from megopt.policies.base import Observation
from megopt.problem import Problem
from megopt.schemes.action_table import ActionTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Always the first row whose scheme is `scheme` and whose label begins with `label`.

    Attributes:
        table: the rows.
        problem: kept so that every policy is built alike; a fixed policy does not read it.
        scheme: scheme of the row.
        label: beginning of the row's label.
    """

    table: ActionTable
    problem: Problem
    scheme: str
    label: str
    reads_limits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self._matches().any():
            labels = [str(text) for text in self.table.label[self.table.scheme == self.scheme][:4]]
            have = f"it begins with {'; '.join(labels)}" if labels else "that scheme is not in the table"
            message = f"profile {self.table.profile} has no row {self.scheme}: {self.label}; {have}"
            raise NotOfferedError(message)

    def _matches(self) -> BoolArray:
        is_scheme = np.asarray(self.table.scheme == self.scheme)
        return is_scheme & np.char.startswith(self.table.label, self.label)

    def act(self, observation: Observation) -> IntArray:
        """Return the same row for every request, shape (num_requests,)."""
        return np.full(len(observation.link.snr), int(np.argmax(self._matches())), dtype=np.int64)
