"""Who shares common steps with whom, and how many: exact optimum, certified bound, clustering.

User n takes x common steps under the public prompt m of its group, y at the edge and z on its device under its own,
x + y + z = N. The group runs its largest x, call it c, once, and every member waits for all of it:

    maximise  sum_n [w_Q Q_nm(x) - w_T ((c + y) s_E + t_n + z s_n) - w_E (y e_E + j_n + z e_n)] - w_E sum_groups c e_E

Once c is fixed, users no longer meet: with h_nm(c) the best bracket over x <= c and y, the public prompts S and their c
are worth sum_n max_{m in S} h_nm(c_m) - w_E e_E sum c_m. `solve_exactly` tries every S of the allowed size and every c,
(number of S) x (c_max + 1)^|S| x users evaluations in all. For more users, `bound` relaxes the same choice, a facility
location with one facility per (m, c), to a linear program, and `cluster` groups prompts by average linkage; its gap is
measured against the one or the other. Every x <= c is allowed: a c that nobody reaches is never best.
Source: HIS, ICC 2025, equations (1) to (17); facility location as in Cornuejols, Nemhauser and Wolsey, 1990.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from time import perf_counter
from typing import Any

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.ranges import require_whole, require_within
from megopt.schemes.shared_steps_quality import MEASURED_RANGE, QualityCurves
from megopt.solvers.solution import Status

MOST_EVALUATIONS = 300_000_000
"""Largest search that `solve_exactly` takes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingProblem:
    """Users, public prompts that they may share, and what steps cost.

    Attributes:
        quality: Q of user n under public prompt m with x common steps, shape (num_users, num_prompts, c_max + 1); -inf
            where it may not be chosen. x = 0 has to be allowed.
        edge_step_s: time of a step at the edge s_E [s].
        edge_step_j: energy of a step at the edge e_E [J].
        device_step_s: time of a step on the device s_n [s], shape (num_users,).
        device_step_j: energy of a step on the device e_n [J], shape (num_users,).
        transfer_s: time to send the latent and finish t_n [s], shape (num_users,).
        transfer_j: energy of that j_n [J], shape (num_users,).
        num_steps: N.
        max_edge_steps: largest y.
        min_device_steps: smallest z.
        quality_weight: w_Q [1/score].
        latency_weight: w_T [1/s].
        energy_weight: w_E [1/J].

    Raises:
        ConfigError: for a cost or a weight outside its range.
        ProblemError: if shapes differ, or some number of common steps leaves no way to end at N.
    """

    quality: FloatArray
    edge_step_s: float
    edge_step_j: float
    device_step_s: FloatArray
    device_step_j: FloatArray
    transfer_s: FloatArray
    transfer_j: FloatArray
    num_steps: int = 28
    max_edge_steps: int = 16
    min_device_steps: int = 0
    quality_weight: float = 1.0
    latency_weight: float = 1.0
    energy_weight: float = 1.0

    def __post_init__(self) -> None:
        where = "grouping"
        require_whole(where, 0, max_edge_steps=self.max_edge_steps, min_device_steps=self.min_device_steps)
        for name in ("device_step_s", "device_step_j", "transfer_s", "transfer_j"):
            require_within(where, 0.0, 1e30, **{name: getattr(self, name)})
            if np.shape(getattr(self, name)) != np.shape(self.quality)[:1]:
                message = (
                    f"{where}: {name} has shape {np.shape(getattr(self, name))}; expected one value for each of the "
                    f"users of quality, whose shape is {np.shape(self.quality)}; mend it"
                )
                raise ProblemError(message)
        for name in ("edge_step_s", "edge_step_j", "quality_weight", "latency_weight", "energy_weight"):
            require_within(where, 0.0, 1e30, **{name: getattr(self, name)})
        if self.num_steps - self.min_device_steps < self.quality.shape[2] - 1:
            message = (
                f"{where}: {self.quality.shape[2] - 1} common steps and {self.min_device_steps} on the device are more "
                f"than {self.num_steps}; expected x + y + z = num_steps to be possible; lower one of them"
            )
            raise ProblemError(message)
        if not np.all(np.isfinite(self.quality[:, :, 0])):
            message = f"{where}: quality without common steps is not finite for some user; expected a score; fill it in"
            raise ProblemError(message)

    def edge_steps(self) -> IntArray:
        """Return the best y for each user and number of common steps x, shape (num_users, c_max + 1): one end or other.

        The cost of a step is constant on either side, so that all spare steps go to the cheaper one.
        """
        edge = self.latency_weight * self.edge_step_s + self.energy_weight * self.edge_step_j
        device = self.latency_weight * self.device_step_s + self.energy_weight * self.device_step_j
        left = self.num_steps - np.arange(self.quality.shape[2])
        most = np.minimum(left - self.min_device_steps, self.max_edge_steps)
        return np.where((edge <= device)[:, np.newaxis], most, 0).astype(np.int64)

    def member_values(self) -> FloatArray:
        """Return what each user adds under each prompt with x common steps but for the wait, shape as `quality`."""
        y = self.edge_steps()
        z = self.num_steps - np.arange(self.quality.shape[2]) - y
        seconds = y * self.edge_step_s + self.transfer_s[:, np.newaxis] + z * self.device_step_s[:, np.newaxis]
        joules = y * self.edge_step_j + self.transfer_j[:, np.newaxis] + z * self.device_step_j[:, np.newaxis]
        spent = self.latency_weight * seconds + self.energy_weight * joules
        return np.asarray(self.quality_weight * self.quality - spent[:, np.newaxis, :])

    def worth(self) -> tuple[FloatArray, FloatArray]:
        """Return h_nm(c), shape as `quality`, and the price of c common steps, shape (c_max + 1,)."""
        steps = np.arange(self.quality.shape[2])
        best = np.maximum.accumulate(self.member_values(), axis=2)
        waited = best - self.latency_weight * self.edge_step_s * steps
        return np.asarray(waited), np.asarray(self.energy_weight * self.edge_step_j * steps, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingSolution:
    """Who shares what; per-user fields have shape (num_users,).

    Attributes:
        solver: name of the solver.
        status: optimal, that is, proved best up to `gap`.
        prompts: public prompt of each user's group.
        group_steps: common steps c that the group runs.
        common_steps: x.
        edge_steps: y.
        device_steps: z.
        value: the objective, larger is better.
        bound: certified upper bound on it.
        runtime_s: wall time of the solve [s].
    """

    solver: str
    status: Status
    prompts: IntArray
    group_steps: IntArray
    common_steps: IntArray
    edge_steps: IntArray
    device_steps: IntArray
    value: float
    bound: float
    runtime_s: float

    @property
    def gap(self) -> float:
        """Relative distance (bound - value)/max(|bound|, 1e-12)."""
        return (self.bound - self.value) / max(abs(self.bound), 1e-12)


def quality_table(similarity: FloatArray, curves: QualityCurves, max_common_steps: int) -> FloatArray:
    """Return Q for every user, public prompt and x, shape (num_users, num_prompts, max_common_steps + 1).

    Where the similarity lies outside what was measured, sharing is not allowed (-inf) and x = 0 keeps the score of no
    sharing.

    Args:
        similarity: cosines of personal and public prompts [1], shape (num_users, num_prompts).
        curves: the quality curves.
        max_common_steps: largest x.
    """
    require_within("quality table", -1.0 - 1e-9, 1.0 + 1e-9, similarity=similarity)
    is_known = ((similarity >= MEASURED_RANGE[0]) & (similarity < MEASURED_RANGE[1])) | (similarity >= 1.0 - 1e-9)
    steps = np.arange(max_common_steps + 1)
    known = curves.quality(steps, np.where(is_known, similarity, 1.0)[..., np.newaxis])
    return np.asarray(np.where(is_known[..., np.newaxis] | (steps == 0), known, -np.inf))


def score(problem: SharingProblem, prompts: IntArray, common_steps: IntArray, edge_steps: IntArray) -> float:
    """Return the objective of a plan by its definition, user by user: the check of every claim.

    Args:
        problem: users and costs.
        prompts: public prompt of each user, shape (num_users,).
        common_steps: x, shape (num_users,).
        edge_steps: y, shape (num_users,).
    """
    users = np.arange(len(prompts))
    z = problem.num_steps - common_steps - edge_steps
    waits = np.array([np.max(common_steps[prompts == prompt]) for prompt in prompts])
    seconds = (waits + edge_steps) * problem.edge_step_s + problem.transfer_s + z * problem.device_step_s
    joules = edge_steps * problem.edge_step_j + problem.transfer_j + z * problem.device_step_j
    shared_j = sum(np.max(common_steps[prompts == prompt]) for prompt in np.unique(prompts)) * problem.edge_step_j
    gained = problem.quality_weight * np.sum(problem.quality[users, prompts, common_steps])
    lost = problem.latency_weight * np.sum(seconds) + problem.energy_weight * (np.sum(joules) + shared_j)
    return float(gained - lost)


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
