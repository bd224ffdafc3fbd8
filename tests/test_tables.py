"""Profiles: what is on disk is right, and what is wrong is named with file, lines and remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megopt.errors import OutOfTableError, ProfileError
from megopt.tables.interpolation import interpolate
from megopt.tables.profile import PROFILES_DIR, join_kinds, load_profile, profile_names
from megopt.tables.schema import COMPUTE, ENERGY_SOURCES, KINDS, PAYLOAD, QUALITY

A100 = "a100__snapdragon8gen3__sdxl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A private copy of the A100 profile."""
    copy = tmp_path / "mine"
    shutil.copytree(PROFILES_DIR / A100, copy)
    return copy


def spoil(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().splitlines()
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_and_every_row_says_where_it_comes_from(name: str) -> None:
    profile = load_profile(name)
    for table in (profile.compute, profile.quality, profile.payload):
        assert set(table["kind"]) <= set(KINDS)
    assert set(profile.compute["source"]) <= set(profile.provenance.sources)
    assert profile.provenance.caveats


@pytest.mark.parametrize("name", [n for n in profile_names() if "snapdragon" in n])
def test_phone_joules_are_never_called_measured(name: str) -> None:
    profile = load_profile(name)
    phone = profile.compute[profile.compute["side"] == "device"]
    assert set(phone["energy_source"]) == {"power_model"}
    assert not set(phone["kind"]) & {"measured", "published"}
    watts = profile.parameter("device_power_w").value
    np.testing.assert_allclose(phone["energy_j"], watts * phone["latency_s"], rtol=1e-5)


def test_a100_steps_are_the_line_through_the_published_runs() -> None:
    profile = load_profile(A100)
    runs = profile.compute[profile.compute["component"] == "pipeline"]
    for batch_size, group in runs.groupby("batch_size"):
        for column in ("latency_s", "energy_j"):
            slope, intercept = np.polyfit(group["num_steps"], group[column], 1)
            step = profile.cost("edge", "denoise_step", batch_size=int(batch_size))
            overhead = profile.cost("edge", "pipeline_overhead", batch_size=int(batch_size))
            assert getattr(step, column) == pytest.approx(slope, rel=1e-5)
            assert getattr(overhead, column) == pytest.approx(intercept, rel=1e-4)


def test_published_a100_run_of_25_steps() -> None:
    """ML.ENERGY v2: SDXL, A100, batch 1, 25 steps: 2.8583 s, 1104.11 J."""
    rows = load_profile(A100).compute.query("component == 'pipeline' and batch_size == 1 and num_steps == 25")
    assert rows["latency_s"].item() == 2.8583
    assert rows["energy_j"].item() == 1104.11


def test_h100_composed_rows_add_up_to_the_published_run() -> None:
    profile = load_profile("h100__snapdragon8gen3__sdxl")
    for _, run in profile.compute[profile.compute["component"] == "pipeline"].iterrows():
        step = profile.cost("edge", "denoise_step", batch_size=int(run["batch_size"]))
        overhead = profile.cost("edge", "pipeline_overhead", batch_size=int(run["batch_size"]))
        assert overhead.latency_s + 25 * step.latency_s == pytest.approx(run["latency_s"], rel=1e-4)
        assert overhead.energy_j + 25 * step.energy_j == pytest.approx(run["energy_j"], rel=1e-4)


def test_phone_rows_follow_from_their_stated_factors() -> None:
    profile = load_profile(A100)
    factor = profile.parameter("end_to_end_factor").value
    assert factor == pytest.approx(4.0978 / (2.275e-3 + 40 * 79.077e-3 + 203.237e-3), abs=1e-4)
    step = profile.cost("device", "denoise_step").latency_s
    assert step == pytest.approx(2 * 79.077e-3 * profile.parameter("area_factor").value * factor, rel=1e-5)


def test_batch_size_is_interpolated_inside_and_refused_outside() -> None:
    profile = load_profile(A100)
    two, four = (profile.cost("edge", "denoise_step", batch_size=b).latency_s for b in (2, 4))
    assert profile.cost("edge", "denoise_step", batch_size=3).latency_s == pytest.approx((two + four) / 2)
    with pytest.raises(OutOfTableError, match=r"batch_size = 16 lies outside the measured range; expected 1 to 8"):
        profile.cost("edge", "denoise_step", batch_size=16)


def test_unmeasured_energy_is_nan_and_never_zero() -> None:
    assert np.isnan(load_profile("megsplitting_sdxl").cost("edge", "whole_generation").energy_j)


def test_quality_at_measured_points_and_between() -> None:
    profile = load_profile("megsplitting_sdxl")
    ssim = profile.quality_at("region_split", "ssim", {"region_ratio": np.array([0.4, 0.45, 0.9])})
    np.testing.assert_allclose(ssim, [0.6366, (0.6366 + 0.6925) / 2, 0.9476])
    with pytest.raises(
        OutOfTableError, match=r"region_ratio = 0.95 lies outside the measured range; expected 0.4 to 0.9"
    ):
        profile.quality_at("region_split", "ssim", {"region_ratio": np.array([0.95])})
    assert np.isnan(profile.quality_at("step_split", "ssim", {"split_step": np.array([3.0])})).all()


def test_step_count_outside_the_table() -> None:
    with pytest.raises(OutOfTableError, match="num_steps = 60 lies outside the table; expected 25 to 50"):
        load_profile(A100).check_num_steps(60)


def test_device_power_is_a_stated_parameter() -> None:
    five, ten = load_profile(A100), load_profile(A100, device_power_w=10.0)
    assert ten.cost("device", "denoise_step").energy_j == pytest.approx(
        2 * five.cost("device", "denoise_step").energy_j
    )
    assert ten.cost("edge", "denoise_step") == five.cost("edge", "denoise_step")
    with pytest.raises(ProfileError, match="parameter device_power_w is missing"):
        load_profile("megsplitting_sdxl", device_power_w=10.0)
    with pytest.raises(ProfileError, match=r"device_power_w = -1.*expected watts above 0"):
        load_profile(A100, device_power_w=-1.0)


def test_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ProfileError, match=f"'nope' is neither a folder nor one of .*{A100}"):
        load_profile("nope")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",1104.11,", ",-1104.11,", r"mine/compute.csv: energy_j < 0; expected >= 0 in J; .* \(line 2\)"),
        (",1104.11,", ",nan,", r"mine/compute.csv: energy_j is NaN, infinite or no number; .* \(line 2\)"),
        (",2.8583,", ",fast,", r"mine/compute.csv: latency_s is NaN, infinite or no number"),
        (",2.8583,", ",,", r"mine/compute.csv: latency_s is empty; fill it in \(line 2\)"),
        (",published,", ",guessed,", r"kind is none of measured, published, modelled, composed \(line 2\)"),
        (",1,25,", ",1.5,25,", r"batch_size is no whole number \(line 2\)"),
        (",mlenergy_v2", ",hearsay", r"source hearsay is not in provenance.json"),
        (",nvml,", ",not_measured,", r"energy_j must be empty exactly where energy_source is not_measured"),
    ],
)
def test_a_spoilt_cell_is_named_with_file_line_and_remedy(folder: Path, old: str, new: str, message: str) -> None:
    spoil(folder / "compute.csv", 2, old, new)
    with pytest.raises(ProfileError, match=message):
        load_profile(folder)


def test_all_faults_are_named_at_once_and_comments_do_not_shift_the_lines(folder: Path) -> None:
    path = folder / "compute.csv"
    path.write_text("# a comment\n" + path.read_text())
    spoil(path, 3, ",2.8583,", ",-1,")
    spoil(path, 5, ",nvml,", ",thermometer,")
    with pytest.raises(ProfileError, match=r"latency_s < 0; .*\(line 3\); energy_source is none of .*\(line 5\)"):
        load_profile(folder)


def test_a_missing_and_a_misspelt_column_are_both_named(folder: Path) -> None:
    path = folder / "compute.csv"
    path.write_text(path.read_text().replace("energy_j", "energy", 1))
    with pytest.raises(ProfileError, match=r"compute.csv: column energy_j is missing; .*; column energy is unknown"):
        load_profile(folder)


def test_ragged_lines_missing_files_and_bad_json(folder: Path) -> None:
    (folder / "quality.csv").write_text("scheme,metric\na,b,c,d\na\n")
    with pytest.raises(ProfileError, match=r"quality\.csv"):
        load_profile(folder)
    (folder / "quality.csv").unlink()
    with pytest.raises(ProfileError, match=r"mine/quality.csv: file not found"):
        load_profile(folder)
    (folder / "provenance.json").write_text("{")
    with pytest.raises(ProfileError, match=r"mine/provenance.json: no JSON"):
        load_profile(folder)
    (folder / "provenance.json").unlink()
    with pytest.raises(ProfileError, match=r"mine/provenance.json: file not found"):
        load_profile(folder)


def test_provenance_lacks_or_misspells_a_key(folder: Path) -> None:
    path = folder / "provenance.json"
    data = json.loads(path.read_text())
    data["titel"] = data.pop("title")
    path.write_text(json.dumps(data))
    with pytest.raises(ProfileError, match=r"mine/provenance.json: .*titel.*expected the keys title, edge"):
        load_profile(folder)


def test_a_point_given_twice_is_refused(folder: Path) -> None:
    path = folder / "compute.csv"
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(ProfileError, match="1 rows repeat the side, model, component"):
        load_profile(folder)


@given(st.floats(0, 1), st.floats(0, 1))
def test_interpolation_is_exact_for_bilinear_functions(x: float, y: float) -> None:
    grid_x, grid_y = (axis.ravel() for axis in np.meshgrid([0.0, 0.3, 1.0], [0.0, 1.0]))
    values = 2 + 3 * grid_x - grid_y + grid_x * grid_y
    query = {"x": np.array([x]), "y": np.array([y])}
    found = interpolate({"x": grid_x, "y": grid_y}, values, query, "here")
    assert found[0] == pytest.approx(2 + 3 * x - y + x * y, abs=1e-12)


def test_interpolation_refuses_a_grid_with_holes() -> None:
    axes = {"x": np.array([0.0, 1.0, 0.0]), "y": np.array([0.0, 0.0, 1.0])}
    with pytest.raises(OutOfTableError, match="here: 1 points of the grid x x y are missing"):
        interpolate(axes, np.arange(3.0), {"x": np.array([0.5]), "y": np.array([0.5])}, "here")


@pytest.mark.parametrize("schema", [COMPUTE, QUALITY, PAYLOAD])
def test_schema_columns_are_distinct_and_have_meanings(schema: tuple) -> None:
    names = [column.name for column in schema]
    assert len(set(names)) == len(names)
    assert all(column.meaning and column.low <= column.high for column in schema)
    assert set(ENERGY_SOURCES) >= {"nvml", "power_model", "not_measured"}


def test_kinds_join_without_repeats() -> None:
    assert join_kinds("published", "", "composed+published") == "composed+published"


@pytest.mark.slow
def test_image_sizes_are_measured_on_real_encodes() -> None:
    """The committed table equals a fresh measurement: the encoders of the pinned Pillow are deterministic."""
    pytest.importorskip("skimage")
    from megopt.metering.image_codecs import bundled_photographs, measure_image_codecs

    fresh = measure_image_codecs([image for _, image in bundled_photographs()], "codecs")
    kept = pd.read_csv(PROFILES_DIR / "image_codecs" / "payload.csv")
    np.testing.assert_allclose(fresh["bits_per_pixel"], kept["bits_per_pixel"], rtol=0.02)
    assert fresh["bits_per_pixel"].iloc[0] == 24.0
    for codec in ("jpeg", "webp"):
        lossy = fresh[fresh["codec"] == codec]
        assert lossy["bits_per_pixel"].is_monotonic_increasing
        assert lossy["ssim"].is_monotonic_increasing
