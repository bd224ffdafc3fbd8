"""Fading that moves with a Doppler shift: what all fading channels hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megopt.ranges import require_number
from megopt.system.fading import Channel, jakes_correlation


@dataclass(frozen=True, slots=True, kw_only=True)
class DopplerChannel(Channel):
    """A fading channel that moves with a Doppler shift.

    Attributes:
        doppler_hz: largest Doppler shift [Hz]; None fades anew at each request, 0 never.
        interval_s: time between two requests [s]; read only with a Doppler shift.
    """

    doppler_hz: float | None = None
    interval_s: float = 1.0

    def _check(self, *, k_factor_db: float = 0.0) -> str:
        """Check what all fading channels hold and return the name that messages start with."""
        where = f"channel {type(self).__name__}"
        require_number(where, -np.inf, np.inf, k_factor_db=k_factor_db)
        require_number(where, 0.0, 1e9, interval_s=self.interval_s)
        if self.doppler_hz is not None:
            require_number(where, 0.0, 1e9, doppler_hz=self.doppler_hz)
        return where

    def slot_correlation(self) -> float:
        """Return Jakes' correlation, 0 without a Doppler shift."""
        return 0.0 if self.doppler_hz is None else float(jakes_correlation(self.doppler_hz, self.interval_s))
