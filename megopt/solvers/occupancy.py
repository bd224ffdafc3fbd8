"""Long-run limits where the choice moves the state: a constrained Markov decision process by its occupancy measure.

With rho(s, a) the share of time in state s with action a, transitions P and the best long-run average,

    min_rho sum rho f   subject to   sum_a rho(s', a) = sum_{s,a} rho(s, a) P(s' | s, a) for all s',
                                     sum rho = 1,   sum rho c_i <= L_i for all i,   rho >= 0,

and the optimal policy plays a in s with probability rho(s, a) / sum_a rho(s, a). Any potentials h and prices lambda of
0 or more prove the bound min_{s,a} [f + lambda . (c - L) + sum_s' P(s' | s, a) h(s') - h(s)], whatever the tolerances.
The process has to be unichain, that is, forget where it began; else the program answers for the best place to begin.
Source: E. Altman, Constrained Markov Decision Processes, 1999, ch. 4; M. Puterman, Markov Decision Processes, ch. 8.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ProblemError
from megopt.solvers.average_limits_highs import Program, linear_program
from megopt.solvers.solution import Status

_VISITED = 1e-9
"""Share of time below which a state counts as not visited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionProcess:
    """States, actions and what they cost and lead to; smaller is better.

    Attributes:
        transition: probability of each next state, array or sparse, shape (num_states * num_actions, num_states);
            row s * num_actions + a. An array of shape (num_states, num_actions, num_states) is taken as well.
        objective: f, shape (num_states, num_actions); an action that is not finite in it or in a cost is not allowed.
        costs: c, shape (num_states, num_actions, num_costs).
        ceilings: L, shape (num_costs,); inf where a cost is not limited.
        names: what the costs are called in messages, one per cost.

    Raises:
        ProblemError: if shapes do not fit, probabilities are none, or a state has no action.
    """

    transition: Any
    objective: FloatArray
    costs: FloatArray
    ceilings: FloatArray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        from scipy import sparse

        num_states, num_actions = self.objective.shape
        given = self.transition
        flat: Any = given if sparse.issparse(given) else np.reshape(given, (-1, np.shape(given)[-1]))
        object.__setattr__(self, "transition", sparse.csr_array(flat))
        shapes = (self.transition.shape, self.costs.shape, self.ceilings.shape, (len(self.names),))
        num_costs = len(self.ceilings)
        pairs = num_states * num_actions
        if shapes != ((pairs, num_states), (num_states, num_actions, num_costs), (num_costs,), (num_costs,)):
            message = (
                f"decision process: {num_states} states x {num_actions} actions come with transition, costs, ceilings "
                f"and names of shapes {shapes}; expected ({pairs}, {num_states}), ({num_states}, {num_actions}, "
                "num_costs), (num_costs,) and (num_costs,)"
            )
            raise ProblemError(message)
        self._check_transition()

    def _check_transition(self) -> None:
        allowed = self.is_allowed
        lost = np.flatnonzero(~np.any(allowed, axis=1))
        if len(lost):
            message = (
                f"decision process: states {', '.join(str(state) for state in lost[:5])} have no action with finite "
                "costs; expected one in every state; add a row that needs no link, such as device only"
            )
            raise ProblemError(message)
        sums = np.asarray(self.transition.sum(axis=1)).reshape(allowed.shape)
        is_wrong = allowed & (np.abs(sums - 1.0) > 1e-9)
        if np.any(is_wrong) or (self.transition.nnz and self.transition.data.min() < 0.0):
            state, action = np.argwhere(is_wrong)[0] if np.any(is_wrong) else (0, 0)
            message = (
                f"decision process: probabilities out of state {state} under action {action} sum to "
                f"{sums[state, action]:.9g} or are negative; expected numbers >= 0 that sum to 1"
            )
            raise ProblemError(message)

    @property
    def is_allowed(self) -> BoolArray:
        """Which actions may be chosen, shape (num_states, num_actions)."""
        bounded = self.costs[..., self.ceilings < np.inf]
        return np.asarray(np.isfinite(self.objective) & np.all(np.isfinite(bounded), axis=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class OccupancySolution:
    """The best stationary randomised policy of a decision process, with its certificate.

    Attributes:
        status: optimal or infeasible.
        value: long-run mean of the objective; NaN if infeasible.
        bound: proved lower bound on it; NaN if infeasible.
        costs: long-run mean costs, shape (num_costs,); those of the least excess if infeasible.
        prices: price of each cost, >= 0, shape (num_costs,). If infeasible, with `potentials` the proof: in every state
            and for every action, prices . (c - L) + P h - h is `proof` > 0 or more.
        potentials: h, relative value of each state, shape (num_states,).
        proof: see `prices`; 0 if feasible.
        occupancy: rho, share of time in each state with each action, shape (num_states, num_actions).
        policy: probability of each action in each state, rows sum to 1, shape (num_states, num_actions).
        runtime_s: wall time of the solve [s].
        message: which limits are out of reach if infeasible, and whether the policy forgets where it began.
    """

    status: Status
    value: float
    bound: float
    costs: FloatArray
    prices: FloatArray
    potentials: FloatArray
    proof: float
    occupancy: FloatArray
    policy: FloatArray
    runtime_s: float
    message: str = ""

    @property
    def gap(self) -> float:
        """Relative distance |value - bound| / max(|bound|, 1e-12)."""
        return abs(self.value - self.bound) / max(abs(self.bound), 1e-12)


def solve(process: DecisionProcess) -> OccupancySolution:
    """Return the stationary policy of least long-run mean objective within the limits, or the proof that there is none.

    Args:
        process: a unichain decision process.
    """
    start = time.perf_counter()
    allowed = process.is_allowed
    bounded = np.flatnonzero(process.ceilings < np.inf)
    most = process.ceilings[bounded]
    scales = np.where(most == 0.0, 1.0, np.abs(most))
    excess = (process.costs[allowed][:, bounded] - most) / scales
    pairs = np.flatnonzero(allowed.ravel())
    transition = process.transition[pairs]
    states = pairs // allowed.shape[1]
    objective = process.objective[allowed]
    program = _program(objective, excess, transition, states)
    is_feasible = program.is_feasible
    if not is_feasible:
        program = _least_excess(excess, transition, states)
    prices, potentials = program.prices / scales, program.potentials[:-1]
    weight = 1.0 if is_feasible else 0.0
    to_go = weight * objective + excess @ program.prices + transition @ potentials
    bound = float(np.min(to_go - potentials[states]))
    rho = np.zeros(allowed.shape)
    rho[allowed] = np.maximum(program.x[: len(pairs)], 0.0)
    rho /= np.sum(rho)
    mean = np.einsum("sa,sai->i", rho, np.where(rho[..., None] > 0.0, process.costs, 0.0))
    all_prices = np.zeros(len(process.ceilings))
    all_prices[bounded] = prices
    priced = np.full(allowed.shape, np.inf)
    priced[allowed] = to_go
    policy = _policy(rho, priced, process.transition)
    message = "" if is_feasible else _message(process, mean)
    if (num_closed := _num_closed_classes(policy, process.transition)) > 1:
        message += f"{'; ' if message else ''}the policy has {num_closed} closed classes: its means depend on its start"
    return OccupancySolution(
        status=Status.OPTIMAL if is_feasible else Status.INFEASIBLE,
        value=float(np.sum(rho * np.where(allowed, process.objective, 0.0))) if is_feasible else np.nan,
        bound=bound if is_feasible else np.nan,
        costs=mean,
        prices=all_prices,
        potentials=potentials,
        proof=0.0 if is_feasible else bound,
        occupancy=rho,
        policy=policy,
        runtime_s=time.perf_counter() - start,
        message=message,
    )


def _program(objective: FloatArray, excess: FloatArray, transition: Any, states: Any) -> Program:
    """Return the linear program over the shares of time of the allowed pairs; excess (num_pairs, num_bounded)."""
    balance, level = _balance(transition, states)
    unit = float(np.max(np.abs(objective))) or 1.0
    program = linear_program(objective / unit, excess.T, np.zeros(excess.shape[1]), balance, level)
    return Program(
        is_feasible=program.is_feasible,
        value=program.value * unit,
        x=program.x,
        prices=program.prices * unit,
        potentials=program.potentials * unit,
    )


def _least_excess(excess: FloatArray, transition: Any, states: Any) -> Program:
    """Return the program that minimises the largest relative excess, its unknown the last."""
    from scipy import sparse

    balance, level = _balance(transition, states)
    num_pairs, num_bounded = excess.shape
    objective = np.append(np.zeros(num_pairs), 1.0)
    upper = np.hstack([excess.T, -np.ones((num_bounded, 1))])
    wider = sparse.hstack([balance, sparse.csr_array((len(level), 1))], format="csr")
    return linear_program(objective, upper, np.zeros(num_bounded), wider, level)


def _balance(transition: Any, states: Any) -> tuple[Any, FloatArray]:
    """Return the equations: what flows out of a state flows in, and all shares sum to 1."""
    from scipy import sparse

    num_pairs, num_states = transition.shape
    leaves: Any = sparse.csr_array((np.ones(num_pairs), (states, np.arange(num_pairs))), shape=(num_states, num_pairs))
    total: Any = sparse.csr_array(np.ones((1, num_pairs)))
    equations = sparse.vstack([leaves - transition.T, total], format="csr")
    return equations, np.append(np.zeros(num_states), 1.0)


def _policy(rho: FloatArray, priced: FloatArray, transition: Any) -> FloatArray:
    """Return the probabilities of the actions; in states that are not visited an action that leads to those that are.

    Of the actions that may lead one step nearer it is that of least priced cost to go. So the policy ends up in the
    visited states from anywhere; the least cost to go alone may never leave the others where actions tie.

    Args:
        rho: shares of time, shape (num_states, num_actions).
        priced: priced cost to go, inf where not allowed, same shape.
        transition: probabilities of the next state, sparse (num_states * num_actions, num_states).
    """
    share = np.sum(rho, axis=1)
    probabilities = np.where(share[:, None] > _VISITED, rho / np.maximum(share, _VISITED)[:, None], 0.0)
    is_near = share > _VISITED
    while not np.all(is_near):
        leads = (transition @ is_near.astype(np.float64)).reshape(rho.shape) > 0.0
        options = np.where(leads, priced, np.inf)
        is_next = ~is_near & np.any(np.isfinite(options), axis=1)
        if not np.any(is_next):  # no action leads there at all
            is_next, options = ~is_near, priced
        probabilities[is_next, np.argmin(options, axis=1)[is_next]] = 1.0
        is_near = is_near | is_next
    return np.asarray(probabilities)


def _num_closed_classes(policy: FloatArray, transition: Any) -> int:
    """Return into how many sets of states the chain of a policy falls that it never leaves."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    num_states, num_actions = policy.shape
    states = np.repeat(np.arange(num_states), num_actions)
    mix: Any = sparse.csr_array((policy.ravel(), (states, np.arange(policy.size))))
    chain = (mix @ transition).tocoo()
    num, label = connected_components(chain, directed=True, connection="strong")
    leaves = label[chain.row[(chain.data > 0.0) & (label[chain.row] != label[chain.col])]]
    return int(num - len(np.unique(leaves)))


def _message(process: DecisionProcess, mean: FloatArray) -> str:
    """Return which limits are out of reach together, and the nearest means."""
    over = [
        f"{name} <= {most:g} (nearest mean {reached:.6g})"
        for name, most, reached in zip(process.names, process.ceilings, mean, strict=True)
        if reached > most
    ]
    return f"no policy keeps {' and '.join(over)} on average"
