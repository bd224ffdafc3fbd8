"""Timed and metered windows on a fake clock, and the table rows that they make."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megopt.errors import ConfigError
from megopt.metering.compute_row import compute_row
from megopt.metering.energy import PowerModelMeter
from megopt.metering.measure import Measurement, measure
from megopt.metering.nvml_meter import NvmlMeter
from megopt.metering.replay_meter import ReplayMeter
from megopt.tables import schema
from megopt.tables.checks import read_table
from tests.fake_meters import FakeClock, FakeNvml


def scripted(clock: FakeClock, durations_s: list[float]) -> Callable[[], None]:
    left = iter(durations_s)
    return lambda: clock.advance(next(left))


def test_statistics_of_known_durations(clock: FakeClock) -> None:
    durations = [9.0, 9.0, *(float(number) for number in range(1, 11))]
    meter = PowerModelMeter(2.0, "x", clock=clock)
    found = measure(scripted(clock, durations), meter=meter, num_warmup=2, num_repeats=10, clock=clock)
    np.testing.assert_allclose(found.samples_s, durations[2:])
    assert found.median_s == 5.5
    assert found.std_s == pytest.approx(np.std(durations[2:], ddof=1))
    assert found.interval_s == (2.0, 9.0)  # second smallest and largest of ten: 97.9 %
    assert (found.energy_j, found.energy_source, found.num_warmup) == (pytest.approx(11.0), "power_model", 2)


def test_interval_of_the_median_covers() -> None:
    rng = np.random.default_rng(0)
    what: dict[str, Any] = {"energy_j": math.nan, "energy_source": "not_measured", "device": "none", "num_warmup": 0}
    found = [Measurement(samples_s=rng.exponential(1.0, 30), **what).interval_s for _ in range(200)]
    assert np.mean([low <= math.log(2.0) <= high for low, high in found]) >= 0.93


def test_few_calls_have_no_interval(clock: FakeClock) -> None:
    found = measure(lambda: clock.advance(1.0), num_repeats=1, clock=clock)
    assert np.isnan([*found.interval_s, found.relative_interval, found.std_s, found.energy_j]).all()
    assert found.energy_source == "not_measured"


@pytest.mark.slow
def test_repeats_go_on_until_the_interval_is_narrow_or_time_is_up(clock: FakeClock) -> None:
    rng = np.random.default_rng(1)
    durations = list(rng.uniform(0.5, 1.5, 5000))
    narrow = measure(scripted(clock, durations), relative_interval=0.05, budget_s=1e6, clock=clock)
    assert narrow.relative_interval <= 0.05
    assert 50 < len(narrow.samples_s) < 2000
    begun_s = clock.now_s
    stopped = measure(
        scripted(clock, durations), num_warmup=0, relative_interval=1e-6, num_repeats=3, budget_s=20.0, clock=clock
    )
    assert 20.0 <= clock.now_s - begun_s <= 21.5
    assert len(stopped.samples_s) >= 3


def test_windows_are_as_long_as_the_counter_needs(clock: FakeClock) -> None:
    meter = PowerModelMeter(1.0, "x", shortest_window_s=5.0, clock=clock)
    found = measure(lambda: clock.advance(1.0), meter=meter, num_repeats=2, clock=clock)
    assert len(found.samples_s) == 5
    assert found.energy_j == 1.0


def test_one_window_without_energy_leaves_none(recording: Path) -> None:
    both = measure(lambda: None, meter=ReplayMeter(recording), num_warmup=0, num_repeats=3)
    assert math.isnan(both.energy_j)
    assert both.energy_source == "not_measured"
    first = measure(lambda: None, meter=ReplayMeter(recording), num_warmup=0, num_repeats=1)
    assert (first.energy_j, first.energy_source, first.device) == (1.5, "nvml", "H100")


def test_the_device_is_waited_for_around_every_call(clock: FakeClock) -> None:
    log: list[str] = []
    measure(
        lambda: log.append("call"), num_warmup=1, num_repeats=2, synchronise=lambda: log.append("wait"), clock=clock
    )
    assert log == ["call", "wait", *["wait", "call", "wait"] * 2]


def test_garbage_collection_is_held_back_and_restored() -> None:
    seen: list[bool] = []
    measure(lambda: seen.append(gc.isenabled()), num_repeats=2)
    assert not any(seen)
    assert gc.isenabled()


def test_a_failing_call_closes_the_window_and_restores() -> None:
    nvml = FakeNvml(has_counter=False)
    meter = NvmlMeter(nvml=nvml, poll_s=0.001)
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 / 0, meter=meter, num_warmup=0)
    assert meter._power is None
    assert gc.isenabled()


def test_bar_shows_all_calls(capsys: pytest.CaptureFixture[str]) -> None:
    measure(lambda: None, num_repeats=4, shows_progress=True, description="decode")
    shown = capsys.readouterr().err
    assert "decode" in shown
    assert "4/4" in shown


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_warmup -1.*num_repeats 0.*relative_interval 0.*budget_s nan"):
        measure(lambda: None, num_warmup=-1, num_repeats=0, relative_interval=0.0, budget_s=math.nan)


CELLS: dict[str, Any] = {
    "side": "edge",
    "model": "tiny",
    "component": "denoise_step",
    "resolution_px": 64,
    "batch_size": 2,
    "source": "here",
}


@pytest.mark.slow
def test_rows_make_a_table_that_passes_its_schema(tmp_path: Path, clock: FakeClock) -> None:
    import pandas as pd

    metered = measure(lambda: clock.advance(0.25), meter=PowerModelMeter(4.0, "x", clock=clock), clock=clock)
    rows = [
        compute_row(metered, **CELLS),
        compute_row(
            measure(lambda: clock.advance(1 / 3), clock=clock), **CELLS | {"component": "pipeline"}, num_steps=8
        ),
    ]
    rows.append(compute_row(measure(lambda: clock.advance(0.5), num_repeats=1, clock=clock), **CELLS, flops=3e12))
    table = pd.DataFrame(rows).astype({"num_steps": "Int64"})
    table.to_csv(tmp_path / "compute.csv", index=False)
    back = read_table(tmp_path / "compute.csv", schema.COMPUTE)
    assert back["latency_s"].tolist() == [0.25, 0.333333, 0.5]
    np.testing.assert_allclose(back["latency_std_s"], [0.0, 0.0, math.nan], atol=1e-12)
    np.testing.assert_array_equal(back["energy_j"], [1.0, math.nan, math.nan])
    assert back["energy_source"].tolist() == ["power_model", "not_measured", "not_measured"]
    assert back["num_trials"].tolist() == [len(metered.samples_s), 10, 1]
    np.testing.assert_array_equal(back["flops"], [math.nan, math.nan, 3e12])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"side": "cloud"}, "side is 'cloud'; expected one of edge, device"),
        ({"component": "nap"}, "component is 'nap'"),
        ({"batch_size": 0}, "batch_size is 0; expected int >= 1"),
        ({"resolution_px": None}, "resolution_px is None"),
        ({"flops": -1.0}, "flops is -1.0; expected float >= 0"),
    ],
)
def test_impossible_cells_are_refused(clock: FakeClock, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compute_row(measure(lambda: clock.advance(1.0), clock=clock), **CELLS | change)
