"""Two real processes on one machine: the service as it is started, an edge that is killed, and a graceful end."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from megopt.arrays import IntArray
from megopt.diffusion.pipelines import load
from megopt.live.connection import Connection, LinkError
from megopt.live.course import Generated, Prompt
from megopt.live.device import Device, DeviceSettings
from megopt.live.observation import KnownLink
from megopt.live.trace import RateTrace
from megopt.policies.base import Observation
from megopt.schemes.action_table import ActionTable
from megopt.schemes.offer import CODEC_BITS, NUM_STEPS, SPLIT_STEP
from megopt.system.outcome import Work

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
START = "import sys; from megopt.application import run_verb; sys.exit(run_verb('serve', sys.argv[1:]))"
FAST = RateTrace(snr=np.ones(1), downlink_bps=np.array([1e8]), uplink_bps=np.array([1e8]), slot_s=np.inf)
TOKEN = "0123456789abcdef0123"


@dataclass(frozen=True, slots=True)
class Second:
    """Always row 1."""

    reads_limits: ClassVar[bool] = False

    def act(self, observation: Observation) -> IntArray:
        return np.ones(len(observation.link.snr), dtype=np.int64)


def table_of(num_steps: int, split_step: int) -> ActionTable:
    ones = np.full(2, 0.01)
    work = dict.fromkeys(("edge_s", "device_s", "downlink_bits", "uplink_bits", "num_round_trips"), ones)
    return ActionTable(
        scheme=np.array(["conventional", "step_split"]),
        label=np.array(["device only", "split"]),
        knobs=(NUM_STEPS, SPLIT_STEP, CODEC_BITS),
        settings=np.array([[num_steps, np.nan, 16], [num_steps, split_step, 16]], dtype=np.float64),
        work=Work(**work, edge_energy_j=ones * np.nan, device_energy_j=ones * np.nan),
        metrics=(),
        quality=np.empty((2, 0)),
        kind=np.array(["measured"] * 2),
        profile="tiny",
    )


@contextmanager
def edge_process(model: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
    (folder / "token").write_text(TOKEN)
    overrides = [
        f"model={model}",
        f"port={port}",
        f"token_file={folder}/token",
        "output=json",
        f"hydra.run.dir={folder}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", START, *overrides], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process, port
    finally:
        process.kill()
        process.communicate(timeout=30)


async def until_it_answers(connection: Connection, process: subprocess.Popen[str]) -> None:
    async with asyncio.timeout(300.0):
        while True:
            assert process.poll() is None, process.communicate()
            try:
                await connection.capabilities()
            except LinkError:
                await asyncio.sleep(0.2)
            else:
                return


def test_an_edge_killed_in_mid_run_and_one_that_ends_gracefully(
    tiny_pipelines: dict[str, Path], tmp_path: Path
) -> None:
    device = Device(
        load(tiny_pipelines["sd_device"]),
        table_of(100, 99),
        Second(),
        KnownLink(trace=FAST),
        settings=DeviceSettings(checkpoint_every=1, num_retries=1),
    )
    prompt = Prompt(text="a red cube", resolution_px=32, deadline_s=120.0)

    async def graceful(process: subprocess.Popen[str], port: int) -> Generated:
        async with Connection(f"http://127.0.0.1:{port}", token=TOKEN) as connection:
            await until_it_answers(connection, process)
            with pytest.raises(LinkError, match="it answers 401"):
                async with Connection(f"http://127.0.0.1:{port}", token="wrong") as other:
                    await other.capabilities()
            return await device.generate(prompt, connection)

    with edge_process(tiny_pipelines["sd"], tmp_path) as (process, port):
        found = asyncio.run(graceful(process, port))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (found.edge_steps, found.notes) == (99, ())
    assert '"done": 1' in out
    assert '"split_step": 99' in err
    assert "red cube" not in out + err

    async def killed(process: subprocess.Popen[str], port: int) -> Generated:
        async with Connection(f"http://127.0.0.1:{port}", token=TOKEN) as connection:
            await until_it_answers(connection, process)
            take = device._take

            def take_and_kill(frame: Any, *rest: Any) -> None:
                take(frame, *rest)
                process.kill()

            device._take = take_and_kill  # type: ignore[method-assign]
            return await device.generate(replace(prompt, seed=1), connection)

    with edge_process(tiny_pipelines["sd"], tmp_path) as (process, port):
        begun_s = time.monotonic()
        found = asyncio.run(killed(process, port))
        assert time.monotonic() - begun_s < prompt.deadline_s + 301.0
    assert 1 <= found.edge_steps < 99
    assert found.measured.latency_s[0] < prompt.deadline_s + 1.0
    assert found.notes[-1] == f"finished alone from step {found.edge_steps}"
