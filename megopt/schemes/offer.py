"""The knob values that a scheme offers: stated lists, or all that the profile measured, and the rows that follow.

A row is only offered where its quality was measured, exactly there. Where a profile holds no quality over a knob, the
neutral value is all there is of it (no merging, 16 bit, no upscaling), and any number of steps may be stated, one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import BoolArray, FloatArray
from megopt.errors import ConfigError, OutOfTableError, SchemeError
from megopt.ranges import require_whole_list, require_within
from megopt.schemes.action_table import Knob
from megopt.schemes.hand_over import PAYLOADS
from megopt.schemes.scheme import refuse_unmeasured
from megopt.system.payload import FRAME_CODEC_BITS
from megopt.tables.quality_points import NEUTRAL, POINT_KNOBS, QualityPoints
from megopt.tables.schema import UPSCALED_ROWS, UPSCALERS

if TYPE_CHECKING:
    from megopt.tables.profile import Profile

NUM_STEPS = Knob(name="num_steps", unit="1", low=1, high=1000, meaning="denoising steps in all")
SPLIT_STEP = Knob(name="split_step", unit="1", low=0, high=1000, meaning="steps run on the edge")
MERGE_RATIO = Knob(
    name="merge_ratio", unit="1", low=0, high=1, meaning="share of latent tokens merged away before sending"
)
CODEC_BITS = Knob(
    name="codec_bits", unit="bit", low=1, high=32, meaning="bits per latent value on the link; 16 where none is sent"
)
SR_SCALE = Knob(name="sr_scale", unit="1", low=1, high=8, meaning="upscaling factor on the device")
SR_SCALES = (1, 2, 4)
QUALITY_ROWS = "step_split"
"""Scheme name of the quality rows behind step split, model split, device only and edge only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Knob values of one scheme; None stands for every value that the profile measured.

    Attributes:
        scheme: name of the scheme, for messages.
        num_steps: step counts N.
        split_steps: edge steps k, from 1.
        merge_ratios: shares of tokens merged away [1].
        codec_bits: bits per latent value.
        sr_scales: upscaling factors, of `SR_SCALES`.
        sr_kind: a key of `UPSCALERS`; quality of upscaled images is read from the rows of `UPSCALED_ROWS`.
        payload: one of `PAYLOADS`.
    """

    scheme: str
    num_steps: Sequence[int] | None
    split_steps: Sequence[int] | None = None
    merge_ratios: Sequence[float] | None
    codec_bits: Sequence[int] | None
    sr_scales: Sequence[int] | None
    sr_kind: str
    payload: str

    def __post_init__(self) -> None:
        where = f"scheme {self.scheme}"
        for name in ("num_steps", "split_steps", "codec_bits", "sr_scales"):
            if getattr(self, name) is not None:
                require_whole_list(where, 1, **{name: getattr(self, name)})
        if self.merge_ratios is not None:
            if not isinstance(self.merge_ratios, list | tuple) or not self.merge_ratios:
                message = f"{where}: merge_ratios is {self.merge_ratios!r}; expected a list of shares, such as [0.0]"
                raise ConfigError(message)
            require_within(where, 0, 1, merge_ratios=self.merge_ratios)
        _require_one_of(where, "sr_scales", self.sr_scales or (), SR_SCALES)
        _require_one_of(where, "sr_kind", [self.sr_kind], tuple(UPSCALERS))
        _require_one_of(where, "payload", [self.payload], PAYLOADS)
        if self.payload == "frame":
            _require_one_of(f"{where} with payload=frame", "codec_bits", self.codec_bits or (), FRAME_CODEC_BITS)

    def points(self, profile: Profile) -> QualityPoints:
        """Return the measured quality behind the offer.

        Raises:
            SchemeError: if the offer holds values whose quality the profile measured over no such knob.
            OutOfTableError: if it names a value at which nothing was measured.
        """
        points = profile.quality_points(QUALITY_ROWS, upscaled=UPSCALED_ROWS[self.sr_kind])
        lossy = {knob: any(value != NEUTRAL[knob] for value in self._stated(knob)) for knob in NEUTRAL}
        lossy["num_steps"] = len(self.num_steps or ()) > 1
        refuse_unmeasured(profile, self.scheme, points.held, **lossy)
        for knob in POINT_KNOBS:
            self._require_measured(profile, points, knob)
        return points

    def settings(
        self, profile: Profile, points: QualityPoints, splits_of: Callable[[int], Sequence[int]]
    ) -> FloatArray:
        """Return the rows that are offered and measured, in the order of `POINT_KNOBS`, shape (num_rows, 5).

        Step counts come in the stated order, from the largest down where none is stated; then split step, upscaling
        factor, bits from the largest down and merge ratio. So the first row of a step count is the least altered one.

        Args:
            profile: whose step counts are offered.
            points: of `self.points(profile)`.
            splits_of: the split steps that are wanted for a step count.

        Raises:
            SchemeError: if no step count is stated, and none was measured.
            OutOfTableError: if a stated step count lies outside the profile's runs.
        """
        kept = points.settings[self._is_offered(points)]
        blocks = [_block(kept, num_steps, splits_of(num_steps)) for num_steps in self._step_counts(profile, points)]
        return np.concatenate(blocks)

    def _stated(self, knob: str) -> Sequence[float]:
        """Return the stated values of a knob, none where all that is measured is offered."""
        lists = (self.num_steps, self.split_steps, self.merge_ratios, self.codec_bits, self.sr_scales)
        return dict(zip(POINT_KNOBS, lists, strict=True))[knob] or ()

    def _require_measured(self, profile: Profile, points: QualityPoints, knob: str) -> None:
        column = points.column(knob)
        measured = np.unique(column[~np.isnan(column)])
        missing = [value for value in self._stated(knob) if len(measured) and not np.isclose(measured, value).any()]
        if missing:
            shown, known = (", ".join(f"{value:g}" for value in values) for values in (missing, measured))
            message = (
                f"scheme {self.scheme}: profiles/{profile.name}/quality.csv measured nothing at {knob} = {shown}"
                f"{f' with sr_kind={self.sr_kind}' if knob == 'sr_scale' else ''}; expected some of {known}, or null "
                "for all of them"
            )
            raise OutOfTableError(message)

    def _is_offered(self, points: QualityPoints) -> BoolArray:
        """Return which points hold offered values of the knobs besides the steps, shape (num_points,)."""
        is_offered = np.ones(len(points.settings), dtype=np.bool_)
        for knob in NEUTRAL:
            stated = np.array(self._stated(knob), dtype=np.float64)
            if len(stated):
                is_offered &= np.isclose(points.column(knob)[:, np.newaxis], stated).any(axis=-1)
        return is_offered

    def _step_counts(self, profile: Profile, points: QualityPoints) -> list[int]:
        column = points.column("num_steps")
        if self.num_steps is None:
            measured = np.unique(column[~np.isnan(column)])
            if not len(measured):
                message = (
                    f"scheme {self.scheme}: num_steps is null, and profile {profile.name} measured no quality over "
                    "num_steps; state one, such as num_steps=[25]"
                )
                raise SchemeError(message)
            return [int(count) for count in measured[::-1]]
        if "num_steps" not in points.held:
            for count in self.num_steps:
                profile.check_num_steps(count)
        return list(self.num_steps)


def alterations(merge_ratio: float, codec_bits: float, sr_scale: float) -> str:
    """Return what a label says of knobs that are not neutral: ", merge 0.5, 8 bit, x2"."""
    parts = {
        f", merge {merge_ratio:g}": merge_ratio > 0,
        f", {codec_bits:g} bit": codec_bits != 16,
        f", x{sr_scale:g}": sr_scale > 1,
    }
    return "".join(text for text, is_said in parts.items() if is_said)


def _block(kept: FloatArray, num_steps: int, split_steps: Sequence[int]) -> FloatArray:
    """Return the rows of one step count, shape (num_rows, 5)."""
    steps, split = POINT_KNOBS.index("num_steps"), POINT_KNOBS.index("split_step")
    rows = kept[np.isnan(kept[:, steps]) | (kept[:, steps] == num_steps)]
    rows[:, steps] = num_steps
    is_any = np.isnan(rows[:, split])
    free = np.repeat(rows[is_any], len(split_steps), axis=0)
    free[:, split] = np.tile(np.array(split_steps, dtype=np.float64), int(is_any.sum()))
    rows = np.concatenate([rows[np.isin(rows[:, split], split_steps)], free])
    _, k, merge_ratio, codec_bits, sr_scale = rows.T
    return rows[np.lexsort((merge_ratio, -codec_bits, sr_scale, k))]


def _require_one_of(where: str, name: str, came: Sequence[object], expected: Sequence[object]) -> None:
    wrong = [value for value in came if value not in expected]
    if wrong:
        message = f"{where}: {name} holds {wrong[0]!r}; expected {', '.join(map(str, expected))}; change {name}"
        raise ConfigError(message)
