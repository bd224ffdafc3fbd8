"""What a device does beside the request itself: previews on the way, and a policy that knows of the edge's queue."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from megopt.analysis.generated_report import PreviewFiles
from megopt.arrays import IntArray
from megopt.diffusion.sampling import advance, start
from megopt.errors import ConfigError
from megopt.live import runs
from megopt.live.connection import Connection
from megopt.live.course import Course, Generated
from megopt.live.device import Device
from megopt.live.device_settings import DeviceSettings
from megopt.live.model_thread import ModelThread
from megopt.live.observation import KnownLink
from megopt.live.service import EdgeService
from megopt.policies.base import Observation
from tests import live_parts
from tests.live_parts import FAST, LOCAL, PROMPT, Always, Row, free_port, made, reference, table_of

pipelines, edge = live_parts.pipelines, live_parts.edge
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SPLIT: Row = ("step_split", "3 of 4 steps at the edge", 4, 3, 0.0, 16, 1)


def reference_run(pipeline: Any) -> Any:
    return start(pipeline, "a cube", num_steps=2, seed=1, sampler="ddim", guidance_scale=3.0, resolution_px=32)


FAMILIES = (("sd", "ddim"), ("sd", "euler"), ("sd", "dpmpp_2m"), ("sd3", "flow_match_euler"))


def device_of(pipelines: tuple[Any, Any], policy: Any, **settings: Any) -> Device:
    rows = table_of([LOCAL, SPLIT])
    return Device(pipelines[1], rows, policy, KnownLink(trace=FAST), settings=DeviceSettings(**settings))


@pytest.mark.parametrize(("name", "sampler"), FAMILIES)
def test_the_preview_of_the_last_step_is_the_image(name: str, sampler: str, load_tiny: Callable[[str], Any]) -> None:
    pipeline = load_tiny(name)
    run = start(pipeline, "a cube", num_steps=5, seed=1, sampler=sampler, guidance_scale=3.0, resolution_px=32)
    shown = [runs.preview(pipeline, advance(pipeline, run, step)) for step in (0, 2, 5)]
    whole = runs.image(pipeline, advance(pipeline, run, 5))
    assert all(one.shape == whole.shape and one.dtype == np.uint8 for one in shown)
    assert np.array_equal(shown[-1], whole)
    one_step = start(pipeline, "a cube", num_steps=1, seed=1, sampler=sampler, guidance_scale=3.0, resolution_px=32)
    if sampler != "ddim":  # whose times of one step begin elsewhere
        only = runs.image(pipeline, advance(pipeline, one_step, 1))
        assert np.abs(runs.preview(pipeline, one_step).astype(float) - only).max() <= 1.0


def test_checkpoints_are_shown_and_the_image_stays_the_same(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any], tmp_path: Path
) -> None:
    device, files = device_of(pipelines, Always(1), preview_every=1), PreviewFiles(tmp_path)
    device.previews.show = files.save

    async def call() -> Generated:
        async with Connection(f"http://127.0.0.1:{edge[1]}") as connection, device.previews:
            return await device.generate(PROMPT, connection)

    found = asyncio.run(call())
    assert np.array_equal(found.image, reference(pipelines, 3))
    assert files.paths  # one at least: the models are idle when the first checkpoint comes
    assert {path.name for path in files.paths} <= {"preview_001.png", "preview_002.png"}
    assert all(path.is_file() for path in files.paths)


def test_previews_and_calls_take_turns_in_one_thread_and_previews_give_way(pipelines: tuple[Any, Any]) -> None:
    own = device_of(pipelines, Always(0))._own
    course = Course(prompt=PROMPT, begun_s=0.0, run=reference_run(pipelines[1]))
    spans: list[tuple[str, float, float]] = []
    threads = set()

    def work(name: str) -> str:
        begun_s = time.monotonic()
        time.sleep(0.05)
        spans.append((name, begun_s, time.monotonic()))
        threads.add(threading.get_ident())
        return name

    async def both() -> None:
        preview = own.when_idle(work, "preview")
        assert preview is not None
        assert own.when_idle(work, "another") is None  # passed over
        call = asyncio.create_task(own.call(course, work, "call"))
        await asyncio.sleep(0.0)
        assert own.when_idle(work, "third") is None
        assert await call == "call"
        assert preview.result() == "preview"

    asyncio.run(both())
    assert [name for name, _, _ in spans] == ["preview", "call"]
    assert spans[0][2] <= spans[1][1]
    assert len(threads) == 1
    assert course.device_s < 0.1  # the preview's time is not the request's


def test_a_call_that_nobody_waits_for_any_more_leaves_the_thread_alive() -> None:
    thread = ModelThread()
    begun, done = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        done.wait(10.0)

    thread.submit(first)
    assert begun.wait(10.0)
    second = thread.submit(lambda: 2)
    assert second.cancel()
    done.set()
    assert thread.submit(lambda: 3).result(10.0) == 3
    thread.end()


def test_the_image_does_not_wait_for_a_preview(edge: tuple[EdgeService, int], pipelines: tuple[Any, Any]) -> None:
    device, shown = device_of(pipelines, Always(1), checkpoint_every=1), []

    def slow(step: int, image: Any) -> None:
        time.sleep(1.0)
        shown.append(step)

    async def call() -> tuple[float, list[int]]:
        async with Connection(f"http://127.0.0.1:{edge[1]}") as connection, device.previews:
            await device.generate(PROMPT, connection)  # whatever is slow the first time
            device.previews.show, begun_s = slow, time.monotonic()
            await device.generate(PROMPT, connection)
            took_s, at_image = time.monotonic() - begun_s, list(shown)
        return took_s, at_image

    took_s, at_image = asyncio.run(call())
    assert took_s < 1.0
    assert (at_image, len(shown)) == ([], 1)  # it was there when the context was left


def test_previews_and_checkpoints_of_different_steps_are_refused(pipelines: tuple[Any, Any]) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint_every 8 and preview_every 4; .*give one of them"):
        device_of(pipelines, Always(1), checkpoint_every=8, preview_every=4)


def test_a_preview_that_fails_costs_nobody_the_image(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    def full(step: int, image: Any) -> None:
        message = "the disk is full"
        raise ConfigError(message)

    device = device_of(pipelines, Always(1), checkpoint_every=1)
    device.previews.show = full
    assert np.array_equal(made(device, edge[1]).image, reference(pipelines, 3))
    assert "ConfigError: the disk is full" in caplog.text


@dataclass(frozen=True, slots=True)
class Reading:
    """A policy that goes to the edge unless a round trip takes long, and writes down how long it was told."""

    told_s: list[float] = field(default_factory=list)
    reads_limits: ClassVar[bool] = False

    def act(self, observation: Observation) -> IntArray:
        self.told_s.append(observation.link.round_trip_s)
        return np.full(len(observation.link.snr), int(observation.link.round_trip_s < 1.0), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Alone:
    """A policy that takes more steps on a dead link."""

    reads_limits: ClassVar[bool] = False

    def act(self, observation: Observation) -> IntArray:
        return np.where(np.isinf(observation.link.downlink_s_per_bit), 2, 1)


def test_without_an_edge_the_policy_is_asked_about_a_dead_link(pipelines: tuple[Any, Any]) -> None:
    rows = table_of([LOCAL, SPLIT, ("conventional", "device only, 6 steps", 6, np.nan, 0.0, 16, 1)])
    found = made(Device(pipelines[1], rows, Alone(), KnownLink(trace=FAST)), free_port())
    assert (found.row, found.decision.num_steps, found.edge_steps) == (2, 6, 0)
    (note,) = found.notes
    assert note.startswith("no edge: link: ConnectError")


@pytest.mark.parametrize(("wait_s", "row"), [(0.0, 1), (5.0, 0)])
def test_the_policy_is_told_of_the_queue_at_the_edge(
    edge: tuple[EdgeService, int],
    pipelines: tuple[Any, Any],
    wait_s: float,
    row: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = edge[0].capabilities()
    monkeypatch.setattr(edge[0], "capabilities", lambda: replace(told, wait_s=wait_s))
    policy = Reading()
    found = made(device_of(pipelines, policy), edge[1])
    assert (policy.told_s, found.row) == ([wait_s], row)


def test_the_wait_that_the_edge_states_is_in_the_prediction(
    edge: tuple[EdgeService, int], pipelines: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = edge[0].capabilities()
    monkeypatch.setattr(edge[0], "capabilities", lambda: replace(told, wait_s=2.0))
    split, alone = (made(device_of(pipelines, Always(row)), edge[1]) for row in (1, 0))
    assert 2.0 < split.predicted_runtime_s < 2.0 + split.measured.latency_s[0]
    assert split.predicted.latency_s[0] == pytest.approx(split.table_latency_s + split.predicted_runtime_s)
    assert alone.predicted_runtime_s < 2.0
