"""Shared steps: users, public prompts and what steps cost; plans, and what a plan is worth.

User n takes x common steps under the public prompt m of its group, y at the edge and z on its device under its own,
x + y + z = N. The group runs its largest x, call it c, once, and every member waits for all of it:

    maximise  sum_n [w_Q Q_nm(x) - w_T ((c + y) s_E + t_n + z s_n) - w_E (y e_E + j_n + z e_n)] - w_E sum_groups c e_E

Source: HIS, ICC 2025, equations (1) to (17).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.arrays import FloatArray, IntArray
from megopt.errors import ProblemError
from megopt.ranges import require_whole, require_within
from megopt.schemes.shared_steps_quality import MEASURED_RANGE, QualityCurves
from megopt.solvers.solution import Status


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
