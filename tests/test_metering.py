"""Meters on fake counters, timed windows on a fake clock, FLOPs against the analytic count."""

from __future__ import annotations

import gc
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.errors import ConfigError
from megopt.metering.energy import (
    Energy,
    NoMeter,
    NvmlMeter,
    PowerModelMeter,
    RaplMeter,
    ReplayMeter,
    best_meter,
    synchronise_cuda,
)
from megopt.metering.flops import count_flops
from megopt.metering.measure import Measurement, compute_row, measure
from megopt.tables import schema
from megopt.tables.checks import read_table

torch.set_num_threads(1)


class FakeClock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, duration_s: float) -> None:
        self.now_s += duration_s


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


# --- records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("energy_j", "source"),
    [(0.0, "not_measured"), (math.nan, "nvml"), (-1.0, "rapl"), (math.inf, "rapl"), (1.0, "guess")],
)
def test_impossible_energies_are_refused(energy_j: float, source: str) -> None:
    with pytest.raises(ConfigError, match="NaN only where not measured"):
        Energy(energy_j=energy_j, source=source, device="x")


def test_no_meter_measures_nan_not_zero() -> None:
    meter = NoMeter()
    meter.begin()
    energy = meter.end()
    assert math.isnan(energy.energy_j)
    assert energy.source == "not_measured"


def test_power_model_is_watts_times_seconds(clock: FakeClock) -> None:
    meter = PowerModelMeter(65.0, "laptop", clock=clock)
    meter.begin()
    clock.advance(2.0)
    energy = meter.end()
    assert (energy.energy_j, energy.source, energy.device) == (130.0, "power_model", "laptop, stated 65 W")
    with pytest.raises(ConfigError, match="power_w is 0; expected watts > 0"):
        PowerModelMeter(0, "laptop")


# --- NVML -----------------------------------------------------------------------------------------------------------


class FakeNvml:
    """The five functions of pynvml that are used, over a counter [mJ] and a power [mW] that a test sets."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, has_counter: bool = True, has_board: bool = True) -> None:
        self.has_counter, self.has_board, self.counter_mj, self.power_mw = has_counter, has_board, 5_000, 40_000
        self.calls: list[str] = []

    def nvmlInit(self) -> None:
        self.calls.append("init")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if not self.has_board:
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetName(self, board: int) -> str:
        return f"Board {board}"

    def nvmlDeviceGetTotalEnergyConsumption(self, board: int) -> int:
        self.calls.append("counter")
        if not self.has_counter:
            raise self.NVMLError("Not Supported")
        return self.counter_mj

    def nvmlDeviceGetPowerUsage(self, board: int) -> int:
        if self.power_mw < 0:
            raise self.NVMLError("GPU is lost")
        return self.power_mw


def test_nvml_reads_the_energy_counter_behind_a_barrier() -> None:
    nvml = FakeNvml()
    meter = NvmlMeter(1, nvml=nvml, synchronise=lambda: nvml.calls.append("wait"))
    nvml.calls.clear()
    meter.begin()
    nvml.counter_mj += 7_250
    energy = meter.end()
    assert nvml.calls == ["wait", "counter"] * 2
    assert (energy.energy_j, energy.source) == (7.25, "nvml")
    assert energy.device == "Board 1, whole board, energy counter"


def test_nvml_counter_that_stood_still_measured_nothing() -> None:
    meter = NvmlMeter(nvml=FakeNvml())
    meter.begin()
    assert meter.end().source == "not_measured"


def test_nvml_integrates_power_where_there_is_no_counter() -> None:
    meter = NvmlMeter(nvml=FakeNvml(has_counter=False), poll_s=0.002)
    start_s = time.perf_counter()
    meter.begin()
    time.sleep(0.05)
    energy = meter.end()
    assert 40.0 * 0.05 <= energy.energy_j <= 40.0 * (time.perf_counter() - start_s)
    assert energy.source == "nvml"
    assert energy.device.endswith("power every 0.002 s")


def test_nvml_failure_while_polling_reaches_the_caller() -> None:
    nvml = FakeNvml(has_counter=False)
    meter = NvmlMeter(nvml=nvml, poll_s=0.001)
    meter.begin()
    nvml.power_mw = -1
    time.sleep(0.02)
    with pytest.raises(FakeNvml.NVMLError, match="GPU is lost"):
        meter.end()


def test_nvml_without_a_board_is_named() -> None:
    with pytest.raises(ConfigError, match="meter nvml: GPU 0: Invalid Argument; expected an NVIDIA driver"):
        NvmlMeter(nvml=FakeNvml(has_board=False))


def test_waiting_without_cuda_returns_and_starts_no_cuda() -> None:
    import torch

    synchronise_cuda()
    assert not torch.cuda.is_initialized()


# --- RAPL -----------------------------------------------------------------------------------------------------------

RANGE_UJ = 262_143_328_850


def powercap(root: Path, counts_uj: dict[str, int], names: dict[str, str] | None = None) -> Path:
    for domain, count_uj in counts_uj.items():
        folder = root / domain
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{(names or {}).get(domain, 'package-' + domain[-1])}\n")
        (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        (folder / "energy_uj").write_text(f"{count_uj}\n")
    return root


def test_rapl_sums_packages_and_nothing_else(tmp_path: Path) -> None:
    domains = ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1", "intel-rapl:2", "intel-rapl-mmio:0")
    names = {"intel-rapl:0:0": "core", "intel-rapl:2": "psys"}
    meter = RaplMeter(powercap(tmp_path, dict.fromkeys(domains, 1_000_000), names))
    meter.begin()
    powercap(tmp_path, dict.fromkeys(domains, 3_500_000), names)
    energy = meter.end()
    assert (energy.energy_j, energy.source, energy.device) == (5.0, "rapl", "RAPL package-0, package-1")


@settings(max_examples=40)
@given(before=st.integers(0, RANGE_UJ), used=st.integers(1, RANGE_UJ - 1))
def test_rapl_counters_wrap_around(tmp_path_factory: pytest.TempPathFactory, before: int, used: int) -> None:
    root = tmp_path_factory.getbasetemp() / "rapl"
    meter = RaplMeter(powercap(root, {"intel-rapl:0": before}))
    meter.begin()
    after = before + used
    powercap(root, {"intel-rapl:0": after if after <= RANGE_UJ else after - RANGE_UJ})
    assert meter.end().energy_j == pytest.approx(used / 1e6)


def test_rapl_refuses_a_window_that_may_wrap_twice(tmp_path: Path, clock: FakeClock) -> None:
    meter = RaplMeter(powercap(tmp_path, {"intel-rapl:0": 0}), clock)
    meter.begin()
    clock.advance(300.0)
    with pytest.raises(ConfigError, match="a window of 300 s; expected at most 262 s"):
        meter.end()


def test_rapl_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    powercap(tmp_path, {"intel-rapl:0": 0})
    read_text: Callable[..., str] = Path.read_text

    def refuse(path: Path, **options: Any) -> str:
        if path.name == "energy_uj":  # as kernels since 5.10 answer all but root
            raise PermissionError(13, "Permission denied")
        return read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigError, match=r"energy_uj: Permission denied; .* sudo chmod a\+r"):
        RaplMeter(tmp_path)


def test_rapl_that_is_absent_or_broken_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no processor package below"):
        RaplMeter(tmp_path)
    (powercap(tmp_path, {"intel-rapl:0": 0}) / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(ConfigError, match="energy_uj: No such file"):
        RaplMeter(tmp_path)


# --- replay, choice -------------------------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "energy.csv"
    path.write_text("energy_j,energy_source,device\n1.5,nvml,H100\n,not_measured,H100\n2.5,nvml,H100\n")
    return path


def test_replay_returns_what_was_recorded(recording: Path) -> None:
    meter = ReplayMeter(recording)
    assert meter.device == "H100"
    energies = []
    for _ in range(3):
        meter.begin()
        energies.append(meter.end())
    np.testing.assert_array_equal([energy.energy_j for energy in energies], [1.5, math.nan, 2.5])
    with pytest.raises(ConfigError, match=r"energy\.csv: all 3 recorded windows are replayed"):
        meter.begin()


@pytest.mark.parametrize(
    "text", ["energy_j\n1\n", "energy_j,energy_source,device\nmany,nvml,x\n", "energy_j,energy_source,device\n0,no,x\n"]
)
def test_broken_recordings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "energy.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"energy\.csv: .*expected"):
        ReplayMeter(tmp_path / "energy.csv")
    with pytest.raises(ConfigError, match=r"none\.csv"):
        ReplayMeter(tmp_path / "none.csv")


def test_best_meter_takes_what_is_there_and_says_why(tmp_path: Path) -> None:
    tree = powercap(tmp_path / "with", {"intel-rapl:0": 0})
    cases: list[tuple[dict[str, Any], type, str]] = [
        ({"device": "cuda:1", "nvml": FakeNvml()}, NvmlMeter, "measured by Board 1"),
        ({"powercap_root": tree}, RaplMeter, "measured by RAPL package-0"),
        (
            {"powercap_root": tmp_path, "power_w": 15.0},
            PowerModelMeter,
            "modelled as 15 W times seconds .*no processor",
        ),
        ({"powercap_root": tmp_path}, NoMeter, "not measured .*no processor package"),
        ({"device": "cuda", "nvml": FakeNvml(has_board=False)}, NoMeter, "not measured .*Invalid Argument"),
    ]
    for arguments, kind, words in cases:
        chosen = best_meter(**arguments)
        assert isinstance(chosen.meter, kind)
        assert re.search(words, chosen.reason), chosen.reason


# --- measure --------------------------------------------------------------------------------------------------------


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


# --- rows -----------------------------------------------------------------------------------------------------------

CELLS: dict[str, Any] = {
    "side": "edge",
    "model": "tiny",
    "component": "denoise_step",
    "resolution_px": 64,
    "batch_size": 2,
    "source": "here",
}


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


# --- FLOPs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_flops_of_attention_and_products(device: str, context: Any) -> None:
    batch, heads, num_queries, num_keys, width, value_width = 2, 3, 8, 5, 4, 4
    query = torch.ones(batch, heads, num_queries, width, device=device)
    key = torch.ones(batch, heads, num_keys, width, device=device)
    value = torch.ones(batch, heads, num_keys, value_width, device=device)

    def attend() -> object:
        with context():
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    expected = 2 * batch * heads * num_queries * num_keys * (width + value_width)
    assert count_flops(attend).total == expected
    if device == "cpu":
        assert count_flops(attend).attention == expected


def test_flops_of_grouped_queries() -> None:
    query, key = torch.ones(1, 4, 8, 4), torch.ones(1, 2, 8, 4)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_flops(lambda: attend(query, key, key, enable_gqa=True)).total == 2 * 4 * 8 * 8 * (4 + 4)


def test_flops_of_a_module() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(512, 10))
    found = count_flops(lambda: layers(torch.ones(2, 3, 8, 8)))
    assert found.total == 2 * 2 * (8 * 8 * 8 * 3 * 9 + 512 * 10)
    assert found.attention == 0


def test_flops_do_not_depend_on_the_attention_kernel(load_tiny: Callable[[str], Any]) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    unet = load_tiny("sd").unet
    latent, text = torch.zeros(2, 4, 8, 8), torch.zeros(2, 16, 16)
    fused = count_flops(lambda: unet(latent, 10, text))
    with sdpa_kernel(SDPBackend.MATH):
        plain = count_flops(lambda: unet(latent, 10, text))
    assert fused.total == plain.total
    assert 0 == plain.attention < fused.attention
