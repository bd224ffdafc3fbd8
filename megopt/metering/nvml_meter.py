"""Joules of a GPU by NVML: its counter, or the integral of its power where it has none."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

from megopt.errors import ConfigError
from megopt.metering.energy import Energy, counted, synchronise_cuda


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
        return counted(energy_j, "nvml", self.device)

    def _offers_counter(self) -> bool:
        try:
            self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._board)
        except self._nvml.NVMLError:  # older than Volta
            self._nvml.nvmlDeviceGetPowerUsage(self._board)
            return False
        return True


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
