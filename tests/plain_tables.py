"""Action tables, links and problems written by hand, for tests of solvers and policies."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.system.link import LinkState
from megopt.system.outcome import Work

METRICS = ("ssim", "fid")


def table_of(**columns: ArrayLike) -> ActionTable:
    """Return a table of the given work columns, `ssim` and `fid`; columns that are left out are 0."""
    num_rows = len(np.asarray(next(iter(columns.values()))))

    def column(name: str) -> np.ndarray:
        return np.asarray(columns.get(name, np.zeros(num_rows)), dtype=float)

    return ActionTable(
        scheme=np.full(num_rows, "test"),
        label=np.array([f"row{row}" for row in range(num_rows)]),
        knobs=(),
        settings=np.zeros((num_rows, 0)),
        work=Work(**{name: column(name) for name in Work.__dataclass_fields__}),
        metrics=METRICS,
        quality=np.stack([column(name) for name in METRICS], axis=1),
        kind=np.full(num_rows, "modelled"),
        profile="test",
    )


def link_of(down: ArrayLike, up: ArrayLike | None = None, *, round_trip_s: float = 0.0) -> LinkState:
    """Return a link with the given seconds per bit; without `up` the uplink is as fast as the downlink."""
    down = np.asarray(down, dtype=float)
    return LinkState(
        snr=np.ones(len(down)),
        downlink_s_per_bit=down,
        uplink_s_per_bit=down.copy() if up is None else np.asarray(up, dtype=float),
        round_trip_s=round_trip_s,
        device_rx_power_w=1.0,
        device_tx_power_w=1.5,
        edge_tx_power_w=3.0,
    )


def limits_of(**bounds: float) -> tuple[Limit, ...]:
    """Return one limit per keyword, in their order."""
    return tuple(Limit(quantity=quantity, bound=bound) for quantity, bound in bounds.items())


def problem_of(goal: str = "quality", **bounds: float) -> Problem:
    """Return a problem with the metric `ssim` and one limit per keyword."""
    return Problem(objective=goal, metric="ssim", limits=limits_of(**bounds))
