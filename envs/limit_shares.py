"""Limits that bind on any profile: as shares of what the best row costs beyond the cheapest one.

    bound = cheapest + share (best - cheapest)

where `cheapest` is the least mean cost of any row chosen for every request and `best` the mean cost of the row of
best quality. Share 1 and more leaves the limit slack; near share 0 one limit leaves the cheapest row alone, and several
can exclude one another, for each has its own cheapest row. A profile that is measured anew moves the limits with its
costs.
"""

from __future__ import annotations

import numpy as np

from megopt.arrays import FloatArray
from megopt.envs.parameters import EnvParams
from megopt.errors import ConfigError
from megopt.problem import evaluate
from megopt.ranges import require_number

_NUM_STATES = 4000
"""Devices whose first channel state is behind the mean costs."""


def limit_bounds(params: EnvParams, share: float) -> tuple[float, ...]:
    """Return the bound of each limit of `params.problem` at a share of its range, to three digits.

    Args:
        params: the environment; its problem names metric and limited quantities, whose own bounds are not read.
        share: where in the range from the cheapest row to the best one, in [0, 10].

    Raises:
        ConfigError: for a share out of range, or a limit on quality, which is a floor.
    """
    require_number("scenario", 0.0, 10.0, limit_share=share)
    if any(limit.quantity == "quality" for limit in params.problem.limits):
        message = f"scenario: limit_share {share:g} with a limit on quality; expected limits on costs; state the floor"
        raise ConfigError(message)
    means, quality = _means(params)
    best = int(np.argmin(params.problem.sense_of("quality") * quality))
    lows = np.min(means, axis=0)
    return tuple(float(f"{low + share * (high - low):.3g}") for low, high in zip(lows, means[best], strict=True))


def _means(params: EnvParams) -> tuple[FloatArray, FloatArray]:
    """Return mean costs (num_rows, num_limits) and quality (num_rows,) of each row, chosen for every request."""
    table, problem = params.table.take(np.flatnonzero(params.is_offered)), params.problem
    places = params.channel.initial(np.random.default_rng(0), _NUM_STATES)
    link = params.link.state(params.channel.snr(places))
    means, quality = np.empty((len(table), len(problem.limits))), np.empty(len(table))
    for row in range(len(table)):
        result = evaluate(table, np.full(_NUM_STATES, row), link, problem.metric)
        hidden_s = np.minimum(result.edge_s, np.roll(result.downlink_s, 1)) if params.is_pipelined else 0.0
        costs = {"latency_s": result.latency_s - hidden_s}
        means[row] = [np.mean(costs.get(limit.quantity, result.quantity(limit.quantity))) for limit in problem.limits]
        quality[row] = np.mean(result.quality)
    return means, quality
