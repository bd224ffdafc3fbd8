"""Schemes: rows add up to the tables they come from; limiting splits equal the unsplit runs."""

from __future__ import annotations

import numpy as np
import pytest

from megopt.diffusion.codec import CHECKSUM, HEADER
from megopt.errors import ConfigError, OutOfTableError, SchemeError
from megopt.schemes.action_table import concat
from megopt.schemes.conventional import Conventional
from megopt.schemes.region_split import RegionSplit
from megopt.schemes.scheme import compile_all
from megopt.schemes.step_split import StepSplit
from megopt.tables.profile import Profile, load_profile, profile_names

A100, SDXL = "a100__snapdragon8gen3__sdxl", "megsplitting_sdxl"


@pytest.fixture(scope="module")
def a100() -> Profile:
    return load_profile(A100)


@pytest.fixture(scope="module")
def sdxl() -> Profile:
    return load_profile(SDXL)


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_carries_some_scheme_and_rows_state_their_kind(name: str) -> None:
    schemes = [Conventional(num_steps=(25,)), StepSplit(num_steps=(25,)), RegionSplit()]
    table, notes = compile_all(schemes, load_profile(name))
    assert {"conventional"} < set(table.scheme)
    assert len(set(table.scheme)) + len(notes) == len(schemes)
    assert all(kind for kind in table.kind)
    assert len(
        set(zip(table.scheme, table.label, map(tuple, np.nan_to_num(table.settings, nan=-1)), strict=True))
    ) == len(table)


def test_step_split_adds_up(a100: Profile) -> None:
    table = StepSplit(num_steps=(25,)).compile(a100)
    assert len(table) == 24
    k = table.settings[:, 1]
    edge, device = a100.cost("edge", "denoise_step"), a100.cost("device", "denoise_step")
    np.testing.assert_allclose(np.diff(table.work.edge_s), edge.latency_s)
    np.testing.assert_allclose(np.diff(table.work.device_s), -device.latency_s)
    np.testing.assert_allclose(
        np.diff(table.work.edge_energy_j + table.work.device_energy_j), edge.energy_j - device.energy_j
    )
    overhead = a100.cost("edge", "pipeline_overhead")
    np.testing.assert_allclose(table.work.edge_s, overhead.latency_s + k * edge.latency_s)
    assert set(table.work.downlink_bits) == {8.0 * (131_072 + HEADER.size + CHECKSUM.size)}


def test_step_split_meets_its_limits_in_conventional(a100: Profile) -> None:
    """k = N would be model split (up to the device's prompt encoding), k = 0 device only."""
    split, whole = StepSplit(num_steps=(30,)).compile(a100), Conventional(num_steps=(30,)).compile(a100)
    step, text = a100.cost("device", "denoise_step"), a100.cost("device", "text_encoder")
    model_split = int(np.flatnonzero(np.char.startswith(whole.label, "model split"))[0])
    last = len(split) - 1
    assert split.work.device_s[last] - step.latency_s == pytest.approx(
        whole.work.device_s[model_split] + text.latency_s
    )
    device_only = int(np.flatnonzero(np.char.startswith(whole.label, "device only"))[0])
    assert split.work.device_s[0] + step.latency_s == pytest.approx(whole.work.device_s[device_only])


def test_conventional_payloads_are_those_of_real_encodes(a100: Profile) -> None:
    table = Conventional(num_steps=(25,), image_codecs=("raw", "png", "jpeg_75")).compile(a100)
    bits = dict(zip(table.label, table.work.downlink_bits, strict=True))
    assert bits["edge only, raw, 25 steps"] == 25_165_824
    measured = a100.payload.query("codec == 'jpeg' and codec_quality == 75")["bits_per_pixel"].item()
    assert bits["edge only, jpeg 75, 25 steps"] == pytest.approx(measured * 1024**2)
    assert bits["edge only, raw, 25 steps"] > bits["edge only, png, 25 steps"] > bits["edge only, jpeg 75, 25 steps"]
    assert bits["device only, 25 steps"] == 0


def test_lossless_payloads_keep_quality_and_lossy_ones_do_not(sdxl: Profile) -> None:
    table = Conventional(num_steps=(25,)).compile(sdxl)
    ssim = dict(zip(table.label, table.metric("ssim"), strict=True))
    assert ssim["edge only, raw"] == ssim["edge only, png"] == ssim["model split"] == 1.0
    assert 0.9 < ssim["edge only, jpeg 90"] < 1.0
    assert np.isnan(table.metric("fid")).all()


@pytest.mark.parametrize(
    ("ratio", "latency_s"), [(0.4, 2.0812), (0.5, 2.4722), (0.6, 2.8631), (0.7, 3.2540), (0.8, 3.6449), (0.9, 4.0358)]
)
def test_region_split_rows_hit_the_published_latencies(sdxl: Profile, ratio: float, latency_s: float) -> None:
    """At full power, on 1 MHz at SNR 10, without a prompt: the published table of MEGSplitting."""
    table = RegionSplit(num_region_ratios=6, num_device_powers=2, prompt_bits=0.0).compile(sdxl)
    row = int(np.flatnonzero(np.isclose(table.settings[:, 0], ratio) & (table.settings[:, 1] == 1.0))[0])
    rate_bps = 1e6 * np.log2(11)
    total = table.work.edge_s[row] + table.work.device_s[row] + table.work.downlink_bits[row] / rate_bps
    assert total == pytest.approx(latency_s, abs=2e-4)


def test_region_split_trades_power_for_time(sdxl: Profile) -> None:
    table = RegionSplit(num_region_ratios=2, num_device_powers=30).compile(sdxl)
    first = table.take(np.flatnonzero(table.settings[:, 0] == 0.4))
    assert np.all(np.diff(first.work.device_s) < 0)
    assert np.all(np.diff(first.work.device_energy_j) > 0)
    assert first.work.device_energy_j[-1] == pytest.approx(300.0 * first.work.device_s[-1])


@pytest.mark.parametrize(
    ("scheme", "profile", "error", "message"),
    [
        (StepSplit(num_steps=(25,)), SDXL, SchemeError, "megsplitting_sdxl has no row for edge denoise_step, dev"),
        (RegionSplit(), A100, SchemeError, "has no row for edge whole_generation, device coarse_pass"),
        (StepSplit(num_steps=(60,)), A100, OutOfTableError, "num_steps = 60 lies outside the table; expected 25 to 50"),
        (Conventional(num_steps=(4,)), A100, OutOfTableError, "num_steps = 4 lies outside the table"),
        (StepSplit(num_steps=(25,), split_steps=(25,)), A100, SchemeError, "split_step 25 with num_steps 25; exp"),
        (StepSplit(num_steps=(25,), merge_ratios=(0.5,)), A100, SchemeError, "holds no quality over merge_ratio"),
        (StepSplit(num_steps=(25,), codec_bits=(4,)), A100, SchemeError, "would look free"),
        (Conventional(num_steps=(25,), image_codecs=("gif",)), A100, SchemeError, "'gif' is not in payload.csv"),
    ],
)  # fmt: skip
def test_what_a_profile_cannot_carry_is_named(
    scheme: StepSplit | Conventional | RegionSplit, profile: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scheme.compile(load_profile(profile))


def test_bad_grids_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"device_power_ratio_min is 0; expected 1e-09 to 1"):
        RegionSplit(device_power_ratio_min=0.0)
    with pytest.raises(ConfigError, match="cost_factor is 0"):
        RegionSplit(cost_factor=0.0)
    with pytest.raises(ConfigError, match=r"num_steps is 25; expected a list of distinct whole numbers, such as \[1\]"):
        StepSplit(num_steps=25)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"num_steps is 25\.5; expected a whole number from 1"):
        Conventional(num_steps=(25.5,))  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", [Conventional(num_steps=(25,), codec_bits=(4,)), RegionSplit(codec_bits=4)])
def test_fewer_bits_are_refused_where_their_quality_is_unknown(
    scheme: Conventional | RegionSplit, sdxl: Profile
) -> None:
    with pytest.raises(SchemeError, match="holds no quality over codec_bits, which would look free"):
        scheme.compile(sdxl)


def test_encoding_and_decoding_take_their_measured_time(a100: Profile) -> None:
    table = Conventional(num_steps=(25,), image_codecs=("raw", "png")).compile(a100)
    png = a100.payload.query("codec == 'png'").iloc[0]
    assert table.work.edge_s[1] - table.work.edge_s[0] == pytest.approx(1024**2 * png["encode_s_per_px"])
    assert table.work.device_s[1] == pytest.approx(1024**2 * png["decode_s_per_px"])


def test_nothing_left_to_compile_is_an_error(sdxl: Profile) -> None:
    with pytest.raises(SchemeError, match="edge denoise_step"):
        compile_all([StepSplit(num_steps=(25,))], sdxl)
    with pytest.raises(SchemeError, match="no scheme was named"):
        compile_all([], sdxl)


def test_tables_join_by_knob_and_metric_names(sdxl: Profile, a100: Profile) -> None:
    first, second = Conventional(num_steps=(25,)).compile(sdxl), RegionSplit(num_region_ratios=2).compile(sdxl)
    joint = concat([first, second])
    assert len(joint) == len(first) + len(second)
    names = [knob.name for knob in joint.knobs]
    assert names == ["num_steps", "merge_ratio", "codec_bits", "sr_scale", "region_ratio", "device_power_ratio"]
    assert np.isnan(joint.settings[: len(first), 4]).all()
    np.testing.assert_array_equal(joint.of_scheme("region_split").metric("ssim"), second.metric("ssim"))
    with pytest.raises(SchemeError, match="expected exactly one profile"):
        concat([first, Conventional(num_steps=(25,)).compile(a100)])
