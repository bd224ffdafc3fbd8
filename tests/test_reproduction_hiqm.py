"""HIQM: fresh fits beside the kept ones, what the published points say, and the figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megopt.reproductions import hiqm, hiqm_figure
from megopt.schemes.shared_steps_quality import BINS, published_points


def test_twelve_fits_agree_with_the_kept_ones() -> None:
    fits = hiqm.fit_table()
    assert len(fits) == 12
    assert fits["coefficient_error"].max() < 1e-4
    np.testing.assert_allclose(fits["r2"], fits["kept_r2"], atol=1e-6)
    np.testing.assert_allclose(fits["rmse"], fits["kept_rmse"], atol=1e-6)
    assert fits["r2"].min() > 0.996
    assert fits["steps_kept"].tolist() == [7, 7, 7, 7, 7, 7, 4, 4, 4, 4, 5, 6]


def test_one_surface_holds_all_similarities() -> None:
    table = hiqm.surface_table().set_index("variant")
    lines = [f"{name}{part}" for name in hiqm.COEFFICIENTS for part in ("", "_slope")]
    known = [0.34953, -0.33694, 0.27731, -0.06322, 17.0318, -1.7903, -0.02279, 0.32823]
    np.testing.assert_allclose(table.loc["sim_npi", lines].to_numpy(dtype=float), known, rtol=1e-3)
    assert table["r2"].min() > 0.996
    assert table["worst"].max() < 0.019


def test_a_surface_is_a_curve_at_each_similarity() -> None:
    lines = (0.3, -0.2, 0.25, 0.0, 16.0, -1.0, 0.0, 0.3)
    at_half = hiqm.surface(np.stack([np.arange(28.0), np.full(28, 0.5)]), *lines)
    np.testing.assert_allclose(at_half, 0.2 / (1.0 + np.exp(0.25 * (np.arange(28.0) - 15.5))) + 0.15)


def test_weaker_guidance_gains_first_and_loses_at_the_end() -> None:
    gains = hiqm.gain_table()
    assert gains["largest_gain"].iloc[[0, -1]].to_list() == pytest.approx([0.035, 0.021], abs=1e-3)
    assert gains["at_steps"].iloc[[0, -1]].to_list() == [14, 12]
    assert gains["last_gain_at_steps"].between(20, 23).all()
    assert (gains["at_27_steps"] < 0).all()


@pytest.mark.slow
def test_the_figure_holds_every_curve_and_every_point(tmp_path: Path) -> None:
    result = hiqm.reproduce(tmp_path)
    assert {path.name for path in result.paths} == {"fits.csv", "surfaces.csv", "gains.csv", "hiqm.pdf", "hiqm.png"}
    assert all(path.stat().st_size > 0 for path in result.paths)
    panels = hiqm_figure.draw(result.fits)
    for variant, panel, residuals in zip(("sim_npi", "plain"), panels[:2], panels[2:], strict=True):
        drawn = [line.get_ydata() for line in panel.lines if len(line.get_xdata()) == 28]
        np.testing.assert_array_equal(np.asarray(drawn), published_points(variant))
        assert len(panel.lines) == 2 * len(BINS)
        assert len(residuals.lines) == len(BINS) + 1
    assert result.summary()["num_curves"] == 12
