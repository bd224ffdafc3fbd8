"""Step split: the edge runs the first k of N denoising steps, the device the rest.

    T = t_text,edge + k t_step,edge(s) + t_merge + t_encode + Z(r, q, s)/R
        + t_decode + t_unmerge + t_text,device + (N - k) t_step,device(s) + t_vae,device(s) + t_sr,device

Edge and device model share a latent space; the hand-over is one checkpoint. k = N is model split, k = 0 device only,
and both are left to `conventional`, so the rows here are 1 <= k <= N - 1.
Source: Hybrid-SD (arXiv 2408.06646) and MEG-CVPO (arXiv 2407.07245) for the split; system model of megopt for the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from megopt.arrays import FloatArray
from megopt.errors import NotOfferedError, SchemeError
from megopt.ranges import require_within
from megopt.schemes.action_table import ActionTable
from megopt.schemes.hand_over import hand_over
from megopt.schemes.offer import CODEC_BITS, MERGE_RATIO, NUM_STEPS, SPLIT_STEP, SR_SCALE, Offer, alterations
from megopt.schemes.row_costs import RowCoster, work_columns
from megopt.schemes.scheme import require, table
from megopt.tables.profile import Side, join_kinds

if TYPE_CHECKING:
    from megopt.tables.profile import Profile

KNOBS = (NUM_STEPS, SPLIT_STEP, MERGE_RATIO, CODEC_BITS, SR_SCALE)
NEEDS: tuple[tuple[Side, str], ...] = (("edge", "denoise_step"), ("device", "denoise_step"), ("device", "vae_decode"))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSplit:
    """Rows (num_steps, split_step, merge_ratio, codec_bits, sr_scale).

    In every list None stands for all that the profile measured.

    Attributes:
        num_steps: step counts N to offer.
        split_steps: edge steps k to offer; None for all of 1..N-1 where quality was not measured over them.
        merge_ratios: merging ratios to offer; above 0 needs merge and unmerge rows and measured quality.
        codec_bits: bits per latent value to offer; other than 16 needs codec rows and measured quality.
        sr_scales: upscaling factors to offer, of 1, 2 and 4; above 1 needs rows at that resolution, an upscaling row
            and measured quality.
        sr_kind: "light", "diffusion" or "hybrid" super-resolution.
        payload: "frame" for the real frames to the byte, "meg_cvpo" for that paper's formula.
        prompt_bits: size of the prompt on the uplink [bit].
    """

    num_steps: tuple[int, ...] | None
    split_steps: tuple[int, ...] | None = None
    merge_ratios: tuple[float, ...] | None = (0.0,)
    codec_bits: tuple[int, ...] | None = (16,)
    sr_scales: tuple[int, ...] | None = (1,)
    sr_kind: str = "light"
    payload: str = "frame"
    prompt_bits: float = 1024.0
    name: str = field(default="step_split", init=False)

    def __post_init__(self) -> None:
        self._offer()
        require_within(f"scheme {self.name}", 0, 1e12, prompt_bits=self.prompt_bits)

    def compile(self, profile: Profile) -> ActionTable:
        """Return one row per combination of the knobs that was measured; see `Scheme.compile`."""
        require(profile, self.name, *NEEDS)
        offer = self._offer()
        points = offer.points(profile)
        settings = offer.settings(profile, points, self._splits_of)
        if not len(settings):
            message = (
                f"scheme {self.name}: profiles/{profile.name}/quality.csv measured no combination of the offered "
                "knobs; offer other values, or null for all that were measured"
            )
            raise NotOfferedError(message)
        work, kind = self._work(profile, settings)
        return table(
            scheme=self.name,
            profile=profile,
            labels=[_label(*row) for row in settings],
            knobs=KNOBS,
            settings={knob.name: column for knob, column in zip(KNOBS, settings.T, strict=True)},
            work=work,
            quality=dict(zip(points.metrics, points.at(settings).T, strict=True)),
            kind=[join_kinds(kind, points.kind)] * len(settings),
        )

    def _offer(self) -> Offer:
        return Offer(
            scheme=self.name,
            num_steps=self.num_steps,
            split_steps=self.split_steps,
            merge_ratios=self.merge_ratios,
            codec_bits=self.codec_bits,
            sr_scales=self.sr_scales,
            sr_kind=self.sr_kind,
            payload=self.payload,
        )

    def _splits_of(self, num_steps: int) -> tuple[int, ...]:
        """Return the edge steps to offer for one step count."""
        if self.split_steps is None:
            return tuple(range(1, num_steps))
        wrong = [k for k in self.split_steps if k >= num_steps]
        if wrong:
            message = (
                f"scheme step_split: split_step {wrong[0]} with num_steps {num_steps}; expected 1 to {num_steps - 1}"
            )
            raise SchemeError(message)
        return tuple(self.split_steps)

    def _work(self, profile: Profile, settings: FloatArray) -> tuple[dict[str, FloatArray | float], str]:
        """Return the columns of `Work`, and the provenance kinds behind them."""
        num_steps, split_step, merge_ratio, codec_bits, sr_scale = settings.T
        coster = RowCoster(profile=profile, scheme=self.name, sr_scale=sr_scale)
        passed = hand_over(coster, merge_ratio, codec_bits, self.payload)
        edge = coster.edge_latent_run(split_step) + passed.edge
        device = passed.device + coster.device_run(num_steps - split_step) + coster.upscaling(self.sr_kind)
        return work_columns(edge, device, passed.downlink_bits, self.prompt_bits), join_kinds(edge.kind, device.kind)


def _label(num_steps: float, split_step: float, *altered: float) -> str:
    return f"{split_step:g} of {num_steps:g} steps at the edge{alterations(*altered)}"
