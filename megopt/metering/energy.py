"""Joules of a window of time, each with its source: NVML, RAPL, a stated power, a recording, or none.

    meter.begin()
    ...
    energy = meter.end()

Counters count everything that the device draws in the window, its idle power and other processes included. What is not
measured is NaN, never 0 J; a counter that did not move in a window that it cannot resolve has measured nothing.
"""

from __future__ import annotations

import csv
import importlib
import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from megopt.errors import ConfigError
from megopt.tables.schema import ENERGY_SOURCES

POWERCAP_ROOT = Path("/sys/class/powercap")
MOST_PACKAGE_W = 1000.0
"""More than any processor package draws: bounds how long a RAPL counter surely wraps at most once."""
REPLAY_COLUMNS = ("energy_j", "energy_source", "device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """Joules of one window.

    Attributes:
        energy_j: energy [J]; NaN if and only if `source` is "not_measured".
        source: a key of `megopt.tables.schema.ENERGY_SOURCES`.
        device: what was metered, in words.
    """

    energy_j: float
    source: str
    device: str

    def __post_init__(self) -> None:
        is_known = self.source in ENERGY_SOURCES and (self.source == "not_measured") == math.isnan(self.energy_j)
        if not is_known or self.energy_j < 0.0 or math.isinf(self.energy_j):
            message = (
                f"energy: {self.energy_j} J from {self.source!r}; expected joules >= 0 from one of "
                f"{', '.join(ENERGY_SOURCES)}, and NaN only where not measured"
            )
            raise ConfigError(message)


class Meter(Protocol):
    """Meters windows of time, one after the other."""

    @property
    def device(self) -> str:
        """What it meters, in words."""

    @property
    def shortest_window_s(self) -> float:
        """Windows shorter than this [s] tell little: the counter moves in steps."""

    def begin(self) -> None:
        """Open a window."""

    def end(self) -> Energy:
        """Close the window and return its joules."""


@dataclass(slots=True)
class NoMeter:
    """Measures nothing, and says so."""

    device: str = "none"
    shortest_window_s: float = 0.0

    def begin(self) -> None:
        """Do nothing."""

    def end(self) -> Energy:
        """Return NaN J."""
        return _not_measured(self.device)


@dataclass(slots=True)
class PowerModelMeter:
    """Stated watts times time: a model, never a measurement.

    Attributes:
        power_w: what the device is said to draw [W].
        device: what it is, in words.
    """

    power_w: float
    device: str
    shortest_window_s: float = 0.0
    clock: Callable[[], float] = time.perf_counter
    _begun_s: float = math.nan

    def __post_init__(self) -> None:
        if not 0.0 < self.power_w < math.inf:
            message = f"power model of {self.device}: power_w is {self.power_w}; expected watts > 0"
            raise ConfigError(message)

    def begin(self) -> None:
        """Open a window."""
        self._begun_s = self.clock()

    def end(self) -> Energy:
        """Close the window and return watts times seconds."""
        energy_j = self.power_w * (self.clock() - self._begun_s)
        return Energy(energy_j=energy_j, source="power_model", device=f"{self.device}, stated {self.power_w:g} W")


class NvmlMeter:
    """The board of one NVIDIA GPU: its energy counter, or its power integrated in a thread where it has none."""

    shortest_window_s = 1.0  # ten steps of the counter, which moves every 20 to 100 ms

    def __init__(
        self,
        index: int = 0,
        *,
        nvml: Any = None,
        synchronise: Callable[[], None] | None = None,
        poll_s: float = 0.02,
    ) -> None:
        """Open the board.

        Args:
            index: number of the GPU as torch counts, which may hide or reorder boards; NVML's own without torch.
            nvml: module with the functions of `pynvml`; None for `pynvml`.
            synchronise: waits for the GPU before each reading; None for `synchronise_cuda`.
            poll_s: time between two power readings [s], where there is no counter.

        Raises:
            ConfigError: if the library, the board or both readings are missing.
        """
        self._nvml, self._poll_s = nvml if nvml is not None else _pynvml(), poll_s
        self._synchronise = synchronise or partial(synchronise_cuda, index)
        try:
            self._nvml.nvmlInit()
            self._board = _board(self._nvml, index)
            self._has_counter = self._offers_counter()
            reading = "energy counter" if self._has_counter else f"power every {poll_s:g} s"
            self.device = f"{self._nvml.nvmlDeviceGetName(self._board)}, whole board, {reading}"
        except self._nvml.NVMLError as error:
            message = f"meter nvml: GPU {index}: {error}; expected an NVIDIA driver and board; choose another meter"
            raise ConfigError(message) from error
        self._begun_mj = 0
        self._power: _PowerIntegral | None = None

    def begin(self) -> None:
        """Wait for the GPU and open a window."""
        self._synchronise()
        if self._has_counter:
            self._begun_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._board)
        else:
            self._power = _PowerIntegral(lambda: self._nvml.nvmlDeviceGetPowerUsage(self._board) / 1e3, self._poll_s)

    def end(self) -> Energy:
        """Wait for the GPU, close the window and return its joules."""
        self._synchronise()
        if self._power is not None:
            energy_j, self._power = self._power.stop(), None
        else:
            energy_j = (self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._board) - self._begun_mj) / 1e3
        return _counted(energy_j, "nvml", self.device)

    def _offers_counter(self) -> bool:
        try:
            self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._board)
        except self._nvml.NVMLError:  # older than Volta
            self._nvml.nvmlDeviceGetPowerUsage(self._board)
            return False
        return True


class RaplMeter:
    """All processor packages of an Intel or AMD machine, through the powercap tree of Linux."""

    shortest_window_s = 0.05  # fifty steps of the counters, which move every millisecond

    def __init__(self, root: Path = POWERCAP_ROOT, clock: Callable[[], float] = time.perf_counter) -> None:
        """Find the packages below `root`.

        Raises:
            ConfigError: if there are none, or their counters may not be read.
        """
        self._clock, self._begun_s, self._begun_uj = clock, math.nan, [0]
        # "intel-rapl:0:1" is a part of a package, "intel-rapl-mmio:0" the same package once more
        domains = sorted(path for path in root.glob("intel-rapl:*") if path.name.count(":") == 1)
        packages = [path for path in domains if _read(path / "name").startswith("package")]
        if not packages:
            message = f"meter rapl: no processor package below {root}; expected intel-rapl:0; choose another meter"
            raise ConfigError(message)
        self._counters = [path / "energy_uj" for path in packages]
        self._ranges_uj = [int(_read(path / "max_energy_range_uj")) for path in packages]
        self._counts_uj()
        self.device = f"RAPL {', '.join(_read(path / 'name') for path in packages)}"

    def begin(self) -> None:
        """Open a window."""
        self._begun_s, self._begun_uj = self._clock(), self._counts_uj()

    def end(self) -> Energy:
        """Close the window and return its joules.

        Raises:
            ConfigError: if the window was so long that a counter may have wrapped around more than once.
        """
        duration_s, longest_s = self._clock() - self._begun_s, min(self._ranges_uj) / 1e6 / MOST_PACKAGE_W
        if duration_s > longest_s:
            message = f"meter rapl: a window of {duration_s:.0f} s; expected at most {longest_s:.0f} s; divide it"
            raise ConfigError(message)
        energy_uj = 0
        for now, before, span in zip(self._counts_uj(), self._begun_uj, self._ranges_uj, strict=True):
            energy_uj += now - before if now >= before else now - before + span
        return _counted(energy_uj / 1e6, "rapl", self.device)

    def _counts_uj(self) -> list[int]:
        return [int(_read(path)) for path in self._counters]


class ReplayMeter:
    """Returns recorded joules, window by window; for tests and for energies that were measured elsewhere."""

    shortest_window_s = 0.0  # a recording has no time

    def __init__(self, path: Path) -> None:
        """Read a csv file with the columns of `REPLAY_COLUMNS`, a row per window; an empty energy was not measured.

        Raises:
            ConfigError: if the file is missing, has other columns, or a row is no energy.
        """
        self._path, self._windows = path, _recorded(path)
        self._num_replayed = 0
        self.device = ", ".join(dict.fromkeys(window.device for window in self._windows))

    def begin(self) -> None:
        """Open the next window; a ConfigError if all were replayed."""
        if self._num_replayed == len(self._windows):
            message = f"{self._path.name}: all {len(self._windows)} recorded windows are replayed; record more"
            raise ConfigError(message)

    def end(self) -> Energy:
        """Return the joules of the window."""
        self._num_replayed += 1
        return self._windows[self._num_replayed - 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenMeter:
    """A meter and why it is this one.

    Attributes:
        meter: the meter.
        reason: one line, for a log or a provenance file.
    """

    meter: Meter
    reason: str


def best_meter(
    device: str = "cpu",
    *,
    power_w: float | None = None,
    nvml: Any = None,
    powercap_root: Path = POWERCAP_ROOT,
) -> ChosenMeter:
    """Return the best meter of what runs on `device`: its counter, else the stated power, else none.

    Args:
        device: "cpu", "cuda", "cuda:1", ...
        power_w: what the device is said to draw [W]; None if nobody says.
        nvml: as in `NvmlMeter`.
        powercap_root: as in `RaplMeter`.

    Raises:
        ConfigError: if `power_w` is not above 0.
    """
    name, _, index = device.partition(":")
    try:
        found: Meter = NvmlMeter(int(index or 0), nvml=nvml) if name == "cuda" else RaplMeter(powercap_root)
    except ConfigError as error:
        if power_w is None:
            reason = f"energy is not measured ({error}; state power_w for a power model)"
            return ChosenMeter(meter=NoMeter(device), reason=reason)
        meter = PowerModelMeter(power_w, device)
        return ChosenMeter(meter=meter, reason=f"energy is modelled as {power_w:g} W times seconds ({error})")
    return ChosenMeter(meter=found, reason=f"energy is measured by {found.device}")


def synchronise_cuda(index: int | None = None) -> None:
    """Wait until a GPU, by default the current one, is done; return at once where torch or CUDA is not in use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize(index)


@dataclass(slots=True)
class _PowerIntegral:
    """Integrates power over time by the trapezoidal rule, in a thread of its own."""

    power_w: Callable[[], float]
    poll_s: float
    _readings: list[tuple[float, float]] = field(default_factory=list)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _error: Exception | None = None
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._read()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the energy since the beginning [J]."""
        self._stopped.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        self._read()
        return sum((t1 - t0) * (p0 + p1) / 2.0 for (t0, p0), (t1, p1) in pairwise(self._readings))

    def _read(self) -> None:
        self._readings.append((time.perf_counter(), self.power_w()))

    def _poll(self) -> None:
        while not self._stopped.wait(self.poll_s):
            try:
                self._read()
            except Exception as error:  # raised again where the window ends
                self._error = error
                return


def _counted(energy_j: float, source: str, device: str) -> Energy:
    """Return what a counter counted; one that did not move has measured nothing."""
    return Energy(energy_j=energy_j, source=source, device=device) if energy_j > 0.0 else _not_measured(device)


def _not_measured(device: str) -> Energy:
    return Energy(energy_j=math.nan, source="not_measured", device=device)


def _pynvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        message = "meter nvml: the package nvidia-ml-py is missing; install it or choose another meter"
        raise ConfigError(message) from error


def _board(nvml: Any, index: int) -> Any:
    """Return the handle of torch's GPU `index`; torch and NVML number boards differently."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and index < torch.cuda.device_count():
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        remedy = f"allow it with: sudo chmod a+r {path}" if isinstance(error, PermissionError) else "use another meter"
        message = f"meter rapl: {path}: {error.strerror}; expected a file that may be read; {remedy}"
        raise ConfigError(message) from error


def _recorded(path: Path) -> list[Energy]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        energies = [
            Energy(energy_j=float(row["energy_j"] or math.nan), source=row["energy_source"], device=row["device"])
            for row in rows
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        message = f"{path.name}: {type(error).__name__}: {error}; expected the columns {', '.join(REPLAY_COLUMNS)}"
        raise ConfigError(message) from error
    return energies
