"""Time and energy of a callable: warm-up, repeats until the median is known well enough, every sample kept.

    callable -> Measurement -> row of compute.csv

The interval of the median comes from order statistics: it assumes no distribution, and no number is drawn.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from megopt.arrays import FloatArray
from megopt.errors import ConfigError
from megopt.metering.energy import Energy, Meter, NoMeter, synchronise_cuda

LEVEL = 0.95
"""Share of intervals that hold the true median."""
_MORE_SAMPLES = 1.2
"""Samples grow by this factor between two looks at the interval."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurement:
    """What calls of one callable cost.

    Attributes:
        samples_s: wall time of every call after the warm-up [s], in the order of the calls, shape (num_calls,).
        energy_j: mean energy per call [J]; NaN where not measured.
        energy_source: a key of `schema.ENERGY_SOURCES`.
        device: what was metered, in words.
        num_warmup: calls before, not counted.
    """

    samples_s: FloatArray
    energy_j: float
    energy_source: str
    device: str
    num_warmup: int

    @property
    def median_s(self) -> float:
        """Median time of a call [s]."""
        return float(np.median(self.samples_s))

    @property
    def std_s(self) -> float:
        """Standard deviation of the time of a call [s]; NaN for one call."""
        return float(np.std(self.samples_s, ddof=1)) if len(self.samples_s) > 1 else math.nan

    @property
    def interval_s(self) -> tuple[float, float]:
        """Interval of the median at level `LEVEL` [s]; NaN below six calls, which cannot give one."""
        from scipy.stats import quantile_test

        found: Any = quantile_test(self.samples_s, p=0.5).confidence_interval(LEVEL)
        return float(found.low), float(found.high)

    @property
    def relative_interval(self) -> float:
        """Half of that interval over the median [1]."""
        low, high = self.interval_s
        return (high - low) / 2.0 / self.median_s


def measure(
    call: Callable[[], object],
    *,
    meter: Meter | None = None,
    num_warmup: int = 2,
    num_repeats: int = 10,
    relative_interval: float | None = None,
    budget_s: float = 30.0,
    synchronise: Callable[[], None] = synchronise_cuda,
    clock: Callable[[], float] = time.perf_counter,
    shows_progress: bool = False,
    description: str = "measure",
) -> Measurement:
    """Return what calls of `call` cost, each waited for, with garbage collection held back.

    The meter's windows hold whole calls, as many as the counter needs to move; so a fast callable is called more often
    than asked.

    Args:
        call: takes nothing; what it returns is dropped after the clock has stopped.
        meter: of the energy; None measures none.
        num_warmup: calls before the measurement.
        num_repeats: least number of measured calls.
        relative_interval: go on until half the interval of the median is at most this share of it; None stops at
            `num_repeats`.
        budget_s: stop this long after the warm-up [s] whatever the interval, once `num_repeats` calls are done.
        synchronise: waits until the device has done what it was given.
        clock: seconds that only grow.
        shows_progress: whether to show a bar.
        description: what the bar says.

    Raises:
        ConfigError: if a number is outside its range.
    """
    _check_plan(num_warmup, num_repeats, relative_interval, budget_s)
    metered = meter or NoMeter()
    samples: list[float] = []
    energies: list[Energy] = []
    bar = tqdm(total=num_repeats, desc=description, unit="call", disable=not shows_progress)
    with bar, _garbage_kept():
        for _ in range(num_warmup):
            call()
            synchronise()
        begun_s, next_look = clock(), num_repeats
        while True:
            block, energy = _block(call, metered, synchronise, clock)
            samples += block
            energies.append(energy)
            bar.total = max(num_repeats, len(samples))
            bar.update(len(block))
            if len(samples) >= next_look:
                so_far = _measurement(samples, energies, num_warmup)
                if relative_interval is None or so_far.relative_interval <= relative_interval:
                    return so_far
                next_look = math.ceil(len(samples) * _MORE_SAMPLES)
            if len(samples) >= num_repeats and clock() - begun_s >= budget_s:
                return _measurement(samples, energies, num_warmup)


def _block(
    call: Callable[[], object], meter: Meter, synchronise: Callable[[], None], clock: Callable[[], float]
) -> tuple[list[float], Energy]:
    """Return the times of the calls of one window of the meter, and its energy."""
    samples: list[float] = []
    meter.begin()
    try:
        begun_s = clock()
        while not samples or clock() - begun_s < meter.shortest_window_s:
            synchronise()
            start_s = clock()
            result = call()
            synchronise()
            samples.append(clock() - start_s)
            del result  # freeing it is no part of the call
    finally:
        energy = meter.end()
    return samples, energy


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """Collect garbage now and not before the end; reference counts go on freeing."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _measurement(samples: list[float], energies: list[Energy], num_warmup: int) -> Measurement:
    """Return the calls of all windows as one measurement; energy that one window lacks is not known."""
    unknown = [energy for energy in energies if energy.source == "not_measured"]
    sample = (unknown or energies)[0]
    total_j = math.nan if unknown else sum(energy.energy_j for energy in energies)
    return Measurement(
        samples_s=np.array(samples),
        energy_j=total_j / len(samples),
        energy_source=sample.source,
        device=sample.device,
        num_warmup=num_warmup,
    )


def _check_plan(num_warmup: int, num_repeats: int, relative_interval: float | None, budget_s: float) -> None:
    faults = {
        f"num_warmup {num_warmup}, expected >= 0": num_warmup < 0,
        f"num_repeats {num_repeats}, expected >= 1": num_repeats < 1,
        f"relative_interval {relative_interval}, expected > 0": relative_interval is not None
        and not relative_interval > 0.0,
        f"budget_s {budget_s}, expected > 0": not budget_s > 0.0,
    }
    found = [fault for fault, is_there in faults.items() if is_there]
    if found:
        message = f"measure: {'; '.join(found)}"
        raise ConfigError(message)
