"""Who is admitted at the edge: bounds, the times that an edge has learned of itself, and refusals with a time.

t_own = t_fixed + steps of the edge x t_step
"""

from __future__ import annotations

from dataclasses import dataclass

from megopt.live.messages import MAX_SIDE_PX, Request
from megopt.ranges import require_whole, require_within

SMOOTHING = 0.3
"""Weight of the newest time in an estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSettings:
    """Bounds of an edge service.

    Attributes:
        max_waiting: requests that may wait [1].
        max_batch: requests computed together [1].
        max_steps: denoising steps of a run [1].
        max_side_px: side of an image [px].
        keep_s: time for which results are kept [s].
        max_kept_bytes: size of all kept results [B].
    """

    max_waiting: int = 32
    max_batch: int = 8
    max_steps: int = 100
    max_side_px: int = 1024
    keep_s: float = 120.0
    max_kept_bytes: int = 1 << 28

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("max_waiting", "max_batch", "max_steps", "max_kept_bytes")}
        require_whole("edge settings", 1, **counts)
        require_within("edge settings", 8, MAX_SIDE_PX, max_side_px=self.max_side_px)
        require_within("edge settings", 0.0, 86_400.0, keep_s=self.keep_s)


class RefusedError(Exception):
    """Raised when a request is not taken.

    Attributes:
        reason: "busy", "closing" or "other_request".
        retry_after_s: when to try again [s]; None where that would not help.
    """

    def __init__(self, reason: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.reason, self.retry_after_s = reason, retry_after_s


@dataclass(slots=True)
class OwnTimes:
    """What an end has learned of its own speed; times are 0 before the first run.

    Attributes:
        step_s: of one step [s].
        fixed_s: of a run beside its steps [s].
    """

    step_s: float = 0.0
    fixed_s: float = 0.0

    def of(self, num_steps: int) -> float:
        """Return how long a run of so many steps takes [s]."""
        return self.fixed_s + num_steps * self.step_s

    def learn(self, step_s: float, fixed_s: float) -> None:
        """Take a run into account: the time of one of its steps and of all else [s]."""
        self.step_s, self.fixed_s = _blended(self.step_s, step_s), _blended(self.fixed_s, fixed_s)


def shape_of(request: Request) -> tuple[object, ...]:
    """Return what requests must share to be computed together."""
    return (
        request.decision.num_steps,
        request.sampler,
        request.guidance_scale,
        request.guidance_rescale,
        request.height_px,
        request.width_px,
        request.negative_prompt is None,
    )


def _blended(old: float, new: float) -> float:
    return new if old == 0.0 else (1.0 - SMOOTHING) * old + SMOOTHING * new
