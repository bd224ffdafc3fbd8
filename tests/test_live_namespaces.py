"""The shim held against the kernel: two network namespaces joined by a pair of interfaces that tc shapes.

The same client measures the same server twice, through the shim on loopback and through the shaped interface. tc counts
the headers of Ethernet, IP and TCP, the shim does not: 1514 B on the wire carry 1448 B of the stream. `pytest -m heavy
--log-cli-level=INFO` shows what was measured. What a kernel lacks is skipped: netem, which delays, is often missing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from megopt.live.packets import Impairments
from megopt.live.shim import ChannelShim
from megopt.live.trace import RateTrace
from tests.live_parts import free_port

pytestmark = pytest.mark.heavy
WIRE_PER_STREAM = 1514.0 / 1448.0
LOGGER = logging.getLogger(__name__)
ADDRESSES = {"device": "10.213.0.1", "edge": "10.213.0.2"}
DELAY_S, JITTER_S = 0.02, 0.01
RANDOM_WORD = (1 << 32) - 0x1000 + 56
"""Where classic BPF finds a random word: SKF_AD_OFF + SKF_AD_RANDOM of linux/filter.h."""
NUM_ROUND_TRIPS = 50
MANY_ROUND_TRIPS = 400

EDGE = """
import socket, struct, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while len(asked := connection.recv(8, socket.MSG_WAITALL)) == 8:
        connection.sendall(bytes(struct.unpack("!Q", asked)[0]))
"""
"""Answers eight bytes that hold a number with as many bytes."""

DEVICE = """
import json, socket, struct, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
def took_s(num_bytes):
    begun_s = time.monotonic()
    connection.sendall(struct.pack("!Q", num_bytes))
    left = num_bytes
    while left:
        left -= len(connection.recv(min(left, 1 << 16)))
    return time.monotonic() - begun_s
took_s(1)
print(json.dumps([took_s(int(size)) for size in sys.argv[3:]]))
"""
"""Prints how long each answer takes [s]."""


def command(*arguments: str) -> None:
    """Run a command of the system, or skip the test where it is not permitted."""
    try:
        subprocess.run(arguments, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not permitted here: {' '.join(arguments)}: {getattr(error, 'stderr', error)}")


@contextmanager
def edge(address: str, port: int, *prefix: str) -> Iterator[None]:
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", EDGE, address, str(port)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "listening\n"
        yield
    finally:
        process.kill()
        process.communicate()


def device(address: str, port: int, sizes: list[int], *prefix: str) -> list[str]:
    return [*prefix, sys.executable, "-c", DEVICE, address, str(port), *map(str, sizes)]


@dataclass(frozen=True, slots=True)
class Wire:
    """Two namespaces; `tc` shapes what the edge sends, `lose` loses some of it."""

    names: dict[str, str]

    def tc(self, *shape: str) -> None:
        """Give the edge's interface a shape."""
        command("tc", "-n", self.names["edge"], "qdisc", "replace", "dev", "wire", "root", *shape)

    def lose(self, share: float) -> None:
        """Lose this share of what arrives at the device: led to an interface that leads nowhere."""
        name = self.names["device"]
        command("ip", "-n", name, "link", "add", "sink", "type", "veth", "peer", "name", "nowhere")
        command("ip", "-n", name, "link", "set", "sink", "up")
        command("tc", "-n", name, "qdisc", "add", "dev", "wire", "ingress")
        # A = random word; not lost where A >= share * 2**32
        program = f"4,32 0 0 {RANDOM_WORD},53 1 0 {int(share * 2**32)},6 0 0 4294967295,6 0 0 0"
        chosen = ["filter", "add", "dev", "wire", "parent", "ffff:", "protocol", "ip", "bpf", "bytecode", program]
        command("tc", "-n", name, *chosen, "action", "mirred", "egress", "redirect", "dev", "sink")

    def times_s(self, sizes: list[int], during: Callable[[], None] = lambda: None) -> list[float]:
        """Return how long answers of these sizes take [s], and call something meanwhile."""
        inside = {end: ("ip", "netns", "exec", name) for end, name in self.names.items()}
        with edge(ADDRESSES["edge"], 7000, *inside["edge"]):
            asking = device(ADDRESSES["edge"], 7000, sizes, *inside["device"])
            process = subprocess.Popen(asking, stdout=subprocess.PIPE, text=True)
            during()
            out, _ = process.communicate(timeout=120)
        found: list[float] = json.loads(out)
        return found


@pytest.fixture
def wire() -> Iterator[Wire]:
    names = {end: f"megopt-{end}-{os.getpid()}" for end in ADDRESSES}
    made: list[str] = []
    try:
        for name in names.values():
            command("ip", "netns", "add", name)
            made.append(name)
        first, second = names.values()
        pair = ["link", "add", "wire", "netns", first, "type", "veth", "peer", "name", "wire", "netns", second]
        command("ip", *pair)
        for end, name in names.items():
            command("ip", "-n", name, "addr", "add", f"{ADDRESSES[end]}/24", "dev", "wire")
            # packets one by one: what is lost, or waits for tokens, is a packet
            command("ip", "-n", name, "link", "set", "wire", "up", "gso_max_segs", "1")
        yield Wire(names)
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=True)


def through_shim(
    sizes: list[int], rates_bps: list[float], slot_s: float = np.inf, impairments: Impairments | None = None
) -> list[float]:
    """Return how long answers of these sizes take through the shim [s]."""
    rates = np.array(rates_bps)
    trace = RateTrace(snr=np.ones_like(rates), downlink_bps=rates, uplink_bps=np.full_like(rates, 1e9), slot_s=slot_s)

    async def measured() -> list[float]:
        port = free_port()
        with edge("127.0.0.1", port):
            shim = ChannelShim(("127.0.0.1", port), trace, impairments=impairments, seed=1)
            try:
                asking = device("127.0.0.1", await shim.start(), sizes)
                process = await asyncio.create_subprocess_exec(*asking, stdout=asyncio.subprocess.PIPE)
                async with asyncio.timeout(120.0):
                    out, _ = await process.communicate()
            finally:
                await shim.stop()
        found: list[float] = json.loads(out)
        return found

    return asyncio.run(measured())


def bucket(rate_bps: float) -> tuple[str, ...]:
    """Return the shape of a token bucket that holds two packets."""
    return "tbf", "rate", f"{int(rate_bps)}bit", "burst", "3200", "latency", "2s"


def note(what: str, kernel_s: float, shim_s: float) -> None:
    LOGGER.info("%s: tc %.5f s, shim %.5f s, ratio %.3f", what, kernel_s, shim_s, shim_s / kernel_s)


@pytest.mark.parametrize("rate_bps", [180e3, 1e6, 8e6])
def test_airtime_is_that_of_a_token_bucket(wire: Wire, rate_bps: float) -> None:
    sizes = [8000, int(rate_bps * 1.5 / 8)]  # the first one empties the bucket
    wire.tc(*bucket(rate_bps))
    kernel_s = wire.times_s(sizes)[1] / WIRE_PER_STREAM
    shim_s = through_shim(sizes, [rate_bps])[1]
    note(f"{rate_bps:.3g} bit/s, {sizes[1]} B", kernel_s, shim_s)
    assert shim_s == pytest.approx(kernel_s, rel=0.05)


def test_a_rate_that_changes_slot_by_slot(wire: Wire) -> None:
    """Fading, five slots a second: the bucket is given another rate at the same moments."""
    slot_s, rates_bps = 0.2, [2e6, 0.5e6, 4e6, 1e6, 3e6]
    sizes = [int(3 * slot_s * sum(rates_bps) / 8)]

    def fade() -> None:
        begun_s = time.monotonic()
        for number in range(5 * len(rates_bps)):
            time.sleep(max(0.0, begun_s + number * slot_s - time.monotonic()))
            wire.tc(*bucket(rates_bps[number % len(rates_bps)]))

    wire.tc(*bucket(rates_bps[0]))
    kernel_s = wire.times_s(sizes, fade)[0] / WIRE_PER_STREAM
    (shim_s,) = through_shim(sizes, rates_bps, slot_s)
    note(f"fading around 2.1 Mbit/s, {sizes[0]} B", kernel_s, shim_s)
    assert shim_s == pytest.approx(kernel_s, abs=slot_s)  # the two begin elsewhere within the first slot


@pytest.mark.parametrize("loss", [0.02, 0.1])
def test_losses_cost_what_they_cost_tcp(wire: Wire, loss: float) -> None:
    rate_bps, sizes = 2e6, [8000, 750_000]
    wire.tc(*bucket(rate_bps))
    wire.lose(loss)
    kernel_s = wire.times_s(sizes)[1] / WIRE_PER_STREAM
    shim_s = through_shim(sizes, [rate_bps], impairments=Impairments(loss=loss))[1]
    note(f"loss of {loss} at {rate_bps:.3g} bit/s, {sizes[1]} B", kernel_s, shim_s)
    assert shim_s == pytest.approx(kernel_s, rel=0.1)


def test_delay_is_that_of_netem(wire: Wire) -> None:
    wire.tc("netem", "delay", f"{1e3 * DELAY_S:g}ms")
    kernel_s = float(np.median(wire.times_s([1] * NUM_ROUND_TRIPS)))
    shim_s = float(np.median(through_shim([1] * NUM_ROUND_TRIPS, [1e9], impairments=Impairments(delay_s=DELAY_S))))
    note("round trip, delayed in both directions", 2.0 * kernel_s, shim_s)
    assert shim_s == pytest.approx(2.0 * kernel_s, abs=4e-3)


def test_jitter_is_that_of_netem(wire: Wire) -> None:
    # netem draws evenly around its delay, the shim from its delay on, and in both directions
    wire.tc("netem", "delay", f"{1e3 * (DELAY_S + JITTER_S / 2):g}ms", f"{1e3 * JITTER_S / 2:g}ms")
    kernel_s = np.sqrt(2.0) * np.std(wire.times_s([1] * MANY_ROUND_TRIPS))
    jittery = Impairments(delay_s=DELAY_S, jitter_s=JITTER_S)
    shim_s = float(np.std(through_shim([1] * MANY_ROUND_TRIPS, [1e9], impairments=jittery)))
    note("standard deviation of a round trip with jitter", float(kernel_s), shim_s)
    assert shim_s == pytest.approx(kernel_s, rel=0.2)
