"""Layer split with all layers at the edge: guided noise crosses at every step, the device keeps the latent.

    T <= t_text,edge + N (t_step,edge + t_encode) + N Z/R + N t_decode + t_vae,device

The edge goes on while a frame is under way, so that the sum is an upper bound: it counts up to (N - 1) min(t_step, Z/R)
twice. Beside model split, which sends one latent at the end, the device pays N - 1 further frames for never giving its
latent away. Quality is that of model split at 16 bits per value, at which the noise crosses as well.
Source: Lambda-Split (arXiv 2310.14651), mode for diffusion models.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from megopt.errors import NotOfferedError
from megopt.ranges import require_within
from megopt.schemes.action_table import ActionTable
from megopt.schemes.conventional import Conventional
from megopt.schemes.row_costs import RowCoster, RowCosts
from megopt.schemes.scheme import require
from megopt.tables.profile import Side, join_kinds

if TYPE_CHECKING:
    from megopt.tables.profile import Profile

NEEDS: tuple[tuple[Side, str], ...] = (("edge", "denoise_step"), ("device", "vae_decode"))
MEASURED_BITS = 16
"""Bits per value behind the quality of model split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSplit:
    """Rows (num_steps), with the knobs of model split at their neutral values.

    Attributes:
        num_steps: step counts to offer; None for all that the profile measured.
        prompt_bits: size of the prompt on the uplink [bit].
    """

    num_steps: tuple[int, ...] | None
    prompt_bits: float = 1024.0
    name: str = field(default="layer_split", init=False)

    def __post_init__(self) -> None:
        require_within(f"scheme {self.name}", 0, 1e12, prompt_bits=self.prompt_bits)

    def compile(self, profile: Profile) -> ActionTable:
        """Return one row per step count; see `Scheme.compile`."""
        require(profile, self.name, *NEEDS)
        model_split = Conventional(
            num_steps=self.num_steps,
            codec_bits=(MEASURED_BITS,),
            prompt_bits=self.prompt_bits,
            ways=("model_split",),
        ).compile(profile)
        num_steps = model_split.settings[:, [knob.name for knob in model_split.knobs].index("num_steps")]
        if np.isnan(num_steps).any():
            message = f"scheme {self.name}: profile {profile.name} measured no step counts; choose another profile"
            raise NotOfferedError(message)
        edge, device = (_packing(profile, self.name, *part).repeated(num_steps - 1.0) for part in _PACKING)
        work = model_split.work
        return replace(
            model_split,
            scheme=np.full(len(model_split), self.name, dtype="U32"),
            label=np.array([f"noise of {count:g} steps from the edge" for count in num_steps], dtype="U64"),
            work=replace(
                work,
                edge_s=work.edge_s + edge.latency_s,
                device_s=work.device_s + device.latency_s,
                downlink_bits=num_steps * work.downlink_bits,
                edge_energy_j=work.edge_energy_j + edge.energy_j,
                device_energy_j=work.device_energy_j + device.energy_j,
            ),
            kind=np.array([join_kinds(str(kind), "modelled") for kind in model_split.kind], dtype="U64"),
        )


_PACKING: tuple[tuple[Side, str], ...] = (("edge", "codec_encode"), ("device", "codec_decode"))


def _packing(profile: Profile, scheme: str, side: Side, component: str) -> RowCosts:
    """Return the cost of one frame, shape (1,); nothing where the profile does not time it."""
    coster = RowCoster(profile=profile, scheme=scheme, sr_scale=np.ones(1))
    return coster.of(side, component, np.array([profile.has(side, component)]))
