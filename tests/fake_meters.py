"""A clock and an NVML that do what a test says."""

from __future__ import annotations


class FakeClock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, duration_s: float) -> None:
        self.now_s += duration_s


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
