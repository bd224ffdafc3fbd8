from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.errors import ConfigError
from megopt.reproductions import megsplitting
from megopt.reproductions.megsplitting import DOWNLINK_S_PER_BIT, published_model, random_instances
from megopt.solvers.generation_splitting import (
    RegionSplitModel,
    device_s,
    edge_s,
    energy_j,
    latency_s,
    solve,
    solve_fixed_power,
)
from megopt.solvers.generation_splitting_cvxpy import cone_program_latency_s

SOLVERS = (solve, solve_fixed_power)
MODEL = RegionSplitModel(
    edge_full_s=2.0,
    latent_bits=1e6,
    device_coarse_s=0.3,
    device_refine_s=1.0,
    device_power_max_w=10.0,
    power_exponent=0.3,
    region_ratio_min=0.2,
)
LINK = 1e-6
AMOUNT = st.one_of(st.just(0.0), st.floats(1e-3, 50.0))

models = st.builds(
    RegionSplitModel,
    edge_full_s=AMOUNT,
    latent_bits=st.floats(0.0, 1e7),
    device_coarse_s=AMOUNT,
    device_refine_s=AMOUNT,
    device_power_max_w=st.floats(0.5, 500.0),
    power_exponent=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.02, 0.95)),
    region_ratio_min=st.floats(0.0, 1.0),
    cost_factor=st.sampled_from([1.0, 2.0, 100.0]),
)
limits = st.one_of(st.just(0.0), st.just(np.inf), st.floats(1e-2, 1e4))
links = st.one_of(st.just(0.0), st.floats(1e-9, 1e-4))


# known numbers


@pytest.fixture(scope="module")
def comparison():
    table = megsplitting.compare_with_published()
    return table[table["latency_s"].notna()]


@pytest.mark.parametrize(("quantity", "count", "tolerance_s"), [("latency", 16, 2e-4), ("pareto", 40, 1e-2)])
def test_published_values_are_met(comparison, quantity, count, tolerance_s):
    rows = comparison[comparison["quantity"] == quantity]
    assert len(rows) == count
    assert rows["error_s"].abs().max() <= tolerance_s


@pytest.mark.parametrize(("limit_j", "expected_s"), [(80, 4.14), (100, 3.63), (120, 2.50), (140, 2.08), (520, 2.08)])
def test_fixed_power_values_are_met(limit_j, expected_s):
    found = solve_fixed_power(published_model(), limit_j, DOWNLINK_S_PER_BIT)
    assert found.latency_s == pytest.approx(expected_s, abs=0.01)


def test_saturation_energies_bracket_the_computed_one(comparison):
    rows = comparison[comparison["quantity"] == "saturation"]
    assert len(rows) == 8
    assert (rows["energy_limit_j"] - rows["computed_energy_j"]).abs().max() < 15.0


def test_parameters_are_those_of_the_profiles():
    import pandas as pd

    for name in ("SDXL", "SD3"):
        path = megsplitting.files("megopt.profiles") / f"megsplitting_{name.lower()}" / "compute.csv"
        times = pd.read_csv(str(path), comment="#").set_index("component")["latency_s"]
        model = published_model(name)
        assert times["whole_generation"] == model.edge_full_s
        assert (times["coarse_pass"], times["refine_pass"]) == (model.device_coarse_s, model.device_refine_s)


def test_published_constants_leave_no_interior_ratio():
    found = solve(
        published_model("SDXL", np.array([[2.0], [4.0], [8.0]])), np.linspace(0, 600, 601), DOWNLINK_S_PER_BIT
    )
    assert set(np.unique(found.region_ratio)) == {0.4, 1.0}


# limiting cases


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_energy_means_model_split(solver):
    found = solver(MODEL, 0.0, LINK)
    assert found.is_model_split
    assert (found.latency_s, found.energy_j) == (edge_s(MODEL, LINK), 0.0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("factor", "ratio"), [(1.0, 0.2), (1e6, 1.0)])
def test_no_limit_means_full_power(solver, factor, ratio):
    found = solver(dataclasses.replace(MODEL, cost_factor=factor), np.inf, LINK)
    assert (found.region_ratio, found.power_w) == (ratio, 10.0)


def test_exponent_one_is_fixed_power():
    model, limit_j = dataclasses.replace(MODEL, power_exponent=1.0), np.linspace(0, 20, 101)
    free, fixed = solve(model, limit_j, LINK), solve_fixed_power(MODEL, limit_j, LINK)
    np.testing.assert_allclose(free.latency_s, fixed.latency_s, rtol=1e-12)
    near = solve(dataclasses.replace(MODEL, power_exponent=1 - 1e-9), limit_j, LINK)
    np.testing.assert_allclose(near.latency_s, fixed.latency_s, rtol=1e-6)


def test_exponent_zero_makes_energy_free():
    found = solve(dataclasses.replace(MODEL, power_exponent=0.0), np.array([1e-6, 1.0]), LINK)
    np.testing.assert_allclose(found.latency_s, 0.2 * edge_s(MODEL, LINK) + device_s(MODEL, 0.2))
    np.testing.assert_allclose(found.energy_j, [1e-6, 1.0])


def test_without_coarse_cost_the_ratio_moves_continuously():
    model = dataclasses.replace(MODEL, device_coarse_s=0.0)
    ratio = solve(model, np.linspace(1e-3, 2, 400), LINK).region_ratio
    assert np.all(np.abs(np.diff(ratio)) < 0.01)
    assert np.any((ratio > 0.2) & (ratio < 0.99))


def test_free_refinement_costs_no_division():
    found = solve(dataclasses.replace(MODEL, device_refine_s=0.0), np.array([1e-3, 50.0]), LINK)
    assert list(found.region_ratio) == [1.0, 0.2]


def test_dead_link_leaves_the_device_alone():
    model = dataclasses.replace(MODEL, region_ratio_min=0.0)
    found = solve(model, 5.0, np.inf)
    assert (found.region_ratio, found.energy_j) == (0.0, pytest.approx(5.0))
    assert np.isinf(solve(MODEL, 5.0, np.inf).latency_s)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_a_tiny_share_of_the_device_is_not_rounded_away(solver, exponent):
    """Without a coarse pass even microseconds of the device save time: 1 - x is small, and x must not round down."""
    model = dataclasses.replace(
        MODEL, edge_full_s=1000.0, device_coarse_s=0.0, device_power_max_w=286.0, power_exponent=exponent
    )
    limit_j = np.geomspace(1e-9, 1e-1, 999)
    found = solver(model, limit_j, LINK)
    assert np.all(found.gap < 1e-12)
    if solver is solve_fixed_power:
        assert np.all(found.region_ratio[limit_j > 1e-10] < 1.0)
        np.testing.assert_allclose((1.0 - found.region_ratio) * 286.0, limit_j, rtol=1e-4, atol=1e-13)


# invariants


@settings(max_examples=2 * settings().max_examples)
@given(models, limits, links, st.sampled_from(SOLVERS))
def test_answers_are_feasible_rescored_and_certified(model, limit_j, link, solver):
    found = solver(model, limit_j, link)
    assert model.region_ratio_min <= found.region_ratio <= 1.0
    assert 0.0 < found.power_w <= model.device_power_max_w
    assert found.energy_j <= limit_j * (1 + 1e-11)
    assert found.latency_s == latency_s(model, found.region_ratio, found.power_w, link)
    assert found.energy_j == energy_j(model, found.region_ratio, found.power_w)
    assert found.latency_s <= edge_s(model, link)
    assert found.bound_s <= found.latency_s * (1 + 1e-9)
    assert found.gap < 1e-8


@given(models, limits, links, st.booleans())
def test_no_point_of_a_grid_over_ratio_and_power_is_better(model, limit_j, link, is_fixed):
    ratio = np.linspace(model.region_ratio_min, 1.0, 101)[:, np.newaxis]
    power_w = model.device_power_max_w * (np.ones(1) if is_fixed else np.geomspace(1e-6, 1.0, 201))
    kept = energy_j(model, ratio, power_w) <= limit_j
    grid = np.where(kept, latency_s(model, ratio, power_w, link), np.inf).min()
    found = (solve_fixed_power if is_fixed else solve)(model, limit_j, link)
    assert found.latency_s <= grid * (1 + 1e-12)
    assert found.bound_s <= grid * (1 + 1e-9)


@given(models, limits, limits, links, links, st.sampled_from(SOLVERS))
def test_latency_falls_with_the_limit_and_the_rate(model, first_j, second_j, first, second, solver):
    loose = solver(model, max(first_j, second_j), min(first, second)).latency_s
    for limit_j, link in ((min(first_j, second_j), min(first, second)), (max(first_j, second_j), max(first, second))):
        assert loose <= solver(model, limit_j, link).latency_s * (1 + 1e-11)


@given(models, limits, links)
def test_power_control_never_hurts(model, limit_j, link):
    assert solve(model, limit_j, link).latency_s <= solve_fixed_power(model, limit_j, link).latency_s * (1 + 1e-11)


def test_interior_optimum_pays_for_the_coarse_pass():
    model, limit_j, link = random_instances(20_000, seed=3)
    found = solve(model, limit_j, link)
    is_inside = (found.region_ratio > model.region_ratio_min) & (found.region_ratio < 1.0)
    is_stationary = is_inside & (found.power_w < model.device_power_max_w)
    assert is_stationary.sum() > 100
    needed = model.power_exponent * device_s(model, found.region_ratio) / (model.cost_factor * model.device_coarse_s)
    assert np.all(needed[is_stationary] > 1.0 - 1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_vector_equals_scalar(solver):
    model, limit_j, link = random_instances(60, seed=1)
    together = solver(model, limit_j, link)
    names = [field.name for field in dataclasses.fields(model)]
    for i in range(60):
        one = RegionSplitModel(**{name: getattr(model, name)[i] for name in names})
        alone = solver(one, limit_j[i], link[i])
        for name in ("region_ratio", "power_w", "latency_s", "energy_j", "bound_s"):
            assert getattr(alone, name) == pytest.approx(getattr(together, name)[i], rel=1e-12)


def test_limits_and_links_broadcast():
    found = solve(MODEL, np.array([[0.0], [1.0], [9.0]]), np.array([1e-7, 1e-6]))
    assert found.region_ratio.shape == found.bound_s.shape == found.gap.shape == (3, 2)
    assert found.runtime_s > 0


# cone program


@pytest.mark.parametrize("num_instances", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_cone_program_agrees(num_instances):
    model, limit_j, link = random_instances(num_instances, seed=7)
    found = solve(model, limit_j, link)
    np.testing.assert_allclose(cone_program_latency_s(model, limit_j, link), found.latency_s, rtol=1e-6)


def test_cone_program_at_the_ends_of_the_limit():
    ends = cone_program_latency_s(MODEL, np.array([0.0, np.inf]), LINK)
    np.testing.assert_allclose(ends, [3.0, 1.7], rtol=1e-6)


def test_random_instances_meet_every_case():
    model, limit_j, link = random_instances(1000, seed=0)
    found = solve(model, limit_j, link)
    is_low, is_full = found.region_ratio == model.region_ratio_min, found.power_w == model.device_power_max_w
    is_inside = ~is_low & ~found.is_model_split
    cases = (found.is_model_split, is_low & is_full, is_low & ~is_full, is_inside & is_full, is_inside & ~is_full)
    assert min(case.sum() for case in cases) >= 20


# reproduction


def test_panels_draw_from_the_table_alone():
    table = megsplitting.compare_with_published()
    for plot in (megsplitting.plot_latency_panel, megsplitting.plot_pareto_panel):
        ax = plot(table)
        assert plot(table, ax) is ax
        assert "[s]" in ax.get_ylabel()


@pytest.mark.slow
def test_reproduction_writes_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(megsplitting, "NUM_INSTANCES", 20)
    result = megsplitting.reproduce(tmp_path, seed=0)
    assert {path.name for path in result.paths} == {
        "comparison.csv",
        "instances.csv",
        "megsplitting.pdf",
        "megsplitting.png",
    }
    assert all(path.stat().st_size > 0 for path in result.paths)
    assert (len(result.instances), result.num_above_grid) == (20, 0)
    again = megsplitting.compare_solvers(20, seed=0)
    assert again.equals(result.instances)


@pytest.mark.slow
def test_reproduction_meets_its_aims(tmp_path):
    report = megsplitting.run(tmp_path, seed=0)
    assert report.summary["worst_relative_disagreement"] <= 1e-6
    assert report.summary["num_above_grid"] == 0
    assert report.summary["worst_excess_over_grid"] <= megsplitting.GRID_TOLERANCE
    assert '"worst_gap"' in report.as_json()


# messages


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"power_exponent": 1.5}, "RegionSplitModel: power_exponent is 1.5; expected 0 to 1"),
        ({"region_ratio_min": -0.1}, "region_ratio_min is -0.1"),
        ({"device_power_max_w": 0.0}, "device_power_max_w is 0"),
        ({"device_coarse_s": np.array([0.1, np.nan])}, "device_coarse_s is nan at index 1"),
        ({"cost_factor": -1.0}, "cost_factor is -1"),
        ({"edge_full_s": np.inf}, "edge_full_s is inf"),
    ],
)
def test_bad_parameters_say_so(change, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(MODEL, **change)


def test_bad_arguments_say_so():
    with pytest.raises(ConfigError, match="energy_limit_j is -1; expected 0 to inf"):
        solve(MODEL, -1.0, LINK)
    with pytest.raises(ConfigError, match="downlink_s_per_bit is nan"):
        solve_fixed_power(MODEL, 1.0, np.nan)
    with pytest.raises(ConfigError, match=r"region_ratio is 1\.2"):
        latency_s(MODEL, 1.2, 1.0, LINK)
    with pytest.raises(ConfigError, match="power_over_maximum is 2"):
        energy_j(MODEL, 0.5, 20.0)
    with pytest.raises(ConfigError, match="cone program: power_exponent is 0"):
        cone_program_latency_s(dataclasses.replace(MODEL, power_exponent=0.0), 1.0, LINK)
