"""Which meter fits a device: its counter, else the stated power, else none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megopt.errors import ConfigError
from megopt.metering.energy import Meter, NoMeter, PowerModelMeter
from megopt.metering.nvml_meter import NvmlMeter
from megopt.metering.rapl_meter import POWERCAP_ROOT, RaplMeter


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
