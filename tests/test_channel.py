"""Path loss, fading and channels: known numbers, limiting cases, invariants, failure messages."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from scipy.special import exp1
from scipy.stats import kstest

import megopt.conf
from megopt.errors import ConfigError
from megopt.system.channel import (
    Channel,
    GaussMarkov,
    LogDistance,
    Rayleigh,
    Rician,
    Static,
    Trace,
    UrbanMacro,
    UrbanMicro,
)
from megopt.system.channel_places import uniform_distances_m
from megopt.system.fading import jakes_correlation, power_gain, scattered, specular_share
from megopt.system.link import shannon_rate_bps
from megopt.system.path_loss import (
    URBAN_MACRO,
    URBAN_MICRO,
    UrbanScenario,
    breakpoint_distance_m,
    friis_path_loss_db,
    log_distance_path_loss_db,
    los_path_loss_db,
    los_probability,
    nlos_path_loss_db,
    noise_power_dbm,
)

CHANNELS = Path(next(iter(megopt.conf.__path__))) / "channel"
MICRO_HEIGHTS = {"base_height_m": 10.0, "device_height_m": 1.5}
MACRO_HEIGHTS = {"base_height_m": 25.0, "device_height_m": 1.5}
SCENARIOS = [(URBAN_MICRO, MICRO_HEIGHTS), (URBAN_MACRO, MACRO_HEIGHTS)]

distances_m = st.floats(10.0, 5000.0)
carriers_hz = st.floats(0.5e9, 100e9)


@pytest.fixture(params=sorted(path.stem for path in CHANNELS.glob("*.yaml")))
def channel(request: pytest.FixtureRequest) -> Channel:
    """Every channel of the configuration tree."""
    return instantiate(_config(CHANNELS / f"{request.param}.yaml"))


def _config(path: Path) -> DictConfig:
    """Return a channel's configuration beside a link of 20 MHz, from which some take their bandwidth."""
    config = OmegaConf.create({"link": {"bandwidth_hz": 20e6}, "channel": OmegaConf.load(path)})
    return config.channel


def test_log_distance_known_number() -> None:
    # 35.3 + 37.6 x 2 at 100 m, MEG-CVPO
    assert log_distance_path_loss_db(100.0) == pytest.approx(110.5)


def test_friis_known_number() -> None:
    # 92.45 dB + 20 log10(d / km) + 20 log10(f / GHz), the usual engineering form
    assert friis_path_loss_db(1000.0, 1e9) == pytest.approx(92.45, abs=5e-3)


def test_noise_power_known_number() -> None:
    # -174 + 73.01 + 9
    assert noise_power_dbm(20e6, 9.0) == pytest.approx(-91.99, abs=5e-3)


def test_urban_known_numbers() -> None:
    # By hand from TR 38.901 table 7.4.1-1 at 3.5 GHz: d3 = 100.3606 m in UMi, 500.5519 m in UMa
    assert los_path_loss_db(URBAN_MICRO, 100.0, 3.5e9, **MICRO_HEIGHTS) == pytest.approx(85.3142, abs=1e-4)
    assert nlos_path_loss_db(URBAN_MICRO, 100.0, 3.5e9, **MICRO_HEIGHTS) == pytest.approx(104.6438, abs=1e-4)
    assert los_path_loss_db(URBAN_MACRO, 500.0, 3.5e9, **MACRO_HEIGHTS) == pytest.approx(98.2692, abs=1e-4)
    assert nlos_path_loss_db(URBAN_MACRO, 500.0, 3.5e9, **MACRO_HEIGHTS) == pytest.approx(129.9158, abs=1e-4)


def test_los_probability_known_numbers() -> None:
    # TR 38.901 table 7.4.2-1 at one decay length: 18/D + exp(-1) (1 - 18/D)
    assert los_probability(URBAN_MICRO, 36.0) == pytest.approx(0.5 + 0.5 / np.e)
    assert los_probability(URBAN_MACRO, 63.0) == pytest.approx(2 / 7 + 5 / 7 / np.e)
    assert los_probability(URBAN_MICRO, [10.0, 18.0]) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(("scenario", "heights"), SCENARIOS)
def test_los_loss_is_continuous_at_the_breakpoint(scenario: UrbanScenario, heights: dict[str, float]) -> None:
    breakpoint_m = float(breakpoint_distance_m(2e9, **heights))
    around_m = breakpoint_m * np.array([1 - 1e-9, 1 + 1e-9])
    near_db, far_db = los_path_loss_db(scenario, around_m, 2e9, **heights)
    # There d3^2 = d_BP^2 + (h_BS - h_UT)^2, and 40 - 2 k is the slope before the breakpoint
    assert far_db == pytest.approx(near_db, abs=1e-6)


@pytest.mark.parametrize(("scenario", "heights"), SCENARIOS)
def test_path_loss_vector_equals_scalar(scenario: UrbanScenario, heights: dict[str, float]) -> None:
    grid_m = np.array([[10.0, 99.0, 300.0], [500.0, 1000.0, 5000.0]])
    for loss_db in (los_path_loss_db, nlos_path_loss_db):
        single = [loss_db(scenario, float(d), 3.5e9, **heights) for d in grid_m.flat]
        np.testing.assert_array_equal(loss_db(scenario, grid_m, 3.5e9, **heights).ravel(), single)


@pytest.mark.parametrize(("scenario", "heights"), SCENARIOS)
@given(first_m=distances_m, second_m=distances_m, carrier_hz=carriers_hz)
def test_loss_grows_with_distance(
    scenario: UrbanScenario, heights: dict[str, float], first_m: float, second_m: float, carrier_hz: float
) -> None:
    grid_m = np.array(sorted((first_m, second_m)))
    for loss_db in (los_path_loss_db, nlos_path_loss_db):
        near_db, far_db = loss_db(scenario, grid_m, carrier_hz, **heights)
        assert far_db >= near_db - 1e-9
    near, far = los_probability(scenario, grid_m)
    assert 0.0 <= far <= near <= 1.0


@pytest.mark.parametrize(("scenario", "heights"), SCENARIOS)
@given(distance_m=distances_m, carrier_hz=carriers_hz)
def test_nlos_loss_is_at_least_los_loss(
    scenario: UrbanScenario, heights: dict[str, float], distance_m: float, carrier_hz: float
) -> None:
    los_db = los_path_loss_db(scenario, distance_m, carrier_hz, **heights)
    assert nlos_path_loss_db(scenario, distance_m, carrier_hz, **heights) >= los_db


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_distance_path_loss_db([2.0, 0.5]), "distance_m is 0.5 at index 1, 1 such of 2; expected 1 to inf"),
        (lambda: friis_path_loss_db(10.0, 10.0), "carrier_hz is 10; expected 1e\\+06 to inf"),
        (lambda: noise_power_dbm("1e6"), "bandwidth_hz is '1e6'; expected a number from 1"),
        (lambda: los_path_loss_db(URBAN_MICRO, 9.0, 3.5e9, **MICRO_HEIGHTS), "UMi path loss: distance_2d_m is 9"),
        (
            lambda: nlos_path_loss_db(URBAN_MACRO, 99.0, 3.5e9, base_height_m=25.0, device_height_m=15.0),
            "UMa path loss: device_height_m is 15; expected 1.5 to 13; change device_height_m",
        ),
        (lambda: los_probability(URBAN_MACRO, np.nan), "UMa LOS probability: distance_2d_m is nan"),
        (lambda: jakes_correlation(-1.0, 1.0), "Jakes correlation: doppler_hz is -1"),
    ],
)
def test_path_loss_refuses(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


def test_jakes_known_numbers() -> None:
    # J0(0) = 1, J0(1) = 0.765198 and the first zero 2.404826 (Abramowitz and Stegun, table 9.1)
    arguments = np.array([0.0, 1.0, 2.404826]) / (2 * np.pi)
    assert jakes_correlation(arguments, 1.0) == pytest.approx([1.0, 0.765198, 0.0], abs=1e-6)


def test_specular_share_limits() -> None:
    assert specular_share([-np.inf, 0.0, np.inf]).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("k_factor_db", [-np.inf, 0.0, 9.0, np.inf])
def test_mean_power_is_one(k_factor_db: float) -> None:
    amplitude = scattered(np.random.default_rng(1), (200_000,))
    assert power_gain(specular_share(k_factor_db), amplitude).mean() == pytest.approx(1.0, abs=0.01)


def test_rician_power_variance() -> None:
    # var |h|^2 = (1 + 2 K) / (1 + K)^2, the amount of fading (Simon and Alouini)
    k = 10**0.3
    gain = Rician(snr_db=0.0, k_factor_db=3.0).sample_snr(np.random.default_rng(2), 1, 200_000)
    assert gain.var() == pytest.approx((1 + 2 * k) / (1 + k) ** 2, rel=0.02)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_mean_rayleigh_rate(snr_db: float) -> None:
    # E log2(1 + S g) = exp(1/S) E1(1/S) / ln 2 for exponential g, Alouini and Goldsmith, IEEE Trans. Veh. Technol. 1999
    inverse = 10 ** (-snr_db / 10)
    snr = Rayleigh(snr_db=snr_db).sample_snr(np.random.default_rng(3), 400_000)
    expected = np.exp(inverse) * exp1(inverse) / np.log(2)
    assert shannon_rate_bps(1.0, snr).mean() == pytest.approx(expected, rel=0.005)


def test_rayleigh_outage() -> None:
    # P(snr < t) = 1 - exp(-t / S)
    snr = Rayleigh(snr_db=10.0).sample_snr(np.random.default_rng(4), 1, 400_000)
    for threshold in (0.5, 2.0, 10.0):
        assert np.mean(snr < threshold) == pytest.approx(1 - np.exp(-threshold / 10), abs=0.003)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95, -0.4])
def test_gauss_markov_autocorrelation(correlation: float) -> None:
    # Amplitudes have correlation rho^k, so Rayleigh powers have rho^(2 k)
    snr = GaussMarkov(snr_db=0.0, correlation=correlation).sample_snr(np.random.default_rng(5), 4, 100_000)
    for lag in (1, 3):
        assert np.corrcoef(snr[0], snr[lag])[0, 1] == pytest.approx(correlation ** (2 * lag), abs=0.015)
    assert snr[3].mean() == pytest.approx(1.0, abs=0.015)


def test_doppler_sets_the_correlation() -> None:
    by_doppler = GaussMarkov(doppler_hz=5.0, interval_s=0.01)
    by_number = GaussMarkov(correlation=float(jakes_correlation(5.0, 0.01)))
    paths = [
        c.sample_snr(np.random.default_rng(6), 20, 3)
        for c in (by_doppler, by_number, Rayleigh(doppler_hz=5.0, interval_s=0.01))
    ]
    np.testing.assert_array_equal(paths[0], paths[1])
    np.testing.assert_array_equal(paths[0], paths[2])


def test_no_motion_freezes_fading() -> None:
    snr = Rician(doppler_hz=0.0).sample_snr(np.random.default_rng(7), 5, 3)
    np.testing.assert_array_equal(snr, np.broadcast_to(snr[0], snr.shape))


def test_sample_equals_stepping(channel: Channel) -> None:
    stepped_rng, sampled_rng = np.random.default_rng(8), np.random.default_rng(8)
    state = channel.initial(stepped_rng, 3)
    rows = [channel.snr(state)]
    for _ in range(14):
        state = channel.advance(stepped_rng, state)
        rows.append(channel.snr(state))
    np.testing.assert_allclose(channel.sample_snr(sampled_rng, 15, 3), rows, rtol=1e-13)
    assert state.slot.tolist() == [14] * 3


def test_same_seed_same_trace(channel: Channel) -> None:
    paths = [channel.sample_snr(np.random.default_rng(seed), 6, 2) for seed in (9, 9, 10)]
    np.testing.assert_array_equal(paths[0], paths[1])
    assert paths[0].shape == (6, 2)
    assert np.all(paths[0] >= 0)
    assert np.all(np.isfinite(paths[0]))
    assert isinstance(channel, Static | Trace) or np.any(paths[0] != paths[2])


def test_reset_of_one_device_leaves_the_others(channel: Channel) -> None:
    rng = np.random.default_rng(11)
    state, fresh = channel.advance(rng, channel.initial(rng, 3)), channel.initial(rng, 3)
    merged = state.where(np.array([False, True, False]), fresh)
    expected = [channel.snr(state)[0], channel.snr(fresh)[1], channel.snr(state)[2]]
    np.testing.assert_array_equal(channel.snr(merged), expected)
    assert merged.slot.tolist() == [1, 0, 1]


@pytest.mark.parametrize("path", sorted(CHANNELS.glob("*.yaml")), ids=lambda path: path.stem)
def test_channel_yaml_says_what_each_key_means(path: Path) -> None:
    head, target, *keys = path.read_text(encoding="utf-8").splitlines()
    assert head.startswith("# ")
    assert target.startswith("_target_: megopt.system.channel.")
    assert all("  # " in key for key in keys)


@pytest.mark.parametrize("path", sorted(CHANNELS.glob("*.yaml")), ids=lambda path: path.stem)
def test_channel_yaml_shows_every_field(path: Path) -> None:
    keys = set(OmegaConf.load(path)) - {"_target_"}
    assert keys == {f.name for f in fields(instantiate(_config(path))) if f.init}


def test_refuses_no_device(channel: Channel) -> None:
    with pytest.raises(ConfigError, match="num_devices is 0; expected 1"):
        channel.initial(np.random.default_rng(0), 0)
    with pytest.raises(ConfigError, match="num_requests is 0; expected 1"):
        channel.sample_snr(np.random.default_rng(0), 0)


def test_static_is_static() -> None:
    np.testing.assert_allclose(Static(snr_db=10.0).sample_snr(np.random.default_rng(0), 3, 2), 10.0)


def test_log_distance_channel_known_number() -> None:
    # 30 dBm - (35.3 + 37.6 x 2) dB + 94 dBm = 13.5 dB at 100 m, without fading
    still = LogDistance(min_distance_m=100.0, max_distance_m=100.0, k_factor_db=np.inf)
    np.testing.assert_allclose(10 * np.log10(still.sample_snr(np.random.default_rng(0), 2, 2)), 13.5)


def test_log_distance_stays_in_range_and_shadows() -> None:
    rng = np.random.default_rng(12)
    mean_snr, _ = LogDistance().place(rng, 10_000)
    loss_db = 30 + 94 - 10 * np.log10(mean_snr)
    assert log_distance_path_loss_db(200.0) <= loss_db.min() < loss_db.max() <= log_distance_path_loss_db(300.0)
    shadowed, _ = LogDistance(min_distance_m=200.0, max_distance_m=200.0, shadowing_db=8.0).place(rng, 20_000)
    assert np.std(10 * np.log10(shadowed)) == pytest.approx(8.0, rel=0.03)


@given(num_devices=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
def test_stratified_places_share_the_distances_out_evenly(num_devices: int, seed: int) -> None:
    distance_m = uniform_distances_m(np.random.default_rng(seed), 200.0, 300.0, num_devices, is_stratified=True)
    part = np.floor((distance_m - 200.0) / 100.0 * num_devices * (1.0 - 1e-12))
    assert sorted(part) == list(range(num_devices))


def test_each_stratified_device_is_as_likely_anywhere() -> None:
    rng = np.random.default_rng(15)
    drawn = np.array([uniform_distances_m(rng, 200.0, 300.0, 5, is_stratified=True) for _ in range(4000)])
    for of_device in drawn.T:
        assert kstest(of_device, "uniform", args=(200.0, 100.0)).pvalue > 1e-3


@pytest.mark.parametrize("kind", [LogDistance, UrbanMicro, UrbanMacro])
def test_means_over_stratified_places_have_lost_the_luck_of_the_distances(kind: type[LogDistance | UrbanMicro]) -> None:
    def deviation(*, are_places_stratified: bool) -> float:
        channel = kind(are_places_stratified=are_places_stratified, **still)
        means = [np.log(channel.place(np.random.default_rng(seed), 64)[0]).mean() for seed in range(200)]
        return float(np.std(means))

    still = {} if kind is LogDistance else {"is_shadowed": False}
    assert deviation(are_places_stratified=True) < 0.5 * deviation(are_places_stratified=False)


@pytest.mark.parametrize(("kind", "scenario"), [(UrbanMicro, URBAN_MICRO), (UrbanMacro, URBAN_MACRO)])
def test_urban_line_of_sight_share_and_shadowing(kind: type[UrbanMicro], scenario: UrbanScenario) -> None:
    place = {"min_distance_m": 100.0, "max_distance_m": 100.0}
    mean_snr, share = kind(**place).place(np.random.default_rng(13), 40_000)
    assert np.mean(share > 0) == pytest.approx(float(los_probability(scenario, 100.0)), abs=0.01)
    assert np.std(10 * np.log10(mean_snr[share > 0])) == pytest.approx(scenario.los_shadowing_db, rel=0.03)
    assert np.std(10 * np.log10(mean_snr[share == 0])) == pytest.approx(scenario.nlos_shadowing_db, rel=0.03)
    unshadowed, _ = kind(**place, is_shadowed=False).place(np.random.default_rng(13), 1000)
    assert np.unique(unshadowed.round(6)).size == 2


def test_urban_micro_known_number() -> None:
    # 30 dBm - 85.3142 dB + 91.9897 dBm = 36.6755 dB in line of sight at 100 m; the higher of the two levels
    cell = UrbanMicro(min_distance_m=100.0, max_distance_m=100.0, is_shadowed=False)
    mean_snr, _ = cell.place(np.random.default_rng(14), 200)
    assert 10 * np.log10(mean_snr.max()) == pytest.approx(36.6755, abs=1e-3)


@settings(max_examples=30)
@given(near_m=st.floats(200.0, 300.0), far_m=st.floats(300.0, 400.0))
def test_mean_snr_falls_with_distance(near_m: float, far_m: float) -> None:
    levels = [
        LogDistance(min_distance_m=d, max_distance_m=d).place(np.random.default_rng(0), 1)[0][0]
        for d in (near_m, far_m)
    ]
    assert levels[0] >= levels[1]


def test_trace_replays_and_wraps(tmp_path: Path) -> None:
    path = tmp_path / "walk.csv"
    path.write_text("snr_db\n0.0\n10.0\n-inf\n", encoding="utf-8")
    for trace in (
        Trace(snr_db=path, start_row=1, device_stride=1),
        Trace(snr_db=[0, 10, -np.inf], start_row=1, device_stride=1),
    ):
        snr = trace.sample_snr(np.random.default_rng(0), 4, 2)
        assert snr.T.tolist() == [[10.0, 0.0, 1.0, 10.0], [0.0, 1.0, 10.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("snr\n1.0\n", "columns are snr; expected snr_db among them; rename one or add it"),
        ("", "columns are none; expected snr_db"),
        ("snr_db\n", "no rows; expected at least one SNR"),
        ("snr_db\n1.0\nnan\n", "snr_db is nan at index 1, 1 such of 2; expected -inf to 200"),
        ("snr_db\n1.0\nten\n", "snr_db is nan at index 1"),
    ],
)
def test_trace_refuses_a_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "walk.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        Trace(snr_db=str(path))
    assert str(caught.value).startswith(f"channel Trace: {path}: ")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Trace(snr_db="nowhere.csv"), "channel Trace: nowhere.csv: no such file; expected a csv"),
        (lambda: Trace(snr_db=[1.0], start_row=-1), "channel Trace: start_row is -1; expected 0"),
        (
            lambda: Trace(snr_db=[1.0], device_stride=0.5),
            "channel Trace: device_stride is 0.5; expected a whole number",
        ),
        (lambda: Static(snr_db=np.nan), "channel Static: snr_db is nan; expected -200 to 200; change snr_db"),
        (lambda: Rayleigh(interval_s=-1.0), "channel Rayleigh: interval_s is -1; expected 0"),
        (lambda: Rayleigh(doppler_hz=-1.0), "channel Rayleigh: doppler_hz is -1; expected 0"),
        (lambda: Rician(k_factor_db=np.nan), "channel Rician: k_factor_db is nan; expected -inf to inf"),
        (lambda: GaussMarkov(), "correlation is None and doppler_hz is None; expected one number and one null"),
        (lambda: GaussMarkov(correlation=0.5, doppler_hz=1.0), "expected one number and one null"),
        (lambda: GaussMarkov(correlation=1.5), "channel GaussMarkov: correlation is 1.5; expected -1 to 1"),
        (
            lambda: LogDistance(min_distance_m=301.0),
            "channel LogDistance: max_distance_m is 300; expected 301 to 1e\\+06",
        ),
        (lambda: LogDistance(shadowing_db=-1.0), "shadowing_db is -1; expected 0 to 100"),
        (lambda: UrbanMicro(min_distance_m=5.0), "channel UrbanMicro: min_distance_m is 5; expected 10 to 5000"),
        (lambda: UrbanMacro(device_height_m=20.0), "channel UrbanMacro: device_height_m is 20; expected 1.5 to 13"),
        (lambda: UrbanMicro(carrier_hz="3.5e9"), "channel UrbanMicro: carrier_hz is '3.5e9'; expected a number"),
    ],
)
def test_channel_refuses(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
