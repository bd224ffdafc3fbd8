"""The channels inside megopt/Request-v0: outage and mean rate against closed forms.

Each value is a mean over independent devices, so the tolerance is 4.5 standard errors of that mean, from the spread of
the devices' own means: right whatever the memory of a device's fading is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import exp1
from scipy.stats import ncx2

from megopt.envs.request import RequestVectorEnv
from megopt.schemes.conventional import Conventional
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
from megopt.system.link import Link
from megopt.units import db_from_linear, linear_from_db
from tests.environments import PHONE, loaded

NUM_DEVICES, NUM_STEPS, BANDWIDTH_HZ = 3000, 40, 1e6

Closed = Callable[[float], float]
"""An SNR threshold or a mean SNR [1] to a probability or to bit/s/Hz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the environment showed; both of shape (NUM_STEPS, NUM_DEVICES)."""

    snr: np.ndarray
    rate_bps: np.ndarray


def environment(channel: Channel, **settings: object) -> RequestVectorEnv:
    schemes = [Conventional(num_steps=(25,), image_codecs=(), prompt_bits=0.0)]
    shared = {"profile": loaded(PHONE), "schemes": schemes, "channel": channel, "link": Link(bandwidth_hz=BANDWIDTH_HZ)}
    return RequestVectorEnv(NUM_DEVICES, **(shared | settings))


def watch(env: RequestVectorEnv) -> Seen:
    """Return what the requests of `NUM_STEPS` steps met; row 0 is model split."""
    env.reset(seed=1)
    snr, rate_bps = [], []
    for _ in range(NUM_STEPS):
        link = env.link_state()
        snr.append(link.snr)
        rate_bps.append(1.0 / link.downlink_s_per_bit)
        env.step(np.zeros(NUM_DEVICES, dtype=int))
    return Seen(snr=np.array(snr), rate_bps=np.array(rate_bps))


def assert_mean(values: np.ndarray, expected: float, what: str) -> None:
    """Compare the mean of (num_steps, num_devices) with its closed form."""
    of_device = values.mean(axis=0)
    error = of_device.std() / np.sqrt(of_device.size)
    assert error < 0.05 * max(expected, 0.05), f"{what}: too few samples to tell"
    assert abs(of_device.mean() - expected) < 4.5 * error + 1e-12, f"{what}: {of_device.mean()} is not {expected}"


def rayleigh_outage(threshold: float, mean: float) -> float:
    return float(1.0 - np.exp(-threshold / mean))


def rayleigh_rate(mean: float) -> float:
    """Return E[log2(1 + snr)] = exp(1/s) E1(1/s) / ln 2."""
    return float(np.exp(1.0 / mean) * exp1(1.0 / mean) / np.log(2.0))


def rician_outage(threshold: float, mean: float, k: float) -> float:
    """Return 1 - Q1(sqrt(2 K), sqrt(2 (1 + K) threshold / mean)), Marcum's Q being the tail of a non-central chi^2."""
    return float(ncx2.cdf(2.0 * (1.0 + k) * threshold / mean, 2, 2.0 * k))


def rician_rate(mean: float, k: float) -> float:
    """Return E[log2(1 + snr)] over the density of the non-central chi^2."""
    scale = mean / (2.0 * (1.0 + k))
    rate, _ = quad(lambda x: np.log2(1.0 + scale * x) * ncx2.pdf(x, 2, 2.0 * k), 0.0, 2.0 * k + 60.0 + 20.0 * k**0.5)
    return float(rate)


def over_distance(of_mean: Closed) -> float:
    """Return the mean of a closed form over the places of `LogDistance()`: uniform from 200 to 300 m."""

    def at(distance_m: float) -> float:
        return of_mean(float(linear_from_db(30.0 - 35.3 - 37.6 * np.log10(distance_m) + 94.0)))

    return quad(at, 200.0, 300.0)[0] / 100.0


TEN, NINE_DB = 10.0, float(linear_from_db(9.0))
CASES: dict[str, tuple[Channel, Closed, float]] = {
    "rayleigh": (Rayleigh(snr_db=10.0), lambda th: rayleigh_outage(th, TEN), rayleigh_rate(TEN)),
    "rayleigh, doppler": (
        Rayleigh(snr_db=10.0, doppler_hz=5.0, interval_s=0.02),
        lambda th: rayleigh_outage(th, TEN),
        rayleigh_rate(TEN),
    ),
    "rician": (
        Rician(snr_db=10.0, k_factor_db=9.0),
        lambda th: rician_outage(th, TEN, NINE_DB),
        rician_rate(TEN, NINE_DB),
    ),
    "gauss-markov": (
        GaussMarkov(snr_db=10.0, correlation=0.9),
        lambda th: rayleigh_outage(th, TEN),
        rayleigh_rate(TEN),
    ),
    "gauss-markov, line of sight": (
        GaussMarkov(snr_db=10.0, k_factor_db=0.0, correlation=0.9),
        lambda th: rician_outage(th, TEN, 1.0),
        rician_rate(TEN, 1.0),
    ),
    "log-distance": (
        LogDistance(),
        lambda th: over_distance(lambda mean: rayleigh_outage(th, mean)),
        over_distance(rayleigh_rate),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_outage_and_mean_rate_of_fading_channels(name: str) -> None:
    channel, outage, rate = CASES[name]
    seen = watch(environment(channel))
    for threshold_db in (3.0, 7.0, 10.0):
        threshold = float(linear_from_db(threshold_db))
        assert_mean(seen.snr < threshold, outage(threshold), f"{name}: outage at {threshold_db} dB")
    assert_mean(seen.rate_bps / BANDWIDTH_HZ, rate, f"{name}: mean rate")


@pytest.mark.parametrize(
    "channel",
    [LogDistance(shadowing_db=6.0, k_factor_db=3.0), UrbanMicro(), UrbanMacro()],
    ids=lambda c: type(c).__name__,
)
def test_fading_at_the_places_of_drawn_devices(channel: Channel) -> None:
    """Given its mean SNR and its specular share, each device fades as the closed forms say."""
    env = environment(channel)
    env.reset(seed=1)
    places = env._begun().state.channel
    seen = watch(env)
    k = places.specular_share / np.maximum(1.0 - places.specular_share, 1e-300)
    for share_of_mean in (0.3, 1.0):
        below = seen.snr < share_of_mean * places.mean_snr
        expected = ncx2.cdf(2.0 * (1.0 + k) * share_of_mean, 2, 2.0 * k)
        assert_mean(below - expected, 0.0, f"outage at {share_of_mean} of the mean")
    assert_mean(seen.snr / places.mean_snr, 1.0, "mean power")


def test_channels_without_fading_are_what_they_say() -> None:
    static = watch(environment(Static(snr_db=7.0)))
    np.testing.assert_allclose(db_from_linear(static.snr), 7.0, rtol=1e-12)
    np.testing.assert_allclose(static.rate_bps, BANDWIDTH_HZ * np.log2(1.0 + 10**0.7), rtol=1e-12)
    replayed = watch(environment(Trace(snr_db=[0.0, 10.0, 20.0], device_stride=1)))
    row = np.add.outer(np.arange(NUM_STEPS), np.arange(NUM_DEVICES)) % 3
    np.testing.assert_allclose(db_from_linear(replayed.snr), 10.0 * row, atol=1e-9)


def test_the_reported_late_rate_is_the_outage_of_the_rate() -> None:
    """A model split is late where its rate is below bits / (deadline - compute): 1 - exp(-(2^(R/B) - 1) / mean)."""
    env = environment(Rayleigh(snr_db=10.0), episode_length=NUM_STEPS, deadline_s=4.3)
    work = env.params.table.work
    rate_bps = work.downlink_bits[0] / (4.3 - work.edge_s[0] - work.device_s[0])
    env.reset(seed=2)
    for _ in range(NUM_STEPS):
        *_, info = env.step(np.zeros(NUM_DEVICES, dtype=int))
    expected = rayleigh_outage(2.0 ** (rate_bps / BANDWIDTH_HZ) - 1.0, TEN)
    assert 0.05 < expected < 0.5
    assert_mean(info["final"]["late_rate"][np.newaxis], expected, "late rate")


def test_dead_links_of_the_cqi_table_are_as_frequent_as_fades_below_cqi_1() -> None:
    env = environment(Rayleigh(snr_db=3.0), link=Link(bandwidth_hz=BANDWIDTH_HZ, adaptation="cqi"), bad_actions="clip")
    lowest_db = next(
        db for db in np.arange(-15.0, 0.0, 1e-3) if env.params.link.rate_bps(1.0, linear_from_db(db)) > 0.0
    )
    seen = watch(env)
    mean = float(linear_from_db(3.0))
    expected = rayleigh_outage(float(linear_from_db(lowest_db)), mean)
    assert 0.02 < expected < 0.2
    assert_mean(seen.rate_bps == 0.0, expected, "dead links")
    mask = env.action_masks()
    np.testing.assert_array_equal(mask[:, 0], np.isfinite(env.link_state().downlink_s_per_bit))
