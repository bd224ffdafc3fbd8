"""A decision that the user states, in place of a policy's choice."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from megopt.diffusion.layer_pieces import FIRST, LAST, Body
from megopt.errors import ConfigError
from megopt.live.decision import Decision, Handover
from megopt.live.modes_rows import region_share
from megopt.live.modes_shares import GroupShare, RegionShare

if TYPE_CHECKING:
    from megopt.live.course import Prompt
    from megopt.live.modes_device import SharingDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated(Handover):
    """What to do, in the words of a configuration; keys of other modes are not looked at.

    Attributes:
        mode: one of `megopt.live.decision.MODES`.
        num_steps: denoising steps of the run.
        split_step: steps of the edge, of step split and shared steps; 0 for half of them.
        region_ratio: share of the image that the edge makes, of region split [1].
        coarse_scale: the device first runs the image at 1/s of the side, of region split [1].
        refine_steps: steps of the device after that; 0 for half of the run.
        context_px: what the edge also runs around its share, and cuts away [px].
        group_id: 32 hexadecimal digits that the members of a group agree on; None to begin one.
        group_size: members [1].
        group_prompt: text of the common steps.
        group_guidance_scale: weight of guidance in them [1].
        common_steps: how many they are [1].
        first_layer: first layer of the edge, of layer split.
        last_layer: last layer of the edge.
    """

    mode: str
    num_steps: int = 25
    split_step: int = 0
    region_ratio: float = 0.5
    coarse_scale: int = 1
    refine_steps: int = 0
    context_px: int = 0
    group_id: str | None = None
    group_size: int = 2
    group_prompt: str = "plain floor"
    group_guidance_scale: float = 2.0
    common_steps: int = 8
    first_layer: str = FIRST
    last_layer: str = LAST

    @property
    def upscaler(self) -> tuple[str, int]:
        """Kind and factor of the upscaler that it needs."""
        return self.sr_kind, self.sr_scale

    def decision(self, device: SharingDevice, prompt: Prompt) -> Decision:
        """Return it for one request.

        Raises:
            ConfigError: for values that a decision cannot have.
        """
        is_between = self.mode in ("step_split", "shared_steps")
        whole = 0 if self.mode == "device_only" else self.num_steps
        return Decision(
            mode=self.mode,
            num_steps=self.num_steps,
            split_step=(self.split_step or self.num_steps // 2) if is_between else whole,
            **{field.name: getattr(self, field.name) for field in fields(Handover)},
            region=self._region(device, prompt) if self.mode == "region_split" else None,
            group=self._group() if self.mode == "shared_steps" else None,
            layers=device.layers(Body(first=self.first_layer, last=self.last_layer))
            if self.mode == "layer_split"
            else None,
        )

    def _region(self, device: SharingDevice, prompt: Prompt) -> RegionShare:
        factor = device.latent_space.scale_factor
        side = prompt.resolution_px // self.sr_scale // factor
        if not 0.0 < self.region_ratio <= 1.0 or self.coarse_scale < 1 or side < self.coarse_scale:
            message = (
                f"decision: region_ratio {self.region_ratio} with coarse_scale {self.coarse_scale} at {side} latent "
                "positions; expected a share in (0, 1], and a coarse run of one position or more; change them"
            )
            raise ConfigError(message)
        found = region_share(self.region_ratio, side, factor, coarse_scale=self.coarse_scale)
        return replace(found, refine_steps=self.refine_steps, context_px=self.context_px)

    def _group(self) -> GroupShare:
        return GroupShare(
            group_id=self.group_id or uuid.uuid4().hex,
            size=self.group_size,
            prompt=self.group_prompt,
            common_steps=self.common_steps,
            guidance_scale=self.group_guidance_scale,
        )
