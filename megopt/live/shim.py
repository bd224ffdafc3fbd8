"""A seeded channel on a socket: what passes takes the airtime, delay, jitter, losses and outages of a stated link.

    device --- shim --- edge

    end of airtime   a_i = trace.finish(max(arrival_i, a_(i-1)), bits_i + bits sent again)
    delivery         d_i = max(d_(i-1), a_i + delay + jitter_i + resends_i round trips)

Bytes arrive complete and in order, as TCP delivers them: a lost packet costs its airtime and a round trip again.
What a packet suffers is drawn by `megopt.live.packets`. Times come from the schedule above and not from the last
wake-up, so late timers do not add up.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from typing import TypeAlias

import numpy as np

from megopt.errors import ConfigError
from megopt.live.packets import PACKET_BYTES, Impairments, Stream
from megopt.live.trace import DIRECTIONS, RateTrace
from megopt.ranges import require_whole

CHUNK_BYTES = 8 * PACKET_BYTES
QUEUE_CHUNKS = 64
"""Chunks that wait in each direction before the sender is held up."""
CONNECT_TIMEOUT_S = 5.0
_Chunks: TypeAlias = "asyncio.Queue[tuple[float, bytes]]"
"""Time on the monotonic clock [s] and bytes; empty bytes end the stream."""


class ChannelShim:
    """A proxy on loopback that a device connects to in place of the edge.

    All connections share one link: the airtime of one is the waiting of the others.

    Attributes:
        impairments: delay, jitter and loss.
        seed: of jitter and loss.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        trace: RateTrace,
        *,
        impairments: Impairments | None = None,
        seed: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        require_whole("shim", 0, seed=seed)
        self.impairments = impairments or Impairments()
        self.seed = seed
        self._upstream, self._host = upstream, host
        self._trace, self._num_connections = trace, 0
        self._busy_until_s = dict.fromkeys(DIRECTIONS, 0.0)
        self._epoch_s = time.monotonic()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._is_cut = False

    @property
    def port(self) -> int:
        """Port that the device connects to.

        Raises:
            ConfigError: before `start`.
        """
        if self._server is None:
            message = "shim: it has no port before it is started; call start first"
            raise ConfigError(message)
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def trace(self) -> RateTrace:
        """Rates that are replayed."""
        return self._trace

    def now_s(self) -> float:
        """Return the time since the beginning of the trace [s]."""
        return time.monotonic() - self._epoch_s

    def replay(self, trace: RateTrace) -> None:
        """Replay `trace` from its beginning on; what is on its way keeps its time."""
        self._trace, self._epoch_s = trace, time.monotonic()
        self._busy_until_s = dict.fromkeys(DIRECTIONS, 0.0)

    async def start(self) -> int:
        """Listen on a free port, and return it."""
        self._server = await asyncio.start_server(self._accept, self._host, 0, limit=CHUNK_BYTES)
        return self.port

    async def stop(self) -> None:
        """Close all connections and stop listening."""
        if self._server is not None:
            self._server.close()
        await self._drop()

    async def cut(self) -> None:
        """Break every connection, and every new one, until `mend`."""
        self._is_cut = True
        await self._drop()

    def mend(self) -> None:
        """Let connections through again."""
        self._is_cut = False

    async def _drop(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if self._is_cut:
                _reset(writer)
            else:
                await self._connected(reader, writer)
        except (OSError, TimeoutError, asyncio.CancelledError):
            _reset(writer)  # both ends find out by themselves
        finally:
            writer.close()
            self._connections.discard(task)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            edge_reader, edge_writer = await asyncio.open_connection(*self._upstream, limit=CHUNK_BYTES)
        number, self._num_connections = self._num_connections, self._num_connections + 1
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, edge_writer, "uplink", number))
                group.create_task(self._pass(edge_reader, writer, "downlink", number))
        except* OSError:
            _reset(writer)  # one end has gone
        finally:
            edge_writer.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str, number: int
    ) -> None:
        """Pass one direction of connection `number`: read, transmit, and deliver when it is time."""
        seeds = np.random.SeedSequence((self.seed, number, DIRECTIONS.index(direction)))
        stream = Stream(impairments=self.impairments, rng=np.random.default_rng(seeds))
        arrived: _Chunks = asyncio.Queue(QUEUE_CHUNKS)
        waiting: _Chunks = asyncio.Queue(QUEUE_CHUNKS)
        async with asyncio.TaskGroup() as group:
            group.create_task(_read(reader, arrived))
            group.create_task(self._transmit(arrived, waiting, stream, direction))
            group.create_task(_deliver(waiting, writer))

    async def _transmit(self, arrived: _Chunks, waiting: _Chunks, stream: Stream, direction: str) -> None:
        """Give every chunk its time of delivery."""
        while True:
            arrived_at, chunk = await arrived.get()
            await waiting.put((self._send(arrived_at, len(chunk), stream, direction), chunk))
            if not chunk:
                return

    def _send(self, arrived_at: float, num_bytes: int, stream: Stream, direction: str) -> float:
        """Return when a chunk that arrived at `arrived_at` is delivered, both on the monotonic clock [s]."""
        epoch_s = self._epoch_s
        begin_s = max(arrived_at - epoch_s, self._busy_until_s[direction], 0.0)
        bits, delay_s = stream.cost(num_bytes)
        self._busy_until_s[direction] = self._trace.finish_s(direction, begin_s, bits)
        delivered_s = self._busy_until_s[direction] + delay_s
        stream.delivered_s = max(stream.delivered_s, epoch_s + delivered_s)
        return stream.delivered_s


async def _read(reader: asyncio.StreamReader, arrived: _Chunks) -> None:
    """Stamp what comes in with the time of its arrival; empty at the end of the stream."""
    while True:
        chunk = await reader.read(CHUNK_BYTES)
        await arrived.put((time.monotonic(), chunk))
        if not chunk:
            return


async def _deliver(waiting: _Chunks, writer: asyncio.StreamWriter) -> None:
    """Write every chunk at its time, and the end of the stream after the last."""
    while True:
        deliver_at, chunk = await waiting.get()
        if np.isinf(deliver_at):
            await asyncio.Event().wait()  # a dead link: until the connection is closed
        await asyncio.sleep(max(0.0, deliver_at - time.monotonic()))
        if not chunk:
            writer.write_eof()
            return
        writer.write(chunk)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection as a lost link does: without a farewell."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
