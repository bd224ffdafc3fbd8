"""Grouping: exact search against brute force and MILP, bounds, presets with the paper's numbers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.errors import ConfigError, ProblemError
from megopt.reproductions import his, his_figure
from megopt.schemes.shared_steps_quality import published_curves
from megopt.solvers import grouping
from megopt.solvers.grouping import best_plan, bound, cluster, solve_exactly
from megopt.solvers.grouping_model import SharingProblem, quality_table, score
from megopt.solvers.grouping_presets import (
    DEVICE_CLOCK_RANGE_HZ,
    LATENT_BITS,
    NUM_GROUPS,
    NUM_USERS,
    paper_problem,
    profile_problem,
)
from megopt.tables.profile import PROFILES_DIR, load_profile

MATRIX = pd.read_csv(PROFILES_DIR / "his_sd3" / "prompt_similarity.csv", comment="#").iloc[:, 1:].to_numpy(dtype=float)
"""Cosines of the 22 published prompts: two public ones, ten about cats, ten about dogs."""


def random_problem(seed: int, num_users: int, num_prompts: int, num_choices: int) -> SharingProblem:
    rng = np.random.default_rng(seed)
    return SharingProblem(
        quality=-np.sort(-rng.random((num_users, num_prompts, num_choices)), axis=2),
        edge_step_s=rng.uniform(0.01, 0.2),
        edge_step_j=rng.uniform(0.0, 0.3),
        device_step_s=rng.uniform(0.01, 0.3, num_users),
        device_step_j=rng.uniform(0.0, 0.2, num_users),
        transfer_s=rng.random(num_users),
        transfer_j=rng.random(num_users),
        num_steps=num_choices + 1,
        max_edge_steps=2,
    )


def paper(num_users: int, weights: tuple[float, float, float], seed: int = 0) -> tuple[SharingProblem, np.ndarray]:
    """The paper's users under its two public prompts, drawn from its twenty personal ones."""
    rng = np.random.default_rng(seed)
    users = rng.integers(2, 22, num_users)
    similarity = MATRIX[np.ix_(users, [0, 1])]
    problem = paper_problem(
        quality_table(similarity, published_curves(), 13),
        rng.uniform(*DEVICE_CLOCK_RANGE_HZ, num_users),
        downlink_s_per_bit=1e-8,
        edge_tx_power_w=0.1,
        weights=weights,
    )
    return problem, users


def test_paper_constants_by_hand() -> None:
    problem, _ = paper(NUM_USERS, (1.0, 1.0, 1.0))
    assert problem.edge_step_s == pytest.approx(7.5e-3)
    assert problem.edge_step_j == pytest.approx(0.060)
    middle = paper_problem(problem.quality[:1], np.array([1.5e9]), downlink_s_per_bit=0.0, edge_tx_power_w=0.0)
    assert middle.device_step_s[0] == pytest.approx(9.33e-3, abs=5e-6)
    assert middle.device_step_j[0] == pytest.approx(0.0315)
    assert int(LATENT_BITS) == 4_194_304
    assert 28 * problem.edge_step_s == pytest.approx(0.21)
    assert 28 * problem.edge_step_j == pytest.approx(1.68)


def test_thirteen_common_steps_cost_one_and_a_half_joules_shared_and_thirty_nine_alone() -> None:
    """Fifty users in two groups against fifty alone: 2 x 13 x 0.06 J and 50 x 13 x 0.06 J."""
    problem, users = paper(NUM_USERS, (0.0, 0.0, 1.0))
    prompts, x, y = (users >= 12).astype(np.int64), np.full(NUM_USERS, 13), np.zeros(NUM_USERS, dtype=np.int64)
    rest = np.sum(problem.transfer_j + 15 * problem.device_step_j)
    assert -score(problem, prompts, x, y) - rest == pytest.approx(NUM_GROUPS * 13 * 0.06)
    assert pytest.approx(1.56) == NUM_GROUPS * 13 * 0.06
    alone = SharingProblem(
        **{f: getattr(problem, f) for f in ("edge_step_s", "edge_step_j", "device_step_s", "device_step_j")},
        quality=np.zeros((50, 50, 14)), transfer_s=problem.transfer_s, transfer_j=problem.transfer_j,
        quality_weight=0.0, latency_weight=0.0,
    )  # fmt: skip
    assert -score(alone, np.arange(50), x, y) - rest == pytest.approx(39.0)


@pytest.mark.parametrize("seed", range(1))
def test_exact_grouping_equals_trying_every_plan(seed: int) -> None:
    problem = random_problem(seed, num_users=3, num_prompts=2, num_choices=3)
    plans = [
        (np.array(p), np.array(x), np.array(y))
        for p in product(range(2), repeat=3)
        for x in product(range(3), repeat=3)
        for y in product(range(3), repeat=3)
    ]
    everything = max(score(problem, p, x, y) for p, x, y in plans if np.all(problem.num_steps - x - y >= 0))
    found = solve_exactly(problem, 2)
    assert found.value == pytest.approx(everything, rel=1e-12)
    assert found.gap == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_bound_exact_and_heuristic_are_in_order(seed: int, num_users: int, num_prompts: int, max_groups: int) -> None:
    problem = random_problem(seed, num_users, num_prompts, 4)
    rng = np.random.default_rng(seed)
    exact = solve_exactly(problem, max_groups)
    ceiling = bound(problem, max_groups)
    likeness = rng.random((num_users, num_users))
    heuristic = cluster(problem, (likeness + likeness.T) / 2, rng.random((num_users, num_prompts)), max_groups)
    slack = 1e-7 * (1 + abs(ceiling))
    assert heuristic.value <= exact.value + slack
    assert exact.value <= ceiling + slack
    assert heuristic.gap >= -1e-7
    assert len(set(exact.prompts.tolist())) <= max_groups
    np.testing.assert_array_equal(exact.common_steps + exact.edge_steps + exact.device_steps, problem.num_steps)
    assert np.all(exact.common_steps <= exact.group_steps)
    assert np.all((exact.edge_steps >= 0) & (exact.edge_steps <= 2) & (exact.device_steps >= 0))
    assert exact.value == pytest.approx(score(problem, exact.prompts, exact.common_steps, exact.edge_steps))


@pytest.mark.parametrize("seed", range(3))
def test_highs_finds_the_same_integer_optimum(seed: int) -> None:
    """The facility location behind `bound`, now with integers, by scipy.optimize.milp."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    problem = random_problem(seed, num_users=5, num_prompts=3, num_choices=3)
    worth, price = problem.worth()
    num_facilities = 9
    cost = np.concatenate([-worth.reshape(5, 9).ravel(), np.tile(price, 3)])
    each = np.hstack([np.kron(np.eye(5), np.ones((1, 9))), np.zeros((5, 9))])
    opened = np.hstack([np.eye(45), -np.kron(np.ones((5, 1)), np.eye(9))])
    count = np.concatenate([np.zeros(45), np.ones(num_facilities)])[np.newaxis]
    rules = [LinearConstraint(each, 1, 1), LinearConstraint(opened, -np.inf, 0), LinearConstraint(count, 0, 2)]
    found = milp(cost, constraints=rules, integrality=np.ones(54), bounds=Bounds(0, 1))
    assert solve_exactly(problem, 2).value == pytest.approx(-found.fun, rel=1e-7)


def test_sharing_under_the_published_setting_beats_its_baselines() -> None:
    """Groups by subject are worth more than one group, that more than no sharing; the exact optimum is above all."""
    problem, users = paper(NUM_USERS, (2.0, 0.5, 0.5))
    by_subject = best_plan(problem, (users >= 12).astype(np.int64))
    one_group = max(best_plan(problem, np.full(NUM_USERS, m)).value for m in (0, 1))
    nothing = np.zeros(NUM_USERS, dtype=np.int64)
    unshared = score(problem, nothing, nothing, problem.edge_steps()[:, 0])
    exact = solve_exactly(problem, NUM_GROUPS)
    assert exact.value >= by_subject.value - 1e-9
    assert by_subject.value > one_group > unshared
    assert (exact.value - by_subject.value) / abs(exact.value) < 0.01
    assert bound(problem, NUM_GROUPS) >= exact.value - 1e-9


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory: pytest.TempPathFactory) -> his.HisResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(his, "NUM_DRAWS", 2)
        return his.reproduce(tmp_path_factory.mktemp("his"), seed=0)


@pytest.mark.slow
def test_reproduction_stands_published_beside_computed(reproduction: his.HisResult) -> None:
    table = reproduction.comparison.set_index("scheme")
    assert table.loc["PPGFIS", "published"] == pytest.approx((6.5 - 3.7) / (7.3 - 3.7))
    assert table.loc[["IIS", "HIS"], "published"].to_list() == table.loc[["IIS", "HIS"], "computed"].to_list() == [0, 1]
    assert table.loc["exact", "computed"] >= 1.0 - 1e-9
    assert reproduction.is_ordered
    assert -1e-9 <= reproduction.worst_gap < 0.01
    assert reproduction.fits["r2"].min() > 0.996
    assert len(reproduction.fits) == 12
    assert {path.name for path in reproduction.paths} == {
        "fits.csv", "shares.csv", "comparison.csv", "his.pdf", "his.png"
    }  # fmt: skip
    assert all(path.stat().st_size > 0 for path in reproduction.paths)


@pytest.mark.slow
def test_panels_draw_from_the_tables_alone(reproduction: his.HisResult) -> None:
    quality = his_figure.plot_quality_panel(reproduction.fits)
    assert len(quality.lines) == 2 * 2 * len(his_figure.SHOWN_BINS)
    shares = his_figure.plot_share_panel(reproduction.comparison)
    heights = [bar.get_height() for bar in shares.patches]
    np.testing.assert_allclose(heights, reproduction.comparison["computed"][1:])
    shares.figure.canvas.draw()
    (line,) = (one for one in shares.lines if len(set(one.get_ydata())) == 1)
    height = shares.transData.transform((0.0, line.get_ydata()[0]))[1]
    for label in shares.texts:  # no line runs through a label
        box = label.get_window_extent()
        assert not box.y0 <= height <= box.y1


def test_a_users_reward_without_sharing_is_scale_free() -> None:
    """Each total is divided by its own without sharing: w_Q - w_T - w_E is what is left."""
    problem, prompts = his.users_of(np.random.SeedSequence(3))
    assert his.unshared(problem) == pytest.approx(np.dot(his.WEIGHTS, [1, -1, -1]), abs=0.05)
    assert set(prompts.tolist()) <= set(range(2, 22))


def test_dearer_energy_never_means_fewer_common_steps() -> None:
    totals = [solve_exactly(paper(20, (1.0, 0.0, w))[0], 2).common_steps.sum() for w in (0.0, 0.02, 0.05, 0.2, 1.0)]
    assert totals == sorted(totals)
    assert totals[0] < totals[-1]


def test_a_profile_calibrates_the_steps() -> None:
    profile = load_profile("a100__snapdragon8gen3__sdxl")
    problem = profile_problem(
        profile,
        quality_table(MATRIX[2:8, :2], published_curves(), 13),
        downlink_s_per_bit=1e-6,
        weights=(100.0, 1.0, 0.0),
    )
    assert problem.edge_step_s == profile.cost("edge", "denoise_step").latency_s
    assert problem.device_step_s[0] == profile.cost("device", "denoise_step").latency_s
    found = solve_exactly(problem, 2)
    assert found.value >= best_plan(problem, found.prompts).value - 1e-9
    assert np.all(found.edge_steps == np.minimum(28 - found.common_steps, 16))  # the phone's steps are the dear ones


def test_unmeasured_similarity_is_not_shared() -> None:
    table = quality_table(np.array([[0.05, 0.5, 1.0, 0.9]]), published_curves(), 13)
    assert np.all(np.isneginf(table[0, [0, 3], 1:]))
    assert np.all(np.isfinite(table[0, [0, 3], 0]))
    assert np.all(table[0, 2] == table[0, 2, 0])
    assert np.all(np.diff(table[0, 1]) < 0)


def test_what_makes_no_sense_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(0, 3, 2, 3)
    with pytest.raises(ConfigError, match="max_groups is 0; expected a whole number from 1"):
        solve_exactly(problem, 0)
    monkeypatch.setattr(grouping, "MOST_EVALUATIONS", 10)
    with pytest.raises(ProblemError, match="27 evaluations for 2 of 2 public prompts; expected at most 10"):
        solve_exactly(problem, 2)
    fields = {f: getattr(problem, f) for f in problem.__dataclass_fields__}
    with pytest.raises(ProblemError, match=r"transfer_s has shape \(2,\); expected one value for each"):
        SharingProblem(**(fields | {"transfer_s": np.zeros(2)}))
    with pytest.raises(ProblemError, match="2 common steps and 3 on the device are more than 4"):
        SharingProblem(**(fields | {"min_device_steps": 3}))
    with pytest.raises(ProblemError, match="quality without common steps is not finite"):
        SharingProblem(**(fields | {"quality": problem.quality * np.nan}))
