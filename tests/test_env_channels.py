"""The channels inside the environments: outage and mean rate of each against closed forms or quadrature.

Each value is a mean over independent devices, so the tolerance is 4.5 standard errors of that mean, from the spread of
the devices' own means: right whatever the memory of a device's fading is. A test whose error is too large to tell is
refused as well. The formulas are in `tests.channel_laws`; a channel of conf/channel without one fails here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import ncx2

from megopt.configuration import group_choices
from megopt.envs.request import RequestVectorEnv
from megopt.envs.settings import channel_of
from megopt.schemes.conventional import Conventional
from megopt.system.channel import Channel, GaussMarkov, LogDistance, Rayleigh, Static, Trace, UrbanMacro, UrbanMicro
from megopt.system.link import Link
from megopt.units import linear_from_db
from tests.channel_laws import Law, law_of
from tests.environments import PHONE, loaded, make_cell

NUM_DEVICES, NUM_STEPS, BANDWIDTH_HZ = 3000, 40, 1e6
MANY_DEVICES = 30_000
LINK = Link(bandwidth_hz=BANDWIDTH_HZ)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the environment showed; both of shape (num_steps, num_devices)."""

    snr: np.ndarray
    rate_bps: np.ndarray


def environment(channel: Channel, num_devices: int = NUM_DEVICES, **settings: Any) -> RequestVectorEnv:
    schemes = [Conventional(num_steps=(25,), image_codecs=(), prompt_bits=0.0)]
    shared = {"profile": loaded(PHONE), "schemes": schemes, "channel": channel, "link": LINK}
    return RequestVectorEnv(num_devices, **(shared | settings))


def watch(env: RequestVectorEnv, num_steps: int = NUM_STEPS) -> Seen:
    """Return what the requests of `num_steps` steps met; row 0 is model split."""
    env.reset(seed=1)
    snr, rate_bps = [], []
    for _ in range(num_steps):
        link = env.link_state()
        snr.append(link.snr)
        rate_bps.append(1.0 / link.downlink_s_per_bit)
        env.step(np.zeros(env.num_envs, dtype=int))
    return Seen(snr=np.array(snr), rate_bps=np.array(rate_bps))


def assert_mean(values: np.ndarray, expected: float, what: str) -> None:
    """Compare the mean of (num_steps, num_devices) with its closed form."""
    of_device = values.mean(axis=0)
    error = of_device.std() / np.sqrt(of_device.size)
    assert error < 0.05 * max(expected, 0.05), f"{what}: too few samples to tell"
    assert abs(of_device.mean() - expected) < 4.5 * error + 1e-12, f"{what}: {of_device.mean()} is not {expected}"


def assert_follows(seen: Seen, law: Law) -> None:
    """Compare outage at the law's own quantiles, and mean rate."""
    for outage in (0.1, 0.4, 0.8):
        assert_mean(seen.snr < law.threshold(outage), outage, f"outage {outage}")
    assert_mean(seen.rate_bps / BANDWIDTH_HZ, law.mean_rate(), "mean rate")


FADING = sorted(set(group_choices("channel")) - {"static", "trace"})
VARIANTS: dict[str, Channel] = {
    "rayleigh, doppler": Rayleigh(snr_db=10.0, doppler_hz=5.0, interval_s=0.02),
    "gauss-markov, line of sight": GaussMarkov(snr_db=10.0, k_factor_db=0.0, correlation=0.9),
    "log-distance, shadowed": LogDistance(shadowing_db=8.0),
    "log-distance, shadowed, line of sight": LogDistance(shadowing_db=6.0, k_factor_db=3.0),
    "log-distance, stratified": LogDistance(are_places_stratified=True, shadowing_db=6.0),
    "umi, stratified": UrbanMicro(are_places_stratified=True),
    "umi beyond the breakpoint": UrbanMicro(max_distance_m=500.0, carrier_hz=2e9, bandwidth_hz=5e6),
    "umi without shadowing": UrbanMicro(is_shadowed=False),
    "uma, high devices": UrbanMacro(device_height_m=10.0, tx_power_dbm=20.0),
}


@pytest.mark.parametrize("name", FADING)
def test_outage_and_mean_rate_of_every_fading_channel_of_conf(name: str) -> None:
    channel = channel_of(name, LINK)
    assert_follows(watch(environment(channel, MANY_DEVICES), 4), law_of(channel))


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_outage_and_mean_rate_in_other_settings(name: str) -> None:
    channel = VARIANTS[name]
    assert_follows(watch(environment(channel, MANY_DEVICES), 4), law_of(channel))


def test_memory_changes_neither_outage_nor_mean_rate() -> None:
    channel = GaussMarkov(snr_db=10.0, correlation=0.9)
    assert_follows(watch(environment(channel)), law_of(channel))


def test_every_channel_of_conf_has_a_law() -> None:
    for name in group_choices("channel"):
        law = law_of(channel_of(name, LINK))
        assert law.weight.sum() == pytest.approx(1.0, rel=1e-9)
        assert law.outage(1e30) == pytest.approx(1.0, rel=1e-9)


def test_the_quadrature_agrees_with_an_adaptive_one() -> None:
    """Rician rate over the density, and the mean over the distances of a shadowless cell."""
    k, mean = 8.0, 10.0
    scale = mean / (2.0 * (1.0 + k))
    rate, _ = quad(lambda x: np.log2(1.0 + scale * x) * ncx2.pdf(x, 2, 2.0 * k), 0.0, 200.0, limit=200)
    assert Law(weight=np.ones(1), mean_snr=np.array([mean]), k=np.array([k])).mean_rate() == pytest.approx(
        rate, rel=1e-9
    )

    def at(distance_m: float) -> float:
        still = LogDistance(min_distance_m=distance_m, max_distance_m=distance_m + 1e-9)
        return law_of(still).outage(1.0)

    assert law_of(LogDistance()).outage(1.0) == pytest.approx(quad(at, 200.0, 300.0)[0] / 100.0, rel=1e-6)


@pytest.mark.parametrize("name", ["rayleigh", "umi"])
def test_the_devices_of_cells_meet_the_same_law(name: str) -> None:
    channel = channel_of(name, LINK)
    env = make_cell(2500, channel=channel, link=LINK, num_devices=8)
    env.reset(seed=3)
    link = env.link_state()
    assert_follows(Seen(snr=link.snr[np.newaxis], rate_bps=1.0 / link.downlink_s_per_bit[np.newaxis]), law_of(channel))


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
    for channel in (Static(snr_db=7.0), Trace(snr_db=[0.0, 10.0, 20.0], device_stride=1), channel_of("trace", LINK)):
        law = law_of(channel)
        seen = watch(environment(channel, 30 * len(law.weight)), 10)
        np.testing.assert_allclose(
            np.sort(seen.snr, axis=1), np.repeat(np.sort(law.mean_snr), 30)[np.newaxis].repeat(10, 0)
        )
        assert seen.rate_bps.mean() == pytest.approx(BANDWIDTH_HZ * law.mean_rate(), rel=1e-12)
        for threshold in (0.5, 5.0, 10.0**0.7 * 1.001, 11.0, 1e3):
            assert np.mean(seen.snr < threshold) == pytest.approx(law.outage(threshold), abs=1e-12)


def test_the_reported_late_rate_is_the_outage_of_the_rate() -> None:
    """A model split is late where its rate is below bits / (deadline - compute): 1 - exp(-(2^(R/B) - 1) / mean)."""
    env = environment(Rayleigh(snr_db=10.0), episode_length=NUM_STEPS, deadline_s=4.3)
    work = env.params.table.work
    rate_bps = work.downlink_bits[0] / (4.3 - work.edge_s[0] - work.device_s[0])
    env.reset(seed=2)
    for _ in range(NUM_STEPS):
        *_, info = env.step(np.zeros(NUM_DEVICES, dtype=int))
    expected = law_of(env.params.channel).outage(2.0 ** (rate_bps / BANDWIDTH_HZ) - 1.0)
    assert 0.05 < expected < 0.5
    assert_mean(info["final"]["late_rate"][np.newaxis], expected, "late rate")


def test_dead_links_of_the_cqi_table_are_as_frequent_as_fades_below_cqi_1() -> None:
    env = environment(Rayleigh(snr_db=3.0), link=Link(bandwidth_hz=BANDWIDTH_HZ, adaptation="cqi"), bad_actions="clip")
    lowest_db = next(
        db for db in np.arange(-15.0, 0.0, 1e-3) if env.params.link.rate_bps(1.0, linear_from_db(db)) > 0.0
    )
    seen = watch(env)
    expected = law_of(env.params.channel).outage(float(linear_from_db(lowest_db)))
    assert 0.02 < expected < 0.2
    assert_mean(seen.rate_bps == 0.0, expected, "dead links")
    mask = env.action_masks()
    np.testing.assert_array_equal(mask[:, 0], np.isfinite(env.link_state().downlink_s_per_bit))
