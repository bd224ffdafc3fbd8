"""Quality against common steps: the curves of HIS, as published and refitted from the published points.

    Q(x; phi) = L/(1 + exp(K (x - B))) + D          (CLIP score of image and personal prompt)

for x of 28 steps run under a public prompt whose cosine with the personal one is phi. L, K, B, D belong to bins of phi
of width 0.1, 0.2 to 0.7. The points are means over prompt pairs of SD3-medium at 28 steps; no spread was published, and
0.8 and above was not fitted. Variants: `sim_npi` (weaker guidance in the common phase, a negative prompt after it) and
`plain`; beyond about 22 common steps sim_npi falls below plain.
Source: HIS (ICC 2025) and github.com/iimxinyi/HIS at 6cffa76; coefficients by least squares from its points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from megopt.arrays import FloatArray, Real
from megopt.errors import OutOfTableError, SchemeError
from megopt.ranges import require_within

if TYPE_CHECKING:
    import pandas as pd

NUM_STEPS = 28
"""Denoising steps of the measurement; the curves hold for no other number."""
BINS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
MEASURED_RANGE = (0.15, 0.75)
"""Similarities that round to a bin, the upper end excluded."""
VARIANTS = ("sim_npi", "plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityCurves:
    """The six curves of one variant.

    Attributes:
        variant: "sim_npi" or "plain".
        coefficients: L, K, B, D of each bin, shape (6, 4).
        rmse: root mean square error over the points of each bin [CLIP score], shape (6,).
        r2: share of the variance explained [1], shape (6,).
    """

    variant: str
    coefficients: FloatArray
    rmse: FloatArray
    r2: FloatArray

    def quality(self, common_steps: Real, similarity: Real) -> FloatArray:
        """Return the CLIP score for common steps 0..27 and similarities that broadcast.

        A similarity is rounded to its bin, as in the source. At 1 the public prompt is the user's own: nothing is given
        up, and the score is that of no common step in the nearest bin.

        Raises:
            ConfigError: if common steps lie outside 0 to 27.
            OutOfTableError: if a similarity is outside 0.15 to 0.75 and not 1.
        """
        require_within("quality of shared steps", 0, NUM_STEPS - 1, common_steps=common_steps)
        phi, steps = np.broadcast_arrays(np.asarray(similarity, dtype=np.float64), common_steps)
        is_own = phi >= 1.0 - 1e-9
        is_outside = ~is_own & ~((phi >= MEASURED_RANGE[0]) & (phi < MEASURED_RANGE[1]))
        if np.any(is_outside):
            message = (
                f"quality of shared steps: similarity {phi[is_outside][0]:.3g}; expected 0.15 to 0.75, where it was "
                "measured, or 1; group other prompts, or measure them"
            )
            raise OutOfTableError(message)
        number = np.where(is_own, len(BINS) - 1, np.rint(phi * 10.0).astype(np.int64) - 2)
        number = np.clip(number, 0, len(BINS) - 1)  # 0.15 and 0.75 themselves may round outwards
        low, steepness, middle, floor = np.moveaxis(self.coefficients[number], -1, 0)
        return np.asarray(sigmoid(np.where(is_own, 0.0, steps), low, steepness, middle, floor))


def sigmoid(common_steps: Real, height: Real, steepness: Real, middle: Real, floor: Real) -> FloatArray:
    """Return L/(1 + exp(K (x - B))) + D for arguments that broadcast."""
    return np.asarray(height / (1.0 + np.exp(steepness * (np.asarray(common_steps) - middle))) + floor)


@cache
def published_curves(variant: str = "sim_npi") -> QualityCurves:
    """Return the curves of a variant as profiles/his_sd3 keeps them: those that schemes and solvers use.

    Raises:
        SchemeError: for an unknown variant.
    """
    rows = _rows("hiqm_fit", variant).sort_values("similarity_bin")
    return QualityCurves(
        variant=variant,
        coefficients=rows[["L", "K", "B", "D"]].to_numpy(dtype=np.float64),
        rmse=rows["rmse"].to_numpy(dtype=np.float64),
        r2=rows["r2"].to_numpy(dtype=np.float64),
    )


def published_points(variant: str = "sim_npi") -> FloatArray:
    """Return the published mean CLIP scores, shape (6, 28): bins of similarity, common steps 0 to 27.

    Raises:
        SchemeError: for an unknown variant.
    """
    rows = _rows("clip_vs_common_step", variant)
    table = rows.pivot_table(index="similarity_bin", columns="common_step", values="clip_score")
    return np.asarray(table.to_numpy(dtype=np.float64))


def fitted_curves(variant: str = "sim_npi") -> QualityCurves:
    """Return curves fitted to the published points by non-linear least squares, from a start that the data give.

    Raises:
        SchemeError: for an unknown variant.
    """
    from scipy.optimize import curve_fit

    points, steps = published_points(variant), np.arange(NUM_STEPS, dtype=np.float64)
    coefficients = np.empty((len(BINS), 4))
    for number, scores in enumerate(points):
        start = (np.ptp(scores), 0.2, float(steps[np.argmin(np.abs(scores - scores.mean()))]), scores.min())
        coefficients[number] = curve_fit(sigmoid, steps, scores, p0=start)[0]
    residuals = points - np.stack([sigmoid(steps, *row) for row in coefficients])
    spread = np.sum((points - points.mean(axis=1, keepdims=True)) ** 2, axis=1)
    return QualityCurves(
        variant=variant,
        coefficients=coefficients,
        rmse=np.sqrt(np.mean(residuals**2, axis=1)),
        r2=1.0 - np.sum(residuals**2, axis=1) / spread,
    )


def _rows(name: str, variant: str) -> pd.DataFrame:
    """Return the rows of a variant in a table of profiles/his_sd3."""
    import pandas as pd

    if variant not in VARIANTS:
        message = f"quality of shared steps: variant {variant!r}; expected one of {', '.join(VARIANTS)}; change variant"
        raise SchemeError(message)
    table = pd.read_csv(str(files("megopt.profiles") / "his_sd3" / f"{name}.csv"), comment="#")
    return table[table["variant"] == variant]
