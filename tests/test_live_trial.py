"""A policy on trial: put in where it keeps what is asked for, taken back where it does not, without a restart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from megopt.errors import ConfigError
from megopt.live.connection import Connection
from megopt.live.course import Generated
from megopt.live.device import Device
from megopt.live.device_settings import DeviceSettings
from megopt.live.observation import KnownLink
from megopt.live.service import EdgeService
from megopt.live.trial import PolicyTrial
from tests import live_parts
from tests.live_parts import FAST, LOCAL, PROMPT, Always, Row, table_of

pipelines, edge = live_parts.pipelines, live_parts.edge
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SPLIT: Row = ("step_split", "2 of 4 steps at the edge", 4, 2, 0.0, 16, 1)


def rows_of(
    edge: tuple[EdgeService, int], device: Device, trial: PolicyTrial, num_requests: int
) -> list[tuple[int, str]]:
    """Return the rows of some requests, and the verdict after each."""

    async def serve() -> list[tuple[int, str]]:
        async with asyncio.timeout(60.0), Connection(f"http://127.0.0.1:{edge[1]}") as connection:
            return [((await trial.generate(PROMPT, connection)).row, trial.verdict) for _ in range(num_requests)]

    return asyncio.run(serve())


def device_of(pipelines: tuple[Any, Any]) -> Device:
    settings = DeviceSettings(policy_timeout_s=0.5)
    return Device(pipelines[1], table_of([LOCAL, SPLIT]), Always(0), KnownLink(trace=FAST), settings=settings)


@pytest.mark.parametrize(
    ("keeps", "verdict", "row"),
    [(lambda found: True, "put in", 1), (lambda found: found.row == 0, "taken back", 0)],
    ids=["as good", "worse"],
)
def test_a_candidate_is_judged_by_what_came_of_its_requests(
    edge: tuple[EdgeService, int],
    pipelines: tuple[Any, Any],
    keeps: Callable[[Generated], bool],
    verdict: str,
    row: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = device_of(pipelines)
    trial = PolicyTrial(device, Always(1), keeps, every=2, num_requests=2)
    with caplog.at_level("INFO", logger="megopt.live"):
        found = rows_of(edge, device, trial, 6)
    assert found == [(0, "running"), (1, "running"), (0, "running"), (1, verdict), (row, verdict), (row, verdict)]
    assert device.policy == Always(row)
    assert f'"num_kept": {2 * row}, "num_tried": 2, "verdict": "{verdict}"' in caplog.text


@pytest.mark.parametrize("candidate", [Always(error="no idea"), Always(sleep_s=5.0), Always(99)])
def test_a_candidate_that_fails_is_taken_back_at_once(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any], candidate: Always
) -> None:
    device = device_of(pipelines)
    trial = PolicyTrial(device, candidate, lambda found: True, every=2, num_requests=9)
    assert rows_of(edge, device, trial, 3) == [(0, "running"), (0, "taken back"), (0, "taken back")]
    assert device.policy == Always(0)


def test_after_its_turn_the_candidate_is_out_again_whatever_happened(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]
) -> None:
    device = device_of(pipelines)
    trial = PolicyTrial(device, Always(1), lambda found: True, every=2, num_requests=9)
    assert rows_of(edge, device, trial, 2) == [(0, "running"), (1, "running")]
    assert device.policy == Always(0)
    rows_of(edge, device, trial, 1)
    with pytest.raises(ConfigError, match="resolution_px"):
        asyncio.run(trial.generate(replace(PROMPT, resolution_px=33), Connection("http://127.0.0.1:9")))
    assert (device.policy, trial.verdict) == (Always(0), "running")


def test_requests_at_once_keep_their_turns(edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]) -> None:
    device = device_of(pipelines)
    trial = PolicyTrial(device, Always(1), lambda found: True, every=2, num_requests=9)

    async def at_once() -> list[int]:
        async with asyncio.timeout(60.0), Connection(f"http://127.0.0.1:{edge[1]}") as connection:
            return [one.row for one in await asyncio.gather(*(trial.generate(PROMPT, connection) for _ in range(4)))]

    assert asyncio.run(at_once()) == [0, 1, 0, 1]


def test_impossible_trials_are_refused(pipelines: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match="every is 1"):
        PolicyTrial(device_of(pipelines), Always(1), lambda found: True, every=1)
    with pytest.raises(ConfigError, match="tolerance"):
        PolicyTrial(device_of(pipelines), Always(1), lambda found: True, tolerance=2.0)
