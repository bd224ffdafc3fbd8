"""What a policy is: the only thing that acts. Observation -> row of the ActionTable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from megopt.arrays import FloatArray, IntArray
from megopt.system.link import LinkState


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What a policy sees of `num_requests` requests before it chooses.

    Attributes:
        link: the link that each request meets, fields of shape (num_requests,).
        previous_airtime_s: with pipelining, the airtime of the payload before each request, during which the edge
            computes [s], shape (num_requests,); None without.
    """

    link: LinkState
    previous_airtime_s: FloatArray | None = None


class Policy(Protocol):
    """Chooses a row of one ActionTable for each request.

    Attributes:
        reads_limits: False where the choice does not depend on the problem, so that a sweep needs one rollout.
    """

    reads_limits: ClassVar[bool]

    def act(self, observation: Observation) -> IntArray:
        """Return the chosen rows, shape (num_requests,); rows of the table also where none keeps the limits."""
        ...
