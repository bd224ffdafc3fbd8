"""Who shares common steps with whom, and how many: exact optimum, certified bound, clustering.

`grouping_model` states the objective: steps x in common, y at the edge and z on the device, c common steps per group.
Once c is fixed, users no longer meet: with h_nm(c) the best bracket over x <= c and y, the public prompts S and their c
are worth sum_n max_{m in S} h_nm(c_m) - w_E e_E sum c_m. `solve_exactly` tries every S of the allowed size and every c,
(number of S) x (c_max + 1)^|S| x users evaluations in all. For more users, `bound` relaxes the same choice, a facility
location with one facility per (m, c), to a linear program, and `cluster` groups prompts by average linkage; its gap is
measured against the one or the other. Every x <= c is allowed: a c that nobody reaches is never best.
Source: facility location as in Cornuejols, Nemhauser and Wolsey, 1990.
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from time import perf_counter
from typing import Any

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.ranges import require_whole
from megopt.solvers.grouping_model import SharingProblem, SharingSolution, score
from megopt.solvers.solution import Status

MOST_EVALUATIONS = 300_000_000
"""Largest search that `solve_exactly` takes on."""


def best_plan(problem: SharingProblem, prompts: IntArray) -> SharingSolution:
    """Return the best steps for given groups, exactly: each group's c is tried on its own.

    Args:
        problem: users and costs.
        prompts: public prompt of each user, shape (num_users,); users of one prompt are a group.

    Returns:
        SharingSolution whose bound holds for these groups alone.
    """
    start = perf_counter()
    worth, price = problem.worth()
    users = np.arange(len(prompts))
    own, most = worth[users, prompts], np.zeros(len(prompts), dtype=np.int64)
    for prompt in np.unique(prompts):
        most[prompts == prompt] = np.argmax(own[prompts == prompt].sum(axis=0) - price)
    return _solution("best plan of given groups", problem, prompts, most, None, start)


def solve_exactly(problem: SharingProblem, max_groups: int) -> SharingSolution:
    """Return the best groups, public prompts and steps.

    Args:
        problem: users and costs.
        max_groups: largest number of groups.

    Raises:
        ConfigError: if max_groups is below 1.
        ProblemError: if the search is too large; use `cluster` with `bound`.
    """
    require_whole("grouping", 1, max_groups=max_groups)
    start = perf_counter()
    worth, price = problem.worth()
    num_users, num_prompts, num_choices = worth.shape
    size = min(max_groups, num_prompts)
    num_evaluations = comb(num_prompts, size) * num_choices**size * num_users
    if num_evaluations > MOST_EVALUATIONS:
        message = (
            f"grouping: {num_evaluations:.3g} evaluations for {size} of {num_prompts} public prompts; expected at most "
            f"{MOST_EVALUATIONS:.3g}; use cluster and bound, fewer prompts or fewer groups"
        )
        raise ProblemError(message)
    best = (-np.inf, (0,) * size, (0,) * size)
    for chosen in combinations(range(num_prompts), size):
        values = _values(worth[:, list(chosen)], price)
        at = np.unravel_index(np.argmax(values), values.shape)
        best = max(best, (float(values[at]), chosen, tuple(int(c) for c in at)))
    return _assigned("exact grouping", problem, np.array(best[1]), np.array(best[2]), best[0], start)


def _values(worth: FloatArray, price: FloatArray) -> FloatArray:
    """Return the objective for every vector of c, shape (c_max + 1,) * num_chosen."""
    num_chosen = worth.shape[1]
    values = np.zeros((len(price),) * num_chosen)
    for user in worth:
        best = user[0]
        for other in user[1:]:
            best = np.maximum.outer(best, other)
        values += best
    for axis in range(num_chosen):
        values -= np.expand_dims(price, tuple(i for i in range(num_chosen) if i != axis))
    return values


def bound(problem: SharingProblem, max_groups: int) -> float:
    """Return an upper bound on the objective of any grouping: the linear relaxation, solved by HiGHS.

        max sum_nf h_nf a_nf - sum_f price_f b_f   s.t.   sum_f a_nf = 1,   a_nf <= b_f,   sum_f b_f <= groups,   >= 0

    Args:
        problem: users and costs; f runs over pairs of public prompt and c.
        max_groups: largest number of groups.

    Raises:
        ProblemError: if HiGHS ends without an optimum.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix, eye_array, hstack, kron, vstack

    require_whole("grouping", 1, max_groups=max_groups)
    worth, price = problem.worth()
    num_users, num_facilities = worth.shape[0], worth.shape[1] * worth.shape[2]
    gains = worth.reshape(num_users, num_facilities)
    lowest = gains[np.isfinite(gains)].min() - 1.0
    cost = np.concatenate([-np.where(np.isfinite(gains), gains, lowest).ravel(), np.tile(price, worth.shape[1])])
    opened = kron(np.ones((num_users, 1)), eye_array(num_facilities))
    at_most = hstack([eye_array(num_users * num_facilities), -opened])
    count = coo_matrix(np.concatenate([np.zeros(num_users * num_facilities), np.ones(num_facilities)])[np.newaxis])
    each = hstack([kron(eye_array(num_users), np.ones((1, num_facilities))), coo_matrix((num_users, num_facilities))])
    limits = np.concatenate([np.zeros(num_users * num_facilities), [max_groups]])
    rules: dict[str, Any] = {"A_ub": vstack([at_most, count]), "b_ub": limits, "A_eq": each, "b_eq": np.ones(num_users)}
    found = linprog(cost, **rules)
    if found.status != 0:
        message = f"grouping: HiGHS ended with {found.message!r}; expected an optimum; check quality for NaN"
        raise ProblemError(message)
    return float(-found.fun)


def cluster(
    problem: SharingProblem, prompt_similarity: FloatArray, candidates: FloatArray, max_groups: int
) -> SharingSolution:
    """Return groups by average linkage of the personal prompts, each with the public prompt nearest on average.

    Args:
        problem: users and costs.
        prompt_similarity: cosines among the personal prompts [1], shape (num_users, num_users).
        candidates: cosines of personal and public prompts [1], shape (num_users, num_prompts).
        max_groups: largest number of groups.

    Returns:
        SharingSolution with the best steps for these groups; its bound is that of `bound`.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    require_whole("grouping", 1, max_groups=max_groups)
    start = perf_counter()
    num_users = len(prompt_similarity)
    labels = np.ones(num_users, dtype=np.int64)
    if num_users > 1:
        distance = 1.0 - prompt_similarity[np.triu_indices(num_users, 1)]
        labels = fcluster(linkage(np.maximum(distance, 0.0), "average"), max_groups, "maxclust").astype(np.int64)
    prompts = np.zeros(num_users, dtype=np.int64)
    for label in np.unique(labels):
        prompts[labels == label] = np.argmax(candidates[labels == label].mean(axis=0))
    found = best_plan(problem, prompts)
    return _solution("clustering", problem, prompts, found.group_steps, bound(problem, max_groups), start)


def _assigned(
    solver: str, problem: SharingProblem, chosen: IntArray, steps: IntArray, value: float, start: float
) -> SharingSolution:
    """Return the solution in which every user takes the best of the chosen prompts with their c."""
    worth, _ = problem.worth()
    which = np.argmax(np.stack([worth[:, m, c] for m, c in zip(chosen, steps, strict=True)]), axis=0)
    return _solution(solver, problem, chosen[which], steps[which], value, start)


def _solution(
    solver: str, problem: SharingProblem, prompts: IntArray, most: IntArray, limit: float | None, start: float
) -> SharingSolution:
    """Return the plan of users in groups that run `most` common steps, scored by `score`."""
    values, users = problem.member_values()[np.arange(len(prompts)), prompts], np.arange(len(prompts))
    allowed = np.arange(values.shape[1]) <= most[:, np.newaxis]
    common = np.argmax(np.where(allowed, values, -np.inf), axis=1)
    reached = np.array([np.max(common[prompts == prompt]) for prompt in prompts])
    edge = problem.edge_steps()[users, common]
    value = score(problem, prompts, common, edge)
    return SharingSolution(
        solver=solver,
        status=Status.OPTIMAL,
        prompts=prompts,
        group_steps=reached,
        common_steps=common,
        edge_steps=edge,
        device_steps=problem.num_steps - common - edge,
        value=value,
        bound=value if limit is None else limit,
        runtime_s=perf_counter() - start,
    )
