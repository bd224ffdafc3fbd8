"""The region split without a grid: closed form and cone program over the same sweep, as records beside the policies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from megopt.analysis.rollout import records_of, summarise
from megopt.analysis.tradeoff import Tradeoff
from megopt.arrays import FloatArray
from megopt.errors import NotOfferedError
from megopt.problem import Problem
from megopt.schemes.region_split import RegionSplit
from megopt.schemes.scheme import Scheme
from megopt.solvers.generation_splitting import RegionSplitModel, RegionSplitSolution, device_s, energy_j, solve
from megopt.system.compute import power_control_latency_s
from megopt.system.link import LinkState
from megopt.system.outcome import Work, outcome
from megopt.system.payload import latent_bits
from megopt.tables.schema import METRICS

if TYPE_CHECKING:
    import pandas as pd

    from megopt.tables.profile import Profile

POLICY = "region_split_closed_form"
"""Name in records and figures."""
NUM_CHECKED = 8
"""Limits at which the cone program is solved as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuousRegionSplit:
    """What the two solvers found.

    Attributes:
        records: one row per request and limit, under the policy name `POLICY`.
        worst_gap: largest relative gap of the closed form to its certified bound.
        worst_disagreement: largest relative distance between closed form and cone program, at `NUM_CHECKED` limits.
        runtime_s: wall time of the closed form over all limits and states [s].
    """

    records: pd.DataFrame
    worst_gap: float
    worst_disagreement: float
    runtime_s: float


def model_of(profile: Profile, scheme: RegionSplit) -> RegionSplitModel:
    """Return the constants of the closed form from the profile's rows and parameters.

    Raises:
        OutOfTableError: if the profile lacks a component.
        ProfileError: if the profile lacks a parameter.
    """
    return RegionSplitModel(
        edge_full_s=profile.cost("edge", "whole_generation").latency_s,
        latent_bits=float(latent_bits(float(np.prod(profile.provenance.latent_shape)), scheme.codec_bits)),
        device_coarse_s=profile.cost("device", "coarse_pass").latency_s,
        device_refine_s=profile.cost("device", "refine_pass").latency_s,
        device_power_max_w=profile.parameter("device_power_max_w").value,
        power_exponent=profile.parameter("device_power_exponent").value,
        region_ratio_min=profile.parameter("region_ratio_min").value,
        cost_factor=scheme.cost_factor,
    )


def with_closed_form(
    found: Tradeoff, profile: Profile, schemes: Iterable[Scheme], link: LinkState
) -> tuple[Tradeoff, dict[str, float]]:
    """Return the trade-off with the closed form's curve added where it holds, and the facts of its certificate."""
    import pandas as pd

    scheme = next((scheme for scheme in schemes if isinstance(scheme, RegionSplit)), None)
    if scheme is None or "region_split" not in set(found.records["scheme"]):
        return found, {}
    try:
        solved = solve_sweep(profile, scheme, link, found.problems)
    except NotOfferedError as error:
        return replace(found, notes=[*found.notes, str(error)]), {}
    trace = found.records.groupby("request")["trace"].first()
    solved_records = solved.records.assign(trace=solved.records["request"].map(trace))
    records = pd.concat([found.records, solved_records], ignore_index=True)
    facts = {
        "worst_gap": solved.worst_gap,
        "worst_disagreement_with_cone_program": solved.worst_disagreement,
        "runtime_s": solved.runtime_s,
    }
    return replace(found, records=records, curve=summarise(records)), facts


def solve_sweep(
    profile: Profile, scheme: RegionSplit, link: LinkState, problems: Sequence[Problem]
) -> ContinuousRegionSplit:
    """Return closed form, certificate and check over the limits of a sweep.

    Args:
        profile: must time whole_generation, coarse_pass and refine_pass.
        scheme: cost factor, codec and prompt.
        link: the link of every request, shape (num_requests,).
        problems: least latency under one limit on device_energy_j, one problem per limit.

    Raises:
        NotOfferedError: where the closed form does not hold: another objective or limit, or a link with radio energy.
    """
    import pandas as pd

    _check_that_it_holds(link, problems)
    model = model_of(profile, scheme)
    limits = np.array([problem.limits[0].bound for problem in problems])
    solution = solve(model, limits[:, None], link.downlink_s_per_bit)  # (num_limits, num_requests)
    parts = [_records(profile, scheme, model, _take(solution, i), link, problem) for i, problem in enumerate(problems)]
    return ContinuousRegionSplit(
        records=pd.concat(parts, ignore_index=True),
        worst_gap=float(np.max(solution.gap)),
        worst_disagreement=_disagreement(model, limits, link),
        runtime_s=solution.runtime_s,
    )


def _check_that_it_holds(link: LinkState, problems: Sequence[Problem]) -> None:
    quantities = {tuple(limit.quantity for limit in problem.limits) for problem in problems}
    if {problem.objective for problem in problems} != {"latency_s"} or quantities != {("device_energy_j",)}:
        message = "the closed form of region split minimises latency_s under one limit, on device_energy_j"
        raise NotOfferedError(message)
    if link.device_rx_power_w or link.device_tx_power_w:
        message = (
            "the closed form of region split counts no radio energy of the device; it holds with link=megsplitting"
        )
        raise NotOfferedError(message)


def _take(solution: RegionSplitSolution, limit: int) -> tuple[FloatArray, FloatArray]:
    """Return region ratio and power ratio of one limit, each of shape (num_requests,)."""
    return solution.region_ratio[limit], solution.power_w[limit]


def _records(
    profile: Profile,
    scheme: RegionSplit,
    model: RegionSplitModel,
    decision: tuple[FloatArray, FloatArray],
    link: LinkState,
    problem: Problem,
) -> pd.DataFrame:
    ratio, power_w = decision
    power_ratio = power_w / model.device_power_max_w
    is_split = ratio < 1.0
    device = np.where(is_split, power_control_latency_s(device_s(model, ratio), power_ratio, model.power_exponent), 0.0)
    work = Work(
        edge_s=ratio * model.edge_full_s,
        device_s=device,
        downlink_bits=ratio * model.latent_bits,
        uplink_bits=np.full(len(ratio), scheme.prompt_bits),
        num_round_trips=np.ones(len(ratio)),
        edge_energy_j=ratio * profile.cost("edge", "whole_generation").energy_j,
        device_energy_j=energy_j(model, ratio, power_w),
    )
    result = outcome(work, link, _quality(profile, ratio, problem.metric))
    label = [f"{x:.3f} of the image at the edge, {p:.3f} of the power" for x, p in zip(ratio, power_ratio, strict=True)]
    names = {"profile": profile.name, "policy": POLICY, "scheme": scheme.name, "label": label, "row": -1}
    return records_of(result, link, problem, "device_energy_j", {**names, "kind": profile.kinds()})


def _quality(profile: Profile, ratio: FloatArray, metric: str) -> FloatArray:
    """Return the metric inside the measured ratios, its identity at 1, NaN between."""
    quality = np.full(len(ratio), np.nan)
    if not metric:
        return quality
    is_measured = ratio <= profile.parameter("region_ratio_max").value
    if is_measured.any():
        quality[is_measured] = profile.quality_at("region_split", metric, {"region_ratio": ratio[is_measured]})
    quality[ratio == 1.0] = METRICS[metric].identity
    return quality


def _disagreement(model: RegionSplitModel, limits: FloatArray, link: LinkState) -> float:
    """Return the largest relative distance to the cone program, at the median link state that carries data."""
    from megopt.solvers.generation_splitting_cvxpy import cone_program_latency_s

    alive = link.downlink_s_per_bit[np.isfinite(link.downlink_s_per_bit)]
    if not len(alive):
        return float("nan")
    checked = limits[np.unique(np.linspace(0, len(limits) - 1, NUM_CHECKED).round().astype(int))]
    state = float(np.median(alive))
    return float(
        np.max(np.abs(solve(model, checked, state).latency_s / cone_program_latency_s(model, checked, state) - 1.0))
    )
