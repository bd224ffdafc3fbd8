"""Two real processes on one machine: the service as it is started, an edge that is killed, and a graceful end."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megopt.diffusion.pipelines import load
from megopt.live.connection import Connection, LinkError
from megopt.live.course import Generated, Prompt
from megopt.live.device import Device
from megopt.live.device_settings import DeviceSettings
from megopt.live.observation import KnownLink
from megopt.live.shim import ChannelShim
from tests.live_parts import FAST, Always, Damaging, Row, free_port, table_of

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
START = "import sys; from megopt.application import run_verb; sys.exit(run_verb('serve', sys.argv[1:]))"
LONG_ALONE: Row = ("conventional", "device only", 100, np.nan, 0.0, 16, 1)
LONG: Row = ("step_split", "split", 100, 99, 0.0, 16, 1)
TOKEN = "0123456789abcdef0123"


@contextmanager
def edge_process(model: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    (folder / "token").write_text(TOKEN)
    overrides = [
        f"model={model}",
        f"port={port}",
        "num_threads=1",  # two threads that spin lose more than they gain where cores are busy
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
        table_of([LONG_ALONE, LONG]),
        Always(1),
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


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-9],
    "corrupted": lambda content: bytes([*content[:-9], content[-9] ^ 1, *content[-8:]]),
    "duplicated": lambda content: content + content,
}
POLICIES = {"raises": Always(error="no idea"), "hangs": Always(sleep_s=30.0)}
DEADLINE_S = 20.0


def test_damaged_stalled_and_failing_the_user_gets_an_image_in_time_and_once(
    tiny_pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One edge process for all: damaged frames, policies that fail, a clock that jumps, a link that stalls."""
    rows: list[Row] = [
        ("conventional", "device only", 4, np.nan, 0.0, 16, 1),
        ("step_split", "split", 4, 2, 0.0, 16, 1),
    ]
    pipeline = load(tiny_pipelines["sd_device"])
    settings = DeviceSettings(num_retries=1, policy_timeout_s=0.5, margin_s=0.5)
    prompt = Prompt(text="a red cube", resolution_px=32, deadline_s=DEADLINE_S)

    def device(policy: Always) -> Device:
        return Device(pipeline, table_of(rows), policy, KnownLink(trace=FAST), settings=settings)

    async def made(port: int, policy: Always, transport: Any = None) -> Generated:
        async with Connection(f"http://127.0.0.1:{port}", token=TOKEN, transport=transport) as connection:
            return await device(policy).generate(prompt, connection)

    async def stalled(port: int) -> Generated:
        shim = ChannelShim(("127.0.0.1", port), FAST)
        asked = device(Always(1))
        ask = asked._ask

        async def then_dead(*given: Any) -> None:
            shim.replay(replace(FAST, downlink_bps=np.zeros(1)))
            await ask(*given)

        asked._ask = then_dead  # type: ignore[method-assign]
        try:
            async with Connection(f"http://127.0.0.1:{await shim.start()}", token=TOKEN) as connection:
                return await asked.generate(replace(prompt, deadline_s=4.0), connection)
        finally:
            await shim.stop()

    async def all_of_them(process: subprocess.Popen[str], port: int) -> dict[str, Generated]:
        async with Connection(f"http://127.0.0.1:{port}", token=TOKEN) as connection:
            await until_it_answers(connection, process)
        found = {name: await made(port, Always(1), Damaging(damage, 1)) for name, damage in DAMAGES.items()}
        found |= {name: await made(port, policy) for name, policy in POLICIES.items()}
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: 4e9)  # the wall clock jumps; deadlines are of the monotonic one
            found["clock"] = await made(port, Always(1))
        found["stalled"] = await stalled(port)
        return found

    with edge_process(tiny_pipelines["sd"], tmp_path) as (process, port):
        found = asyncio.run(all_of_them(process, port))
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    for name, one in found.items():
        assert one.image.shape == (32, 32, 3), name
        assert one.measured.latency_s[0] < (4.0 if name == "stalled" else DEADLINE_S) + 1.0, name
    assert [found[name].edge_steps for name in (*DAMAGES, "clock")] == [2] * 4
    assert [len(found[name].notes) for name in (*DAMAGES, "clock")] == [1, 1, 0, 0]
    assert [found[name].row for name in POLICIES] == [0, 0]
    assert found["stalled"].notes[-1] == "finished alone from step 0"
    (done,) = re.findall(r'"done": (\d+)', out)
    assert int(done) in (4, 5)  # three damaged and one more, each computed once; the stalled one where it had arrived
