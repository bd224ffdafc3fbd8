"""HIQM of HIS, ICC 2025: the twelve curves of quality against common steps, fitted anew and put into one surface.

    Q(x; phi) = L/(1 + exp(K (x - B))) + D

For each variant and bin of similarity phi, the coefficients of a fresh least-squares fit stand beside those that
profiles/his_sd3/hiqm_fit.csv keeps and that schemes and solvers use, with root mean square error and R2 of both.
Between the bins nothing was published; one surface per variant, with L, K, B and D straight in phi, says how far the
bins lie on a common form.
Source: HIS (ICC 2025), equation 12, and github.com/iimxinyi/HIS at 6cffa76; see profiles/his_sd3.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from megopt.analysis.plots import paper_style, save_figure
from megopt.analysis.records import write_tables
from megopt.analysis.report import Report, rich_table, shown_path
from megopt.arrays import FloatArray
from megopt.reproductions.hiqm_figure import draw
from megopt.schemes.shared_steps_quality import (
    BINS,
    NUM_STEPS,
    VARIANTS,
    QualityCurves,
    fitted_curves,
    published_curves,
    published_points,
    sigmoid,
)

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

COEFFICIENTS = ("L", "K", "B", "D")
KEPT_SHARE = 0.95
"""Common steps are counted that keep this share of the score without any [1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HiqmResult:
    """Fresh fits beside the kept ones.

    Attributes:
        fits: one row per curve: coefficients, RMSE and R2, fresh and kept, and what the points say of the curve.
        surfaces: one row per variant: coefficients as straight lines in similarity, RMSE, R2 and worst error.
        gains: one row per bin: what weaker guidance and the negative prompt gain over plain, and where they lose.
        paths: files written.
    """

    fits: pd.DataFrame
    surfaces: pd.DataFrame
    gains: pd.DataFrame
    paths: tuple[Path, ...]

    def summary(self) -> dict[str, Any]:
        """Return the plain numbers by name, the tables row by row, and the files."""
        return {
            "num_curves": len(self.fits),
            "least_r2": float(self.fits["r2"].min()),
            "worst_r2_difference": float((self.fits["r2"] - self.fits["kept_r2"]).abs().max()),
            "worst_coefficient_error": float(self.fits["coefficient_error"].max()),
            "least_surface_r2": float(self.surfaces["r2"].min()),
            "curves": self.fits.to_dict("records"),
            "surfaces": self.surfaces.to_dict("records"),
            "gains": self.gains.to_dict("records"),
            "paths": [str(path) for path in self.paths],
        }


def run(output_dir: Path, seed: int = 0) -> Report:
    """Return the report of `reproduce` for `megopt reproduce figure=hiqm`; nothing in it is random."""
    result = reproduce(output_dir)
    fits = result.fits
    return Report(
        summary=result.summary(),
        headline=(
            f"{len(fits)} curves refitted, R2 {fits['r2'].min():.4f} to {fits['r2'].max():.4f}, "
            f"coefficients within {fits['coefficient_error'].max():.1e} of those kept"
        ),
        tables=[_fit_table(fits), _surface_table(result.surfaces), _gain_table(result.gains)],
        lines=[
            "published are the points, each a mean over prompt pairs without a spread; coefficients are fits to them.",
            *(f"wrote {shown_path(path)}" for path in result.paths),
        ],
    )


def reproduce(output_dir: Path) -> HiqmResult:
    """Fit, compare, and write three tables and the figure (PDF, PNG) to `output_dir`."""
    tables = {"fits": fit_table(), "surfaces": surface_table(), "gains": gain_table()}
    paths = write_tables(tables, output_dir)
    with paper_style():
        paths += save_figure(draw(tables["fits"])[0], output_dir / "hiqm", dpi=300)
    return HiqmResult(**tables, paths=tuple(paths))


def fit_table() -> pd.DataFrame:
    """Return one row per variant and bin: the fresh fit, the kept one, and the largest relative change.

    `steps_kept` is the largest number of common steps up to which the published score is at least `KEPT_SHARE` of that
    without any.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for variant in VARIANTS:
        fitted, kept, points = fitted_curves(variant), published_curves(variant), published_points(variant)
        error = np.max(np.abs(fitted.coefficients / kept.coefficients - 1.0), axis=1)
        is_kept = np.logical_and.accumulate(points >= KEPT_SHARE * points[:, :1], axis=1)
        for i, similarity in enumerate(BINS):
            found = {"coefficient_error": float(error[i]), "steps_kept": int(is_kept[i].sum()) - 1}
            curves = {**_curve(fitted, i), **{f"kept_{name}": value for name, value in _curve(kept, i).items()}}
            rows.append({"variant": variant, "similarity": similarity, **curves, **found})
    return pd.DataFrame(rows)


def _curve(curves: QualityCurves, number: int) -> dict[str, float]:
    """Return coefficients, RMSE and R2 of one bin by name."""
    named = dict(zip(COEFFICIENTS, map(float, curves.coefficients[number]), strict=True))
    return {**named, "rmse": float(curves.rmse[number]), "r2": float(curves.r2[number])}


def surface_table() -> pd.DataFrame:
    """Return one row per variant: L, K, B, D at similarity 0 and their slopes, fitted to all 168 points at once."""
    import pandas as pd
    from scipy.optimize import curve_fit

    rows, fit = [], cast("Any", curve_fit)  # its annotations know one-dimensional arguments alone
    at = np.stack([axis.ravel() for axis in np.meshgrid(np.arange(NUM_STEPS, dtype=np.float64), BINS)])
    for variant in VARIANTS:
        points = published_points(variant).ravel()
        start = np.polyfit(BINS, fitted_curves(variant).coefficients, 1)[::-1].T.ravel()
        found = fit(surface, at, points, p0=start)[0]
        residuals = points - surface(at, *found)
        r2 = 1.0 - float(np.sum(residuals**2) / np.sum((points - points.mean()) ** 2))
        names = [f"{name}{part}" for name in COEFFICIENTS for part in ("", "_slope")]
        errors = {"rmse": float(np.sqrt(np.mean(residuals**2))), "r2": r2, "worst": float(np.max(np.abs(residuals)))}
        rows.append({"variant": variant, **dict(zip(names, map(float, found), strict=True)), **errors})
    return pd.DataFrame(rows)


def surface(at: FloatArray, *lines: float) -> FloatArray:
    """Return Q(x; phi) with L, K, B and D straight in phi.

    Args:
        at: common steps x and similarities phi, shape (2, num_points).
        lines: value at phi = 0 and slope of each of L, K, B and D.
    """
    steps, phi = at
    return sigmoid(steps, *(lines[i] + lines[i + 1] * phi for i in range(0, 8, 2)))


def gain_table() -> pd.DataFrame:
    """Return one row per bin: largest gain of sim_npi over plain, where, the last step with a gain, and the end."""
    import pandas as pd

    gain = published_points("sim_npi") - published_points("plain")
    return pd.DataFrame(
        {
            "similarity": BINS,
            "largest_gain": gain.max(axis=1),
            "at_steps": gain.argmax(axis=1),
            "last_gain_at_steps": [int(np.flatnonzero(row > 0.0).max()) for row in gain],
            "at_27_steps": gain[:, -1],
        }
    )


def _fit_table(fits: pd.DataFrame) -> Table:
    rows = []
    for curve in fits.to_dict("records"):
        head, tail = [str(curve["variant"]), f"{curve['similarity']:g}"], [str(curve["steps_kept"])]
        rows.append([*head, "fresh", *_cells(curve, ""), f"{curve['coefficient_error']:.1e}", *tail])
        rows.append(["", "", "kept", *_cells(curve, "kept_"), "", ""])
    header = ["variant", "similarity", "fit", *COEFFICIENTS, "RMSE", "R2", "largest change", f"steps at {KEPT_SHARE:g}"]
    return rich_table("HIQM: CLIP score against common steps, fitted to the published points", header, rows)


def _cells(curve: dict[Any, Any], prefix: str) -> list[str]:
    values = [f"{curve[prefix + name]:.6f}" for name in COEFFICIENTS]
    return [*values, f"{curve[prefix + 'rmse']:.6f}", f"{curve[prefix + 'r2']:.6f}"]


def _surface_table(surfaces: pd.DataFrame) -> Table:
    rows = [
        [str(row["variant"])]
        + [f"{row[name]:.5f} {row[f'{name}_slope']:+.5f} phi" for name in COEFFICIENTS]
        + [f"{row['rmse']:.4f}", f"{row['r2']:.4f}", f"{row['worst']:.3f}"]
        for row in surfaces.to_dict("records")
    ]
    header = ["variant", *COEFFICIENTS, "RMSE", "R2", "worst error"]
    return rich_table("one surface for all similarities, coefficients straight in phi", header, rows)


def _gain_table(gains: pd.DataFrame) -> Table:
    rows = [
        [
            f"{row['similarity']:g}",
            f"{row['largest_gain']:.4f}",
            f"{row['at_steps']:.0f}",
            f"{row['last_gain_at_steps']:.0f}",
            f"{row['at_27_steps']:+.4f}",
        ]
        for row in gains.to_dict("records")
    ]
    header = ["similarity", "largest gain", "at steps", "last gain at steps", "at 27 steps"]
    return rich_table("gain over plain, CLIP score of the published points", header, rows)
