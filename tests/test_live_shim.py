"""The seeded channel on a socket: exact replay, airtime, delay, loss, outage, and the throughput of a real socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megopt.errors import ConfigError
from megopt.live.packets import PACKET_BYTES, Impairments, Stream
from megopt.live.shim import ChannelShim
from megopt.live.trace import RateTrace
from megopt.system.channel import GaussMarkov, Rayleigh, Static, Trace
from megopt.system.link import Link

LINK = Link(bandwidth_hz=2e6, uplink_bandwidth_hz=5e5)
rates = st.lists(st.sampled_from([0.0, 1.0, 10.0, 250.0]), min_size=1, max_size=6).filter(any)

pytestmark = pytest.mark.slow


def trace_of(rates_bps: list[float], slot_s: float = 0.5) -> RateTrace:
    values = np.array(rates_bps)
    return RateTrace(snr=np.ones_like(values), downlink_bps=values, uplink_bps=values / 2, slot_s=slot_s)


def sent_bits(trace: RateTrace, begin_s: float, end_s: float, num_points: int = 20_000) -> float:
    """Integral of the rate by midpoints: another way to the same number."""
    width_s = (end_s - begin_s) / num_points
    times_s = begin_s + width_s * (np.arange(num_points) + 0.5)
    slots = (times_s // trace.slot_s).astype(int) % len(trace.downlink_bps)
    return float(trace.downlink_bps[slots].sum() * width_s)


# --- the trace ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "channel",
    [
        Static(snr_db=7.0),
        Rayleigh(snr_db=5.0),
        GaussMarkov(snr_db=5.0, correlation=0.9),
        Rayleigh(snr_db=5.0, doppler_hz=10.0, interval_s=0.01),
        Trace(snr_db=[0.0, -np.inf, 20.0]),
    ],
    ids=lambda channel: type(channel).__name__,
)
def test_it_replays_what_stepping_the_channel_gives(channel: Rayleigh) -> None:
    trace = RateTrace.of_channel(channel, LINK, num_slots=7, slot_s=0.01, seed=5)
    rng = np.random.default_rng(5)
    state, snr = channel.initial(rng, 1), []
    for _ in range(7):
        snr.append(channel.snr(state)[0])
        state = channel.advance(rng, state)
    met = LINK.state(np.array(snr))
    assert np.array_equal(trace.snr, snr)
    with np.errstate(divide="ignore"):
        assert np.array_equal(trace.downlink_bps, 1.0 / met.downlink_s_per_bit)
        assert np.array_equal(trace.uplink_bps, 1.0 / met.uplink_s_per_bit)


def test_it_replays_the_traces_of_the_trade_off() -> None:
    seed = np.random.SeedSequence(3).spawn(2)[1]
    trace = RateTrace.of_channel(Rayleigh(), LINK, num_slots=5, slot_s=0.01, seed=seed)
    path = Rayleigh().sample_snr(np.random.default_rng(np.random.SeedSequence(3).spawn(2)[1]), 5)[:, 0]
    assert np.array_equal(trace.snr, path)


def test_known_airtimes() -> None:
    trace = trace_of([100.0, 0.0, 50.0])  # 50 bit, nothing, 25 bit, in slots of half a second
    assert trace.finish_s("downlink", 0.0, 50.0) == pytest.approx(0.5)
    assert trace.finish_s("downlink", 0.0, 60.0) == pytest.approx(1.2)
    assert trace.finish_s("downlink", 0.6, 25.0) == pytest.approx(1.5)
    assert trace.finish_s("downlink", 0.0, 75.0 * 4) == pytest.approx(6.0)
    assert trace.finish_s("uplink", 0.0, 25.0) == pytest.approx(0.5)
    assert trace.finish_s("downlink", 0.7, 0.0) == 0.7


@settings(max_examples=40)
@given(rates_bps=rates, start_s=st.floats(0, 10), num_bits=st.floats(0.5, 500))
def test_bits_sent_until_the_finish_are_the_bits_asked_for(
    rates_bps: list[float], start_s: float, num_bits: float
) -> None:
    trace = trace_of(rates_bps)
    end_s = trace.finish_s("downlink", start_s, num_bits)
    tolerance = max(rates_bps) * (end_s - start_s) * 1e-3 + 1e-6
    assert sent_bits(trace, start_s, end_s) == pytest.approx(num_bits, abs=tolerance)


@settings(max_examples=40)
@given(rates_bps=rates, start_s=st.floats(0, 10), first=st.floats(1, 200), second=st.floats(1, 200))
def test_two_payloads_after_another_take_as_long_as_one(
    rates_bps: list[float], start_s: float, first: float, second: float
) -> None:
    trace = trace_of(rates_bps)
    halfway_s = trace.finish_s("downlink", start_s, first)
    whole_s = trace.finish_s("downlink", start_s, first + second)
    assert trace.finish_s("downlink", halfway_s, second) == pytest.approx(whole_s, rel=1e-9)


def test_a_dead_link_never_finishes() -> None:
    assert trace_of([0.0, 0.0]).finish_s("downlink", 1.0, 1.0) == np.inf
    assert trace_of([0.0], slot_s=np.inf).finish_s("downlink", 1.0, 1.0) == np.inf


def test_a_held_slot_is_one_rate_for_ever() -> None:
    held = trace_of([100.0, 40.0]).held(3)
    assert held.finish_s("downlink", 5.0, 400.0) == pytest.approx(15.0)


def test_an_outage_stops_the_slots_it_touches() -> None:
    trace = trace_of([10.0] * 6).with_outage(0.6, 1.5)
    assert trace.downlink_bps.tolist() == [10.0, 0.0, 0.0, 10.0, 10.0, 10.0]
    assert trace.finish_s("downlink", 0.0, 6.0) == pytest.approx(1.6)
    with pytest.raises(ConfigError, match=r"outage from 2\.0 s to 9\.0 s: expected 0 <= begin < end <= 3 s"):
        trace.with_outage(2.0, 9.0)


@pytest.mark.parametrize("slot_s", [0.0, -1.0, float("nan")])
def test_impossible_traces_are_refused(slot_s: float) -> None:
    with pytest.raises(ConfigError, match="slot_s is"):
        trace_of([1.0], slot_s)
    with pytest.raises(ConfigError, match="downlink_bps is -1"):
        trace_of([-1.0])


# --- losses and jitter ----------------------------------------------------------------------------------------------


def stream(seed: int, impairments: Impairments) -> Stream:
    return Stream(impairments=impairments, rng=np.random.default_rng(seed))


@settings(max_examples=50)
@given(cuts=st.lists(st.integers(1, 4000), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_losses_do_not_depend_on_how_the_stream_is_cut(cuts: list[int], seed: int) -> None:
    lossy = Impairments(loss=0.4)
    pieces, whole = stream(seed, lossy), stream(seed, lossy)
    in_pieces = sum(pieces.cost(size)[0] for size in cuts)
    assert in_pieces == whole.cost(sum(cuts))[0]


def test_share_of_resends_is_that_of_a_geometric_law() -> None:
    lossy = stream(0, Impairments(loss=0.25))
    lossy.cost(40_000 * PACKET_BYTES)
    assert lossy.num_resends / 40_000 == pytest.approx(0.25 / 0.75, rel=0.03)


def test_without_impairments_bits_are_the_bytes() -> None:
    assert stream(0, Impairments()).cost(1234) == (8 * 1234, 0.0)


def test_jitter_stays_within_its_bound_and_moves() -> None:
    jittery = stream(0, Impairments(delay_s=0.1, jitter_s=0.05))
    delays_s = [jittery.cost(PACKET_BYTES)[1] for _ in range(200)]
    assert min(delays_s) >= 0.1
    assert max(delays_s) <= 0.15
    assert np.ptp(delays_s) > 0.04


@pytest.mark.parametrize("wrong", [{"loss": 1.0}, {"delay_s": -1.0}, {"jitter_s": float("nan")}])
def test_impossible_impairments_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="shim: "):
        Impairments(**wrong)


# --- a real socket --------------------------------------------------------------------------------------------------


async def through(
    trace: RateTrace, use: Callable[[ChannelShim], Awaitable[None]], payload: bytes, impairments: Impairments
) -> None:
    """Run `use` with a shim before a server that sends `payload` to whoever connects and closes when told to."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(payload)
        await writer.drain()
        writer.write_eof()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    shim = ChannelShim(server.sockets[0].getsockname()[:2], trace, impairments=impairments, seed=1)
    await shim.start()
    try:
        async with asyncio.timeout(15.0):
            await use(shim)
    finally:
        await shim.stop()
        server.close()


async def received(shim: ChannelShim) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", shim.port)
    try:
        return await reader.read(-1)
    finally:
        writer.close()


def test_bytes_arrive_whole_and_not_before_their_time() -> None:
    payload = np.random.default_rng(0).bytes(30_000)

    async def use(shim: ChannelShim) -> None:
        begun = time.monotonic()
        assert await received(shim) == payload
        # 240 kbit at 2 Mbit/s, and 30 ms of delay; what is late is the machine's
        assert time.monotonic() - begun >= 0.12 + 0.03

    asyncio.run(through(trace_of([2e6], np.inf), use, payload, Impairments(delay_s=0.03, jitter_s=0.01)))


def test_a_cut_link_breaks_connections_and_a_mended_one_carries_again() -> None:
    async def use(shim: ChannelShim) -> None:
        reader, _ = await asyncio.open_connection("127.0.0.1", shim.port)
        await reader.readexactly(1)
        await shim.cut()
        with pytest.raises(ConnectionError):
            await reader.read(-1)
        with pytest.raises(ConnectionError):
            await received(shim)
        shim.mend()
        shim.replay(trace_of([1e9], np.inf))
        assert await received(shim) == bytes(100_000)

    asyncio.run(through(trace_of([1e5], np.inf), use, bytes(100_000), Impairments()))


@pytest.mark.slow
def test_throughput_on_loopback_is_the_mean_of_the_trace() -> None:
    trace = RateTrace.of_channel(Rayleigh(snr_db=10.0), LINK, num_slots=100, slot_s=0.06, seed=3)
    num_bytes = int(trace.downlink_bps.mean() * trace.slot_s * trace.snr.size / 8)

    async def use(shim: ChannelShim) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", shim.port)
        num_first = len(await reader.read(1 << 20))
        begun_s, num_rest = time.monotonic(), 0
        while num_rest < num_bytes - num_first:
            num_rest += len(await reader.read(1 << 20))
        rate_bps = 8 * num_rest / (time.monotonic() - begun_s)
        writer.close()
        assert rate_bps == pytest.approx(trace.downlink_bps.mean(), rel=0.05)

    asyncio.run(through(trace, use, bytes(num_bytes), Impairments()))
