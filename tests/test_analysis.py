"""Rollouts, records, Pareto sets and figures: what is recorded is what the problem says, and it survives the disk."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from megopt.analysis import plots
from megopt.analysis.pareto import hypervolume, is_non_dominated
from megopt.analysis.records import RECORD, read_records, write_records
from megopt.analysis.report import Report, rich_table
from megopt.analysis.rollout import rollout, summarise
from megopt.analysis.tradeoff import Sweep, Tradeoff, tradeoff
from megopt.analysis.tradeoff_figure import plot_long_run, save_tradeoff_figure
from megopt.analysis.tradeoff_knee import LONG_RUN, curve_knees
from megopt.analysis.tradeoff_report import notes, summary
from megopt.analysis.tradeoff_tables import tables
from megopt.errors import ConfigError, ProblemError, SchemeError
from megopt.files import write_atomically
from megopt.policies.fixed import Fixed
from megopt.policies.optimal import Optimal
from megopt.problem import Limit, Problem, costs, evaluate
from megopt.schemes.action_table import ActionTable
from megopt.schemes.conventional import Conventional
from megopt.schemes.scheme import compile_all
from megopt.schemes.step_split import StepSplit
from megopt.solvers.average_limits_sampling import curve_excesses
from megopt.solvers.solution import Status
from megopt.system.channel import Rayleigh
from megopt.system.link import Link, LinkState
from megopt.tables.profile import load_profile


@cache
def a100_table() -> ActionTable:
    schemes = [Conventional(num_steps=(25,)), StepSplit(num_steps=(25,))]
    return compile_all(schemes, load_profile("a100__snapdragon8gen3__sdxl"))[0]


def trace(num: int = 64, seed: int = 0) -> LinkState:
    snr = Rayleigh(snr_db=10.0).sample_snr(np.random.default_rng(seed), num)[:, 0]
    return Link(bandwidth_hz=20e6, round_trip_s=0.02, device_rx_power_w=0.9, edge_tx_power_w=4.7).state(snr)


@cache
def found() -> Tradeoff:
    policies = {
        "optimal": Optimal,
        "edge": lambda table, problem: Fixed(
            table=table, problem=problem, scheme="conventional", label="edge only, raw"
        ),
        "absent": lambda table, problem: Optimal(table=table, problem=problem, scheme="region_split"),
    }
    return tradeoff(a100_table(), trace(), Problem(), Sweep(quantity="energy_j", num_points=6), policies)


def test_rollout_records_what_evaluate_says() -> None:
    table, link = a100_table(), trace()
    problem = Problem(limits=(Limit(quantity="energy_j", bound=600.0),))
    records = rollout(Optimal(table=table, problem=problem), "optimal", table, link, problem, "energy_j")
    result = evaluate(table, records["row"].to_numpy(), link)
    np.testing.assert_array_equal(records["latency_s"], result.latency_s)
    np.testing.assert_array_equal(records["violation"], np.maximum(costs(result, problem)[:, 0] - 600.0, 0))
    assert set(records.columns) == {column.name for column in RECORD}
    assert records["limit"].unique() == [600.0]


def test_same_seed_same_records() -> None:
    table, problem = a100_table(), Problem(limits=(Limit(quantity="energy_j", bound=600.0),))
    first, again, other = (
        rollout(Optimal(table=table, problem=problem), "optimal", table, trace(seed=s), problem) for s in (3, 3, 4)
    )
    pd.testing.assert_frame_equal(first, again)
    assert not first["latency_s"].equals(other["latency_s"])


def test_optimal_policy_beats_every_fixed_row_that_keeps_the_limit() -> None:
    table, link = a100_table(), trace()
    problem = Problem(limits=(Limit(quantity="energy_j", bound=600.0),))
    best = rollout(Optimal(table=table, problem=problem), "optimal", table, link, problem)
    assert (best["violation"] == 0).all()
    for row in range(len(table)):
        fixed = evaluate(table, np.full(len(link.snr), row), link)
        is_kept = fixed.energy_j <= 600.0
        assert np.all(best["latency_s"].to_numpy()[is_kept] <= fixed.latency_s[is_kept])


def test_an_answer_and_its_bound_come_from_two_algorithms() -> None:
    """A wrong row would show as a gap: the bound is the brute force's value, not a copy of the answer's."""
    from dataclasses import replace

    solution = found().solutions[2]
    assert solution.gap == 0.0
    assert replace(solution, bounds=solution.bounds / 1.01).gap == pytest.approx(0.01)


def test_where_no_row_keeps_the_limit_the_least_excess_is_taken_and_counted() -> None:
    table, link = a100_table(), trace(8)
    problem = Problem(limits=(Limit(quantity="energy_j", bound=1.0),))
    records = rollout(Optimal(table=table, problem=problem), "optimal", table, link, problem)
    assert set(records["label"]) == {"device only, 25 steps"}  # the row of least energy
    assert (records["violation"] > 0).all()


def made(**columns: object) -> pd.DataFrame:
    """Records with the given columns and zeros elsewhere."""
    base = {column.name: 0.0 for column in RECORD} | {"policy": "p", "limit_quantity": "energy_j", "limit": 5.0}
    return pd.DataFrame(base | {"kind": "a", "label": "a"} | columns)


def test_summary_by_hand() -> None:
    records = made(
        latency_s=[1.0, 3.0, 2.0, 4.0], trace=[0, 0, 1, 1], violation=[0.0, 0.2, 0, 0], kind=["a", "b+a", "a", "a"]
    )
    point = summarise(records).iloc[0]
    assert point["latency_s"] == 2.5
    assert point["latency_ci95_s"] == pytest.approx(12.706 * np.std([2.0, 3.0], ddof=1) / np.sqrt(2), rel=1e-4)
    assert point["latency_median_s"] == 2.0
    assert point["violation_rate"] == 0.25
    assert point["kind"] == "a+b"
    assert point["num_requests"] == 4


def test_one_trace_has_no_interval_and_outages_are_counted_apart() -> None:
    point = summarise(made(latency_s=[1.0, np.inf, 3.0, 2.0], trace=[0] * 4)).iloc[0]
    assert np.isnan(point["latency_ci95_s"])
    assert point["outage_rate"] == 0.25
    assert point["latency_s"] == 2.0
    assert np.isinf(point["latency_p95_s"])


def test_a_mean_over_something_unmeasured_is_unmeasured() -> None:
    point = summarise(made(latency_s=[1.0, 1.0], quality=[0.5, np.nan], edge_energy_j=[np.nan, np.nan])).iloc[0]
    assert np.isnan(point["quality"])
    assert np.isnan(point["edge_energy_j"])
    assert point["device_energy_j"] == 0.0


@pytest.mark.slow
def test_intervals_cover_the_mean() -> None:
    """Over many experiments of 8 correlated traces, about 95 % of the intervals hold the true mean."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        level = rng.normal(size=8)  # what a trace's requests share
        latency = 10.0 + np.repeat(level, 5) + rng.normal(size=40)
        point = summarise(made(latency_s=latency, trace=np.repeat(np.arange(8), 5))).iloc[0]
        hits += abs(point["latency_s"] - 10.0) <= point["latency_ci95_s"]
    assert 0.91 <= hits / 300 <= 0.985


def test_tradeoff_curve_falls_as_the_limit_is_relaxed() -> None:
    curve = found().curve.query("policy == 'optimal'")
    assert np.all(np.diff(curve["limit"]) > 0)
    assert np.all(np.diff(curve["latency_s"]) <= 1e-12)
    assert np.all(curve["energy_j"] <= curve["limit"])
    assert found().status == Status.OPTIMAL
    assert [round(s.value, 9) for s in found().solutions] == [round(t, 9) for t in curve["latency_s"]]


def test_tradeoff_names_what_it_leaves_out_and_rolls_fixed_policies_out_once() -> None:
    assert found().notes == [
        "policy absent left out: profile a100__snapdragon8gen3__sdxl has no rows of scheme 'region_split'"
    ]


def test_fixed_policies_are_rolled_out_once() -> None:
    from functools import partial

    fixed = partial(Fixed, scheme="conventional", label="model split")
    result = tradeoff(a100_table(), trace(), Problem(), Sweep(quantity="energy_j", num_points=4), {"fixed": fixed})
    assert len(result.records) == 64
    assert np.isinf(result.records["limit"]).all()


def test_infeasible_is_a_status() -> None:
    sweep = Sweep(quantity="energy_j", values=(0.5, 1.0))
    result = tradeoff(a100_table(), trace(), Problem(), sweep, {"optimal": Optimal})
    assert result.status == Status.INFEASIBLE
    assert all(np.isnan(solution.value) for solution in result.solutions)


def test_sweeps_and_policies_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match="num_points is 1; expected a whole number from 2"):
        Sweep(quantity="energy_j", num_points=1)
    with pytest.raises(ConfigError, match=r"limits is -1; expected 1e-300 to"):
        Sweep(quantity="energy_j", values=(-1.0,))
    both = Problem(limits=(Limit(quantity="energy_j", bound=300.0),))
    with pytest.raises(ConfigError, match=r"problem.limits.energy_j is set and the same quantity is swept; keep one"):
        tradeoff(a100_table(), trace(), both, Sweep(quantity="energy_j"), {"optimal": Optimal})
    with pytest.raises(SchemeError, match="has no row conventional: edge only, gif; it begins with edge only, raw"):
        Fixed(table=a100_table(), problem=Problem(), scheme="conventional", label="edge only, gif")
    with pytest.raises(ConfigError, match="no policy was named"):
        tradeoff(a100_table(), trace(), Problem(), Sweep(quantity="energy_j"), {})


def test_records_survive_the_disk_and_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_records(found().records, tmp_path / "records.parquet")
    pd.testing.assert_frame_equal(read_records(path), found().records)
    before = path.read_bytes()

    def fail(target: Path) -> None:
        target.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ProblemError, match="records: column latency_s is missing"):
        write_records(found().records.drop(columns="latency_s"), path)


POINTS = arrays(float, st.tuples(st.integers(1, 12), st.just(2)), elements=st.integers(0, 5).map(float))


@given(POINTS)
def test_non_dominated_points_against_the_definition(points: np.ndarray) -> None:
    expected = [not any(np.all(q <= p) and np.any(q < p) for q in points) for p in points]
    np.testing.assert_array_equal(is_non_dominated(points), expected)


@given(POINTS, st.integers(0, 11))
def test_hypervolume_never_falls_when_a_point_is_added(points: np.ndarray, drop: int) -> None:
    reference = np.array([6.0, 6.0])
    fewer = np.delete(points, drop % len(points), axis=0)
    assert hypervolume(fewer, reference) <= hypervolume(points, reference) + 1e-12


def test_hypervolume_by_hand_and_unmeasured_points() -> None:
    points = np.array([[1.0, 2.0], [2.0, 1.0], [np.nan, 0.0]])
    assert hypervolume(points, np.array([3.0, 3.0])) == pytest.approx(3.0)
    assert is_non_dominated(points).tolist() == [True, True, False]
    assert hypervolume(points[2:], np.array([3.0, 3.0])) == 0.0
    with pytest.raises(ProblemError, match="hypervolume: points"):
        hypervolume(points, np.array([1.0]))


@pytest.mark.slow
def test_figures_are_drawn_from_curves_alone_and_name_their_data(tmp_path: Path) -> None:
    profile = load_profile("a100__snapdragon8gen3__sdxl")
    note = plots.profile_note(profile, found().records)
    assert note == "profile a100__snapdragon8gen3__sdxl; data: composed, measured, modelled; quality not measured"
    with plots.paper_style():
        left, right = plots.new_panels(2)
        assert plots.plot_tradeoff(found().curve, "energy_j", ax=left) is left
        assert plots.plot_time_parts(found().records, "optimal", right) is right
        plots.legend_below(left)
        plots.stamp(left, note)
        files = plots.save_figure(left, tmp_path / "figure")
    assert left.get_xlabel() == "Edge and device energy, mean per request [J]"
    assert {text.get_text() for text in left.get_figure().texts} == {note}
    assert [path.suffix for path in files] == [".pdf", ".png"]
    assert files[0].read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_the_same_records_give_the_same_figure(tmp_path: Path) -> None:
    def draw(name: str) -> bytes:
        with plots.paper_style():
            ax = plots.plot_tradeoff(found().curve, "energy_j")
            return plots.save_figure(ax, tmp_path / name)[0].read_bytes()

    assert draw("first") == draw("second")


SWEEP = Sweep(quantity="energy_j", num_points=12)


@cache
def found_long_run() -> Tradeoff:
    return tradeoff(a100_table(), trace(), Problem(), SWEEP, {"optimal": Optimal}, fresh=trace(seed=1))


def test_long_run_limits_cost_no_more_than_the_same_limits_for_each_request() -> None:
    result = found_long_run()
    curve = result.long_run
    assert curve is not None
    assert found().long_run is None
    np.testing.assert_array_equal(curve.limits, result.limits)
    each = np.array([solution.value for solution in result.solutions])
    served = np.array([solution.is_feasible.all() for solution in result.solutions])
    assert np.all(curve.means[served] <= each[served] + 1e-9)
    assert curve.gap < 1e-8


def test_long_run_answers_are_scored_on_fading_that_they_have_not_seen() -> None:
    result = found_long_run()
    assert result.long_run is not None
    known = result.long_run.is_feasible
    assert np.all(np.isfinite(result.fresh_excesses[known]))
    assert np.all(result.fresh_excesses[known] >= 0.0)
    assert np.max(result.fresh_excesses[known]) > 0.0
    assert np.isnan(found().fresh_excesses).all()
    own = curve_excesses(a100_table(), trace(), Problem(), result.long_run)
    np.testing.assert_allclose(own[known], 0.0, atol=1e-2)
    column = next(c for c in tables(result, SWEEP)[2].columns if c.header == "excess on fresh fading")
    assert all(cell.endswith("%") for cell in column.cells)


def test_the_note_on_an_infeasible_limit_names_the_point_of_the_sweep() -> None:
    sweep = Sweep(quantity="energy_j", values=(90.0, 95.0, 900.0))
    result = tradeoff(a100_table(), trace(), Problem(), sweep, {"optimal": Optimal})
    assert result.status == Status.PARTLY_INFEASIBLE
    line = next(note for note in notes(result, sweep) if note.startswith("at energy_j = 90: 64 of 64 states"))
    assert line.endswith("; 1 more swept limits are out of reach of some state")


def bent_long_run() -> Tradeoff:
    """Return the trade-off of a profile on which latency falls as 1 / energy."""
    straight = found_long_run()
    assert straight.long_run is not None
    latency_s = 2000.0 / straight.curve["energy_j"]
    curve = straight.curve.assign(latency_s=latency_s, objective=latency_s)
    long_run = replace(straight.long_run, means=2000.0 / straight.long_run.costs[:, 0])
    return replace(straight, curve=curve, long_run=long_run)


def test_a_straight_curve_has_no_knee() -> None:
    assert curve_knees(found_long_run(), SWEEP) == []


def test_the_knee_is_a_point_of_the_curve_and_stands_in_the_report() -> None:
    result, profile = bent_long_run(), load_profile("a100__snapdragon8gen3__sdxl")
    knees = curve_knees(result, SWEEP)
    assert [knee.policy for knee in knees] == ["optimal", LONG_RUN]
    point = result.curve[result.curve["limit"] == knees[0].limit].iloc[0]
    assert (knees[0].limited, knees[0].objective) == (point["energy_j"], point["latency_s"])
    assert all(0.0 < knee.bulge < 1.0 for knee in knees)
    answer = summary(result, profile, SWEEP, "", [])
    assert answer["knees"][0]["limit"] == knees[0].limit
    assert [item["bound"] for item in answer["long_run"]["points"]] == result.long_run.bounds.tolist()
    marked = next(column for column in tables(result, SWEEP)[0].columns if column.header == "knee")
    assert list(marked.cells).count("knee") == 1


@pytest.mark.slow
def test_the_figure_shows_the_knee_and_the_long_run_optimum(tmp_path: Path) -> None:
    result = found_long_run()
    files = save_tradeoff_figure(result, load_profile("a100__snapdragon8gen3__sdxl"), SWEEP, tmp_path / "tradeoff")
    assert [path.suffix for path in files] == [".pdf", ".png"]
    with plots.paper_style():
        ax = plot_long_run(result.long_run, plots.new_panels()[0])
    assert ax.get_legend_handles_labels()[1] == [LONG_RUN]


def test_report_is_strict_json() -> None:
    report = Report(
        summary={"a": np.float64("nan"), "b": [np.int64(3), {"c": np.inf}], "d": Path("x")}, headline="done"
    )
    assert json.loads(report.as_json()) == {
        "headline": "done",
        "exit_code": 0,
        "a": None,
        "b": [3, {"c": None}],
        "d": "x",
    }


def test_tables_align_numbers_right() -> None:
    table = rich_table("t", ["name", "value"], [["a", "1.0"], ["b", "-"]])
    assert [column.justify for column in table.columns] == ["left", "right"]
