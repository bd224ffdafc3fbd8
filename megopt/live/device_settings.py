"""How a device deals with time."""

from __future__ import annotations

from dataclasses import dataclass

from megopt.errors import ConfigError
from megopt.ranges import require_whole, require_within


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """How a device deals with time.

    Attributes:
        margin_s: kept back from the deadline [s].
        policy_timeout_s: a policy that takes longer is not waited for [s].
        checkpoint_every: steps between checkpoints that the edge sends on the way; 0 for none.
        preview_every: the same, for previews that are made of them; 0 for none of its own.
        calibration: what earlier requests correct in a prediction, one of `megopt.live.calibration.CALIBRATIONS`.
        refresh_s: age at which what the edge said of itself is asked for again [s]; 0 asks before every request.
        num_retries: times that a lost answer is asked for again.
        backoff_s: before the first of them, doubled for each further one [s].
    """

    margin_s: float = 0.2
    policy_timeout_s: float = 1.0
    checkpoint_every: int = 0
    preview_every: int = 0
    calibration: str = "runtime"
    refresh_s: float = 0.0
    num_retries: int = 2
    backoff_s: float = 0.05

    def __post_init__(self) -> None:
        times = {name: getattr(self, name) for name in ("margin_s", "policy_timeout_s", "refresh_s", "backoff_s")}
        require_within("device settings", 0.0, 600.0, **times)
        counts = {name: getattr(self, name) for name in ("checkpoint_every", "preview_every", "num_retries")}
        require_whole("device settings", 0, **counts)
        if 0 not in (self.checkpoint_every, self.preview_every) and self.checkpoint_every != self.preview_every:
            message = (
                f"device settings: checkpoint_every {self.checkpoint_every} and preview_every {self.preview_every}; "
                "previews are made of checkpoints: give one of them, or both alike"
            )
            raise ConfigError(message)
