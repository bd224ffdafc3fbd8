"""The edge as a process of its own, started as a user starts it: `megopt serve`."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from megopt.errors import ConfigError
from megopt.live.connection import Connection, LinkError

_START = "import sys; from megopt.cli import main; sys.exit(main(sys.argv[1:]))"
_GRACE_S = 15.0


@contextmanager
def edge_process(overrides: Mapping[str, object], folder: Path, *, start_timeout_s: float = 900.0) -> Iterator[int]:
    """Run `megopt serve` while the context lasts, and yield its port once it answers.

    Args:
        overrides: keys of the verb serve.
        folder: where its log and its run folder go.
        start_timeout_s: time to load its model [s].

    Raises:
        ConfigError: if it ends, or does not answer in time; the message holds the end of its log.
    """
    port = _free_port()
    folder.mkdir(parents=True, exist_ok=True)
    stated = {"port": port, "output": "json", **overrides, "hydra.run.dir": folder}
    command = [sys.executable, "-c", _START, "serve", *(f"{key}={value}" for key, value in stated.items())]
    with (folder / "edge.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            if not asyncio.run(_answers(process, port, start_timeout_s)):
                log.seek(0)
                has_ended = (
                    f"it ended with code {process.poll()}" if process.poll() is not None else "no answer in time"
                )
                message = f"live: the edge did not start: {has_ended}; its last words: {log.read()[-500:].strip()!r}"
                raise ConfigError(message)
            yield port
        finally:
            _ended(process)


async def _answers(process: subprocess.Popen[bytes], port: int, timeout_s: float) -> bool:
    """Return whether the edge answers before it ends or `timeout_s` [s] are over."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + timeout_s
    async with Connection(f"http://127.0.0.1:{port}") as connection:
        while process.poll() is None and loop.time() < end_s:
            try:
                await connection.capabilities()
            except LinkError:
                await asyncio.sleep(0.1)
            else:
                return True
    return False


def _ended(process: subprocess.Popen[bytes]) -> None:
    """End the process gracefully, or else at once."""
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
