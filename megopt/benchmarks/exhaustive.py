"""Speed of the per-request optimum: the envelope against the brute force, the brute force against plain numpy.

Everything here is numpy without BLAS, which runs on one core. Times are the best of interleaved repeats. The instance
is random: Rayleigh fading, one payload and one compute time per row, quality that rises with effort, and limits on
latency and energy that about a third of the pairs of state and row break.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from megopt.arrays import FloatArray
from megopt.benchmarks.timing import peak_memory_mb
from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.solvers import exhaustive
from megopt.solvers.brute_force import RowCosts, choose
from megopt.system.link import LinkState
from megopt.system.outcome import Work

_FLOOR_ELEMENTS = 25_000_000
"""Elements of the floor's matrix: 200 MB, so that it comes from memory, as a matrix of all states and rows would."""


def run(num_states: int = 100_000, num_rows: int = 2_000, seed: int = 0, repeats: int = 7) -> dict[str, float]:
    """Return speeds and ratios on a random instance with `num_states` states and `num_rows` rows.

    Keys that begin with `affine_` are for the objective latency_s, the others for quality:

    - states_per_s: states over the time of the whole call of `solve`, `call_fast_s`.
    - speedup_over_bruteforce: `bruteforce_s` over `fast_s`: the two ways to choose the rows, path against path.
    - bruteforce_share_of_floor: `floor_s` over `bruteforce_s`; 1 would be as fast as the floor.
    - call_speedup_over_bruteforce: the same for whole calls. Both then score all answers with `problem.evaluate`; that
      shared scoring is most of `call_fast_s`, so this ratio is much smaller.
    - num_differences: states in which the two choose different rows; anything but 0 is a defect.
    - bruteforce_s, fast_s: choosing the rows [s]. call_bruteforce_s, call_fast_s: choosing, scoring and reporting [s].
    - floor_s: `numpy.argmax` along the rows of a ready-made float64 matrix, -inf where infeasible, over as many
      elements as the instance has pairs of state and row [s]. The matrix holds the first states, at most 200 MB, and is
      gone over again until all elements are counted. Nothing is computed for it: no cost, no comparison.
    - share_infeasible: share of the pairs of state and row that break a limit [1].
    - peak_memory_mb: largest resident size of the whole process so far, with imports and the matrix of the floor [MB].

    Args:
        num_states: channel states [1].
        num_rows: rows of the action table [1].
        seed: seed of the instance.
        repeats: the best of so many runs counts [1].
    """
    table, link = instance(num_states, num_rows, np.random.default_rng(np.random.SeedSequence(seed)))
    limits = (Limit(quantity="latency_s", bound=2.0), Limit(quantity="energy_j", bound=150.0))
    quality = _compared(table, link, Problem(objective="quality", metric="ssim", limits=limits), repeats)
    affine = _compared(table, link, Problem(objective="latency_s", limits=limits), repeats)
    return quality | {f"affine_{key}": value for key, value in affine.items()} | {"peak_memory_mb": peak_memory_mb()}


def instance(num_states: int, num_rows: int, rng: np.random.Generator) -> tuple[ActionTable, LinkState]:
    """Return a random action table and link: rows that work and send more give better quality, with scatter."""
    effort = rng.random(num_rows)
    seconds, bits = 0.2 + 3.0 * effort * rng.random(num_rows), 1e5 + 4e6 * effort * rng.random(num_rows)
    none = np.zeros(num_rows)
    work = Work(
        edge_s=seconds,
        device_s=0.1 * seconds,
        downlink_bits=bits,
        uplink_bits=none,
        num_round_trips=none,
        edge_energy_j=60.0 * seconds * rng.uniform(0.5, 2.0, num_rows),
        device_energy_j=5.0 * seconds,
    )
    table = made_table(work, 0.3 + 0.5 * np.sqrt(effort) + 0.1 * rng.random(num_rows))
    snr = 10.0 * rng.exponential(size=num_states)
    s_per_bit = 1.0 / (1e6 * np.log2(1.0 + snr))
    link = LinkState(
        snr=snr,
        downlink_s_per_bit=s_per_bit,
        uplink_s_per_bit=s_per_bit,
        round_trip_s=0.02,
        device_rx_power_w=1.0,
        device_tx_power_w=1.5,
        edge_tx_power_w=40.0,
    )
    return table, link


def made_table(work: Work, ssim: FloatArray) -> ActionTable:
    """Return the action table of made-up rows with this work and this quality, shape (num_rows,)."""
    num_rows = len(ssim)
    return ActionTable(
        scheme=np.full(num_rows, "random"),
        label=np.arange(num_rows).astype(str),
        knobs=(),
        settings=np.zeros((num_rows, 0)),
        work=work,
        metrics=("ssim",),
        quality=ssim[:, np.newaxis],
        kind=np.full(num_rows, "modelled"),
        profile="random",
    )


def _compared(table: ActionTable, link: LinkState, problem: Problem, repeats: int) -> dict[str, float]:
    """Return the keys of `run` for one problem."""
    costs = RowCosts.of(table, link, problem)
    down, up = link.downlink_s_per_bit, link.uplink_s_per_bit
    matrix, share_infeasible = _ready_made(costs, down, up)
    least = _least_seconds(
        {
            "bruteforce_s": lambda: choose(costs, down, up),
            "fast_s": lambda: exhaustive.rows_by_envelope(costs, link),
            "call_bruteforce_s": lambda: exhaustive.solve_by_brute_force(table, link, problem),
            "call_fast_s": lambda: exhaustive.solve(table, link, problem),
            "floor_s": lambda: _argmax_over(matrix, len(down)),
        },
        repeats,
    )
    differences = exhaustive.solve(table, link, problem).rows != choose(costs, down, up)
    return {
        "states_per_s": len(down) / least["call_fast_s"],
        "speedup_over_bruteforce": least["bruteforce_s"] / least["fast_s"],
        "bruteforce_share_of_floor": least["floor_s"] / least["bruteforce_s"],
        "call_speedup_over_bruteforce": least["call_bruteforce_s"] / least["call_fast_s"],
        "num_differences": float(np.count_nonzero(differences)),
        **least,
        "share_infeasible": share_infeasible,
    }


def _ready_made(costs: RowCosts, down: FloatArray, up: FloatArray) -> tuple[FloatArray, float]:
    """Return the floor's matrix of values to maximise, shape (num_first_states, num_rows), and its infeasible share."""
    num_first = max(1, min(len(down), _FLOOR_ELEMENTS // len(costs.objective.constant)))
    matrix = np.empty((num_first, len(costs.objective.constant)))
    for state in range(num_first):
        value, is_usable = costs.usable(down[state], up[state])
        matrix[state] = np.where(is_usable, -value, -np.inf)
    return matrix, float(np.mean(np.isneginf(matrix)))


def _argmax_over(matrix: FloatArray, num_states: int) -> None:
    """Take the maximum along the rows of `num_states` states, the states of `matrix` again and again."""
    for done in range(0, num_states, len(matrix)):
        matrix[: num_states - done].argmax(axis=1)


def _least_seconds(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the shortest wall time of each work over interleaved `repeats` [s]; a first round is not counted."""
    least = dict.fromkeys(works, np.inf)
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if repeat:
                least[name] = min(least[name], time.perf_counter() - start)
    return least
