"""Rates, link states and their ratio: known numbers, limiting cases, invariants, failure messages."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

import megopt.conf
from megopt.errors import ConfigError
from megopt.system.link import CQI_TABLE, Link, LinkState, cqi_rate_bps, shannon_rate_bps, uplink_ratio
from megopt.units import linear_from_db

LINKS = Path(next(iter(megopt.conf.__path__))) / "link"
BITS_PER_SYMBOL = {"QPSK": 2, "16QAM": 4, "64QAM": 6}

snrs = st.floats(0.0, 1e6)


def test_shannon_known_number() -> None:
    # MEGSplitting: 1 MHz at an SNR of 10 gives 3.459432 Mbit/s
    assert shannon_rate_bps(1e6, 10.0) == pytest.approx(3_459_432, abs=1)


def test_shannon_limits() -> None:
    # Dead at SNR 0; B snr / ln 2 in the low-power limit
    assert shannon_rate_bps(1e6, 0.0) == 0.0
    assert shannon_rate_bps(1e6, 1e-12) == pytest.approx(1e-6 / np.log(2), rel=1e-9)


def test_cqi_table_is_that_of_the_standard() -> None:
    # TS 38.214 table 5.2.2.1-2: efficiency = bits per symbol x code rate, to four digits
    assert [row.number for row in CQI_TABLE] == list(range(1, 16))
    for row in CQI_TABLE:
        exact = BITS_PER_SYMBOL[row.modulation] * row.code_rate_x1024 / 1024
        assert row.efficiency_bps_per_hz == pytest.approx(exact, abs=5.1e-5)


def test_cqi_known_numbers() -> None:
    # CQI 9 (2.4063 bit/s/Hz) holds from 10.3 dB to below 11.7 dB; below CQI 1 nothing, above CQI 15 no more
    snr = linear_from_db([-6.71, -6.7, 10.29, 10.3, 11.69, 60.0])
    expected = np.array([0.0, 0.1523, 1.9141, 2.4063, 2.4063, 5.5547]) * 0.9e6
    np.testing.assert_allclose(cqi_rate_bps(1e6, snr), expected)


@pytest.mark.parametrize("rate_bps", [shannon_rate_bps, cqi_rate_bps])
@given(first=snrs, second=snrs)
def test_rate_grows_with_snr(rate_bps: object, first: float, second: float) -> None:
    low, high = rate_bps(1e6, np.sort([first, second]))
    assert 0.0 <= low <= high


@given(snr=snrs)
def test_cqi_rate_stays_below_capacity(snr: float) -> None:
    assert cqi_rate_bps(1e6, snr, bler=0.0) <= shannon_rate_bps(1e6, snr)


@pytest.mark.parametrize("adaptation", ["shannon", "cqi"])
def test_state_vector_equals_scalar(adaptation: str) -> None:
    link = Link(adaptation=adaptation, uplink_bandwidth_hz=5e5, uplink_snr_offset_db=-6.0)
    snr = np.array([0.0, 0.3, 10.0, 1e4])
    state = link.state(snr)
    for row, value in enumerate(snr):
        single = link.state(np.array([value]))
        assert single.downlink_s_per_bit[0] == state.downlink_s_per_bit[row]
        assert single.uplink_s_per_bit[0] == state.uplink_s_per_bit[row]


def test_state_known_numbers() -> None:
    link = Link(bandwidth_hz=2e6, uplink_bandwidth_hz=1e6, uplink_snr_offset_db=-10.0, round_trip_s=0.02)
    state = link.state(np.array([10.0]))
    # log2(11) = 3.459432 on 2 MHz down, log2(2) = 1 on 1 MHz up
    assert state.downlink_s_per_bit[0] == pytest.approx(1 / (2e6 * 3.459432), rel=1e-6)
    assert state.uplink_s_per_bit[0] == pytest.approx(1e-6)
    assert state.round_trip_s == 0.02


def test_dead_link_takes_forever() -> None:
    for adaptation in ("shannon", "cqi"):
        state = Link(adaptation=adaptation).state(np.zeros(2))
        assert np.all(np.isposinf(state.downlink_s_per_bit))
        assert np.all(np.isposinf(state.uplink_s_per_bit))


def test_take_chooses_requests() -> None:
    state = Link(round_trip_s=0.1).state(np.array([1.0, 3.0, 7.0]))
    chosen = state.take(np.array([2, 0]))
    assert chosen.snr.tolist() == [7.0, 1.0]
    np.testing.assert_array_equal(chosen.downlink_s_per_bit, state.downlink_s_per_bit[[2, 0]])
    assert chosen.round_trip_s == 0.1


def _state(downlink: list[float], uplink: list[float]) -> LinkState:
    return LinkState(
        snr=np.ones(len(downlink)),
        downlink_s_per_bit=np.array(downlink),
        uplink_s_per_bit=np.array(uplink),
        round_trip_s=0.0,
        device_rx_power_w=0.0,
        device_tx_power_w=0.0,
        edge_tx_power_w=0.0,
    )


def test_uplink_ratio_of_bandwidths() -> None:
    snr = np.random.default_rng(0).exponential(10.0, 1000)
    assert uplink_ratio(Link().state(snr)) == 1.0
    assert uplink_ratio(Link(bandwidth_hz=3e6, uplink_bandwidth_hz=1e6).state(snr)) == pytest.approx(3.0, rel=1e-12)
    assert uplink_ratio(Link(uplink_snr_offset_db=-3.0).state(snr)) is None


@pytest.mark.parametrize(
    ("downlink", "uplink", "expected"),
    [
        ([1.0, np.inf], [2.0, np.inf], 2.0),
        ([1.0, np.inf], [2.0, 5.0], None),
        ([1.0, 1.0], [2.0, np.inf], None),
        ([np.inf], [np.inf], None),
        ([], [], None),
        ([1.0, 1.0], [2.0, 2.0 + 1e-9], None),
    ],
)
def test_uplink_ratio_in_outage(downlink: list[float], uplink: list[float], expected: float | None) -> None:
    assert uplink_ratio(_state(downlink, uplink)) == expected


@pytest.mark.parametrize("name", sorted(path.stem for path in LINKS.glob("*.yaml")))
def test_link_yaml(name: str) -> None:
    path = LINKS / f"{name}.yaml"
    link = instantiate(OmegaConf.load(path))
    assert isinstance(link, Link)
    assert np.all(np.isfinite(link.state(np.array([10.0])).downlink_s_per_bit))
    head, _, *keys = path.read_text(encoding="utf-8").splitlines()
    assert head.startswith("# ")
    assert all("  # " in key for key in keys)
    assert set(OmegaConf.load(path)) - {"_target_"} == {f.name for f in fields(Link)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Link(adaptation="lte"), "link: adaptation is 'lte'; expected shannon or cqi; change adaptation"),
        (lambda: Link(bandwidth_hz=0.0), "link: bandwidth_hz is 0; expected 1 to 1e\\+12; change bandwidth_hz"),
        (lambda: Link(bandwidth_hz="1e6"), "link: bandwidth_hz is '1e6'; expected a number"),
        (lambda: Link(uplink_bandwidth_hz=-1.0), "link: uplink_bandwidth_hz is -1"),
        (lambda: Link(bler=1.1), "link: bler is 1.1; expected 0 to 1"),
        (lambda: Link(round_trip_s=np.nan), "link: round_trip_s is nan"),
        (lambda: Link(device_rx_power_w=-1.0), "link: device_rx_power_w is -1"),
        (lambda: Link().state(np.array([1.0, np.nan])), "Shannon rate: snr is nan at index 1"),
        (lambda: cqi_rate_bps(1e6, -1.0), "CQI rate: snr is -1; expected 0 to inf"),
    ],
)
def test_link_refuses(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_payload_over_several_blocks_is_sent_at_their_mean_rate() -> None:
    snr = np.array([[1.0, 3.0], [0.0, 15.0]])
    state = Link(bandwidth_hz=1e6).state(snr)
    np.testing.assert_allclose(1.0 / state.downlink_s_per_bit, [1.5e6, 2.0e6])
    np.testing.assert_allclose(state.snr, [2.0, 7.5])
    np.testing.assert_array_equal(state.uplink_s_per_bit, state.downlink_s_per_bit)
    weak = Link(bandwidth_hz=1e6, uplink_snr_offset_db=-10.0).state(snr)
    assert np.all(weak.uplink_s_per_bit > weak.downlink_s_per_bit)
