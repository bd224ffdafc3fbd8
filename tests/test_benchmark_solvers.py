"""The benchmark of the solvers: certificates beside HiGHS, answers scored on fresh samples, memory of each part."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megopt.benchmarks import solvers
from megopt.benchmarks.timing import best_of, peak_memory_mb, with_peak_memory
from megopt.errors import ConfigError

SMALL = {"num_states": 4_000, "num_rows": 50, "num_lp_states": 60, "num_lp_rows": 20, "repeats": 1}


@pytest.mark.slow
def test_long_run_answers_stand_beside_highs_and_on_fresh_states() -> None:
    methods = ("highs-ipm", "highs-ds")
    found = solvers.run(("average", "lp", "queue"), lp_methods=methods, num_queue_points=11, num_queue_rows=8, **SMALL)
    assert all(np.isfinite(value) for value in found.values())
    assert max(found["average_gap"], found["lp_gap"], found["queue_gap"]) <= 1e-6
    assert found["lp_difference"] <= 1e-6
    assert found["average_violation"] <= 1e-9
    assert found["average_fresh_violation"] <= 0.05
    assert found["queue_fresh_violation"] <= 4.0 * found["queue_fresh_error"] + 0.05
    fastest = min(found["lp_highs_ds_s"], found["lp_highs_ipm_s"])
    assert found["speedup_over_highs"] == fastest / found["lp_average_s"]
    assert found["queue_num_pairs"] == 4 * 11 * 8
    assert list(found)[:3] == ["average_s", "average_gap", "speedup_over_highs"]
    documented = (solvers.run.__doc__ or "").split("Args:")[0]
    named = {key for key in found if not key.endswith("peak_memory_mb")}
    assert all(key in documented for key in named)


@pytest.mark.slow
def test_parts_of_a_cell_keep_their_keys_behind_the_name_of_the_part() -> None:
    found = solvers.run(
        ("cell", "allocation"), num_cell_devices=(20, 40), num_cell_rows=30, num_exact_cells=1,
        num_allocation_devices=8, repeats=1,
    )  # fmt: skip
    assert found["cell_largest_gap"] <= 0.01
    assert found["allocation_energy_gap"] <= 1e-9
    assert found["allocation_energy_violation"] <= 1e-9
    assert 0.0 <= found["allocation_energy_fresh_broken"] < 1.0
    assert found["allocation_sum_latency_fresh_value_ratio"] > 0.0
    assert found["allocation_sum_latency_fresh_violation_p95"] == 0.0


def test_unknown_parts_are_named() -> None:
    with pytest.raises(ConfigError, match=r"parts \['all'\]; expected a list of average, lp, queue, cell, allocation"):
        solvers.run(["all"])
    with pytest.raises(ConfigError, match=r"lp_methods simplex; expected a list of highs-ipm, highs-ds; change what"):
        solvers.run(["lp"], lp_methods="simplex")


def test_the_best_run_counts_and_warm_ones_do_not() -> None:
    calls: list[int] = []
    timed = best_of(lambda: calls.append(len(calls)), repeats=3, num_warm=2)
    assert len(calls) == 5
    assert 0.0 <= timed.wall_s < 1.0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system cannot forget an earlier peak")
def test_peak_memory_is_that_of_the_work_alone() -> None:
    def sized(num: int) -> float:
        return with_peak_memory(lambda: float(np.ones(num).sum()))[1]

    large = sized(30_000_000)
    assert large <= 1.001 * peak_memory_mb()
    assert large - sized(1) > 200.0
    assert large <= 1.001 * peak_memory_mb()  # what was forgotten for a part counts for the process
