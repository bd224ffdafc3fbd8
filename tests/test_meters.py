"""Meters: what each measures on fake counters, what it refuses, and which one is chosen."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.errors import ConfigError
from megopt.metering.energy import Energy, NoMeter, PowerModelMeter, synchronise_cuda
from megopt.metering.meters import best_meter
from megopt.metering.nvml_meter import NvmlMeter
from megopt.metering.rapl_meter import RaplMeter
from megopt.metering.replay_meter import ReplayMeter
from tests.fake_meters import FakeClock, FakeNvml


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
