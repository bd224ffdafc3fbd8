"""A queue at the edge and a battery in the device, driven by the rows of an action table, and classes of link states.

A level x, backlog [s] or charge [J], moves with every request by the gain of the chosen row and the arrivals:

    queue:    x' = clip(x + edge_s(a) - interval, 0, capacity),     latency = x + latency(a) for rows that use the edge
    battery:  x' = clip(x + harvest - device_energy(a, link), 0, capacity)

What is cut off at the top of the queue (overflow) or at the bottom of the battery (shortage) is a cost with a limit of
its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import BoolArray, FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.ranges import require_whole, require_within
from megopt.schemes.action_table import ActionTable
from megopt.system.link import LinkState
from megopt.system.outcome import AffineCost, terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Something that fills and empties from request to request.

    Attributes:
        name: what is limited at its end, with its unit, such as "overflow_s".
        capacity: largest level [s or J].
        num_points: points of the grid over 0..capacity [1].
        gain: change of the level by each row, before arrivals, fields of shape (num_rows,) [s or J].
        arrivals: equally likely changes besides, shape (num_arrivals,) [s or J].
        is_waiting: rows whose latency includes the level, shape (num_rows,).
        is_full_lost: whether the limited loss is at the top; else at the bottom.
        loss_limit: limit on the mean loss per request [s or J].
    """

    name: str
    capacity: float
    num_points: int
    gain: AffineCost
    arrivals: FloatArray
    is_waiting: BoolArray
    is_full_lost: bool
    loss_limit: float

    def __post_init__(self) -> None:
        require_within(f"level {self.name}", 1e-12, 1e12, capacity=self.capacity)
        require_within(f"level {self.name}", 0.0, np.inf, loss_limit=self.loss_limit)
        require_whole(f"level {self.name}", 2, num_points=self.num_points)

    @property
    def grid(self) -> FloatArray:
        """The points, shape (num_points,)."""
        return np.linspace(0.0, self.capacity, self.num_points)

    def moved(self, level: FloatArray, change: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the next level and what is lost at the limited end, for arrays that broadcast."""
        target = level + change
        lost = target - self.capacity if self.is_full_lost else -target
        return np.clip(target, 0.0, self.capacity), np.maximum(lost, 0.0)

    def neighbours(self, level: FloatArray) -> tuple[IntArray, FloatArray]:
        """Return the grid point below each level and the weight of the point above, same shape."""
        position = level / self.capacity * (self.num_points - 1)
        below = np.minimum(position.astype(np.int64), self.num_points - 2)
        return below, position - below


def poisson_intervals(mean_s: float, num_classes: int = 8) -> FloatArray:
    """Return equally likely times between Poisson arrivals, class means of the exponential law; shape (num_classes,).

    Args:
        mean_s: mean time between two requests [s].
        num_classes: classes of equal probability [1].
    """
    require_within("arrivals", 1e-12, 1e12, mean_s=mean_s)
    require_whole("arrivals", 1, num_classes=num_classes)
    tail = 1.0 - np.arange(num_classes + 1) / num_classes
    # The integral of t e^-t from a on is (a + 1) e^-a, with e^-a the tail.
    above = np.where(tail > 0.0, tail * (1.0 - np.log(np.maximum(tail, 1e-300))), 0.0)
    return np.asarray(mean_s * num_classes * (above[:-1] - above[1:]))


def edge_queue(
    table: ActionTable,
    *,
    interval_s: float | FloatArray,
    capacity_s: float,
    num_points: int = 41,
    overflow_s: float = 0.0,
) -> Level:
    """Return the backlog of the edge in seconds of work.

    Args:
        table: rows; those with edge time wait for the backlog and add to it.
        interval_s: time between two requests, or equally likely ones [s].
        capacity_s: largest backlog [s].
        num_points: points of the grid [1].
        overflow_s: limit on the mean work cut off at the capacity per request [s].

    Raises:
        ConfigError: if a number is outside its range.
    """
    zero = np.zeros(len(table))
    return Level(
        name="overflow_s",
        capacity=capacity_s,
        num_points=num_points,
        gain=AffineCost(constant=table.work.edge_s, per_downlink=zero, per_uplink=zero),
        arrivals=-np.atleast_1d(np.asarray(interval_s, dtype=np.float64)),
        is_waiting=table.work.edge_s > 0.0,
        is_full_lost=True,
        loss_limit=overflow_s,
    )


def battery(
    table: ActionTable,
    link: LinkState,
    *,
    harvest_j: float | FloatArray,
    capacity_j: float,
    num_points: int = 41,
    shortage_j: float = 0.0,
) -> Level:
    """Return the charge of the device's battery in joules.

    Args:
        table: rows with known device energy.
        link: only its radio powers are read.
        harvest_j: energy that comes in between two requests, or equally likely ones [J].
        capacity_j: energy that the battery holds [J].
        num_points: points of the grid [1].
        shortage_j: limit on the mean energy drawn beyond an empty battery per request [J].

    Raises:
        ProblemError: if a row has no known device energy.
        ConfigError: if a number is outside its range.
    """
    energy = terms(table.work, link, "device_energy_j")
    unknown = np.flatnonzero(np.isnan(energy.constant))
    if len(unknown):
        message = (
            f"battery: rows {', '.join(str(row) for row in unknown[:5])} of profile {table.profile} have no known "
            "device energy; expected joules in every row; leave them out with table.take"
        )
        raise ProblemError(message)
    return Level(
        name="shortage_j",
        capacity=capacity_j,
        num_points=num_points,
        gain=AffineCost(constant=-energy.constant, per_downlink=-energy.per_downlink, per_uplink=-energy.per_uplink),
        arrivals=np.atleast_1d(np.asarray(harvest_j, dtype=np.float64)),
        is_waiting=np.zeros(len(table), dtype=np.bool_),
        is_full_lost=False,
        loss_limit=shortage_j,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkClasses:
    """The states of a link, gathered by downlink time into classes; states in outage are classes of their own.

    Attributes:
        edges: downlink time at which each alive class but the first begins [s/bit], shape (num_alive - 1,).
        kinds: which classes of `_kind` occur, ascending, shape (num_classes,).
        down: mean downlink time of each class [s/bit], inf in an outage of the downlink, shape (num_classes,).
        up: mean uplink time [s/bit], likewise.
        shares: probability of each class [1], shape (num_classes,).
    """

    edges: FloatArray
    kinds: IntArray
    down: FloatArray
    up: FloatArray
    shares: FloatArray

    @classmethod
    def of(cls, link: LinkState, num_classes: int) -> LinkClasses:
        """Return at most `num_classes` classes of about equal probability, and one per kind of outage that occurs."""
        require_whole("link classes", 1, num_classes=num_classes)
        down, up = link.downlink_s_per_bit, link.uplink_s_per_bit
        alive = np.isfinite(down) & np.isfinite(up)
        sample = np.sort(down[alive])
        cuts = sample[np.arange(1, num_classes) * len(sample) // num_classes] if len(sample) else sample
        edges = np.unique(cuts[cuts > sample[0]]) if len(sample) else cuts
        kind = cls._kind(edges, down, up)
        present, count = np.unique(kind, return_counts=True)
        means = [np.array([np.mean(times[kind == one]) for one in present]) for times in (down, up)]
        return cls(edges=edges, kinds=present, down=means[0], up=means[1], shares=count / len(down))

    @staticmethod
    def _kind(edges: FloatArray, down: FloatArray, up: FloatArray) -> IntArray:
        """Return the class of each state; the last three are the outages of downlink, uplink and both."""
        outage = len(edges) + np.isinf(down) + 2 * np.isinf(up)
        alive = np.searchsorted(edges, down, side="right")
        return np.asarray(np.where(outage > len(edges), outage, alive), dtype=np.int64)

    def of_states(self, link: LinkState) -> IntArray:
        """Return the class of each state of `link`, shape (num_states,).

        Raises:
            ProblemError: if `link` has a kind of outage that the classes were not made from.
        """
        kind = self._kind(self.edges, link.downlink_s_per_bit, link.uplink_s_per_bit)
        strange = np.count_nonzero(~np.isin(kind, self.kinds))
        if strange:
            message = (
                f"link classes: {strange} of {len(kind)} states are in an outage that the classes do not know; "
                "expected states like those they were made from; make the classes from more states"
            )
            raise ProblemError(message)
        return np.searchsorted(self.kinds, kind)
