"""Measured points: exact lookups, knobs that were not told apart, analog rows apart from digital ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megopt.errors import OutOfTableError
from megopt.tables.profile import Profile, load_profile
from megopt.tables.quality_points import POINT_KNOBS, UNALTERED, QualityPoints, quality_points
from megopt.tables.schema import METRICS, PSNR_CEILING_DB, QUALITY


def rows_of(*rows: dict[str, Any]) -> pd.DataFrame:
    """Return quality rows; knobs that are not named are empty."""
    blank = {column.name: np.nan for column in QUALITY} | {"scheme": "step_split", "kind": "measured", "source": "x"}
    return pd.DataFrame([blank | {"metric": "ssim", "value": 0.5} | row for row in rows])


def points_of(*rows: dict[str, Any]) -> QualityPoints:
    return quality_points(rows_of(*rows), "measured", "here")


def values_of(points: QualityPoints) -> list[float]:
    return np.ravel(points.values).tolist()


def profile_of(*rows: dict[str, Any]) -> Profile:
    return replace(load_profile("megsplitting_sdxl"), quality=rows_of(*rows))


@given(st.data())
def test_every_point_gives_its_value_back_in_any_order(data: st.DataObject) -> None:
    grid = np.stack(np.meshgrid([4, 8], [1, 2, 3], [0.0, 0.3], [16, 4], [1, 2], indexing="ij"), axis=-1).reshape(-1, 5)
    chosen = data.draw(st.lists(st.integers(0, len(grid) - 1), min_size=1, max_size=20, unique=True))
    given_rows = [dict(zip(POINT_KNOBS, grid[i], strict=True)) | {"value": float(i)} for i in chosen]
    points = points_of(*given_rows)
    assert len(points.settings) == len(chosen)
    found = points.at(grid)[:, 0]
    np.testing.assert_array_equal(np.flatnonzero(~np.isnan(found)), np.sort(chosen))
    np.testing.assert_array_equal(found[chosen], chosen)


def test_rounding_does_not_hide_a_point_and_neighbours_are_not_it() -> None:
    points = points_of({"merge_ratio": 0.3})
    at = [UNALTERED.copy() for _ in range(2)]
    at[0][2], at[1][2] = 0.1 + 0.2, 0.3001
    np.testing.assert_array_equal(points.at(np.array(at))[:, 0], [0.5, np.nan])


def test_empty_knobs_are_neutral_and_empty_steps_stand_for_any() -> None:
    points = points_of({"num_steps": 4, "value": 0.1}, {"num_steps": 8, "codec_bits": 8, "value": 0.2})
    assert points.held == {"num_steps", "codec_bits"}
    queries = np.array(
        [[4, 1, 0.0, 16, 1], [4, 3, 0.0, 16, 1], [8, 2, 0.0, 8, 1], [8, 2, 0.0, 16, 1], [4, 1, 0, 16, 2]]
    )
    np.testing.assert_array_equal(points.at(queries)[:, 0], [0.1, 0.1, 0.2, np.nan, np.nan])


def test_a_metric_that_a_point_lacks_is_nan() -> None:
    points = points_of({"num_steps": 4}, {"num_steps": 8}, {"num_steps": 8, "metric": "clip", "value": 30.0})
    assert points.metrics == ("ssim", "clip")
    np.testing.assert_array_equal(points.values, [[0.5, np.nan], [0.5, 30.0]])


def test_no_rows_are_one_point_without_metrics() -> None:
    points = load_profile("a100__snapdragon8gen3__sdxl").quality_points("step_split")
    np.testing.assert_array_equal(points.settings, [[np.nan, np.nan, 0.0, 16.0, 1.0]])
    assert points.at(np.zeros((3, 5))).shape == (3, 0)


def test_one_point_given_twice_is_refused() -> None:
    with pytest.raises(OutOfTableError, match="here: 1 rows repeat metric and knobs of another"):
        points_of({"num_steps": 4}, {"num_steps": 4, "merge_ratio": 0.0})


def test_digital_lookups_never_see_analog_rows() -> None:
    analog = [{"num_steps": 4, "snr_db": snr_db, "value": value} for snr_db, value in ((0.0, 0.91), (10.0, 0.93))]
    profile = profile_of({"num_steps": 4, "value": 0.2}, {"num_steps": 8, "value": 0.4}, *analog)
    assert values_of(profile.quality_points("step_split")) == [0.2, 0.4]
    steps = {"num_steps": np.array([6.0])}
    assert profile.quality_at("step_split", "ssim", steps) == pytest.approx([0.3])
    found = profile.quality_at("step_split", "ssim", {"num_steps": np.array([4.0]), "snr_db": np.array([5.0])})
    assert found == pytest.approx([0.92])


def test_upscaled_points_may_come_from_rows_of_another_name() -> None:
    profile = profile_of(
        {"sr_scale": 1, "value": 0.1},
        {"sr_scale": 2, "value": 0.2},
        {"sr_scale": 2, "value": 0.3, "scheme": "other"},
        {"sr_scale": 1, "value": 0.4, "scheme": "other"},
    )
    assert values_of(profile.quality_points("step_split")) == [0.1, 0.2]
    assert values_of(profile.quality_points("step_split", upscaled="other")) == [0.1, 0.3]


def test_identical_8_bit_images_count_as_59_db() -> None:
    """A rounding error spread evenly over one step of 1/255 has the mean square (1/255)^2 / 12."""
    rounding = np.linspace(-0.5, 0.5, 100_001) / 255.0
    assert pytest.approx(-10.0 * np.log10(np.mean(rounding**2)), abs=1e-3) == PSNR_CEILING_DB
    assert pytest.approx(58.92, abs=0.005) == PSNR_CEILING_DB


@pytest.mark.parametrize(
    ("metric", "sense", "identity"), [("ms_ssim", 1, 1.0), ("sharpness", 1, np.nan), ("frechet", -1, np.nan)]
)
def test_senses_and_identities_of_metrics(metric: str, sense: int, identity: float) -> None:
    assert METRICS[metric].sense == sense
    np.testing.assert_equal(METRICS[metric].identity, identity)
