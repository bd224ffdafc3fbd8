"""Frames of megopt/Request-v0 and megopt/Cell-v0: what they look back on, their timelines, their numbers, and films."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AutoresetMode
from hypothesis import given
from hypothesis import strategies as st

import megopt.envs  # noqa: F401  registers the environments
from megopt.envs import canvas, rendering
from megopt.envs.arrivals import ArrivalTrace
from megopt.envs.canvas import Scale
from megopt.envs.cell import CellEnv
from megopt.envs.history import MOMENTS, History, Past, shown_bounds, shown_totals
from megopt.envs.mean_panels import panels_of
from megopt.envs.rendering import RequestMoment
from megopt.envs.request import RequestVectorEnv
from megopt.problem import Limit, Problem, costs, reward
from megopt.system.outcome import Outcome
from tests.environments import PHONE, cell_settings, default_cell, loaded, make_cell, random_rows

SHAPE = (canvas.HEIGHT_PX, canvas.WIDTH_PX, 3)


def frames(env: Any) -> tuple[np.ndarray, ...]:
    drawn = env.render()
    assert drawn is not None
    return drawn


def test_frames_of_requests_show_the_past() -> None:
    env = RequestVectorEnv(2, render_mode="rgb_array", is_pipelined=True)
    env.reset(seed=0)
    empty = frames(env)
    for row in range(12):
        env.step([row, 1])
    drawn = frames(env)
    assert drawn[0].shape == SHAPE
    assert drawn[0].dtype == np.uint8
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], empty[0])
    assert RequestVectorEnv(1, params=env.params).render() is None


@pytest.mark.parametrize(
    "num_devices", [pytest.param(1, marks=pytest.mark.slow), 8, pytest.param(20, marks=pytest.mark.slow)]
)
def test_frames_of_cells_show_the_past(num_devices: int) -> None:
    env = make_cell(2, **cell_settings(num_devices), render_mode="rgb_array")
    env.reset(seed=0)
    empty = frames(env)
    for rows in random_rows(env, 40):
        env.step(rows)
    drawn = frames(env)
    assert drawn[0].shape == SHAPE
    assert drawn[0].dtype == np.uint8
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], empty[0])
    assert make_cell(1).render() is None
    scalar = CellEnv(render_mode="rgb_array", profile=loaded(PHONE))
    scalar.reset(seed=0)
    assert scalar.render() is not None


def test_a_neighbours_reset_leaves_a_rows_past() -> None:
    """A row that is reset by hand begins an empty frame; the frames of the others stay as they are."""
    mask = np.array([False, True, False])
    request = RequestVectorEnv(3, render_mode="rgb_array")
    cell = make_cell(3, params=default_cell(), render_mode="rgb_array")
    for env, actions in ((request, [0, 1, 2]), (cell, np.zeros((3, 8), dtype=int))):
        env.reset(seed=0)
        empty = frames(env)
        for _ in range(5):
            env.step(actions)
        before = frames(env)
        env.reset(options={"reset_mask": mask})
        after = frames(env)
        np.testing.assert_array_equal(after[0], before[0])
        np.testing.assert_array_equal(after[2], before[2])
        np.testing.assert_array_equal(after[1], empty[1])
        assert not np.array_equal(before[1], empty[1])


def test_an_episode_is_shown_to_its_end_and_then_forgotten() -> None:
    """With rows reset in the same step, the last frame is that of the whole episode; the next begins anew."""
    env = RequestVectorEnv(1, render_mode="rgb_array", episode_length=3)
    by_hand = RequestVectorEnv(1, params=env.params, render_mode="rgb_array", autoreset_mode=AutoresetMode.DISABLED)
    for each in (env, by_hand):
        each.reset(seed=0)
        for row in range(3):
            each.step([row])
    np.testing.assert_array_equal(frames(env)[0], frames(by_hand)[0])
    assert env._history.of(0).num_steps == 3
    env.step([0])
    assert env._history.of(0).num_steps == 1


def test_means_are_those_of_the_whole_episode() -> None:
    """Beyond the steps that a frame can show as well: at the end they are the means of the report."""
    env = make_cell(2, **cell_settings() | {"episode_length": MOMENTS + 9}, render_mode="rgb_array")
    env.reset(seed=0)
    for rows in random_rows(env, MOMENTS + 9):
        *_, info = env.step(rows)
    final = info["final_info"]["final"]
    for row in range(2):
        past = env._history.of(row)
        assert len(past.moments) == len(past.means) == MOMENTS
        np.testing.assert_allclose(past.means[-1, 0], -final["reward"][row], rtol=1e-12)
        np.testing.assert_allclose(past.means[-1, 1:], final["costs"][row], rtol=1e-12)
        panels = panels_of(env.params.problem, past)
        assert [panel.is_kept for panel in panels[-2:]] == final["is_kept"][row].tolist()
        assert [panel.bound for panel in panels[-2:]] == [60.0, 30.0]
        assert panels[-1].name == "device energy [J]"


@pytest.mark.parametrize(("metric", "sense"), [("ssim", 1.0), ("fid", -1.0)])
def test_quality_is_shown_as_people_read_it(metric: str, sense: float) -> None:
    problem = Problem(objective="quality", metric=metric, limits=(Limit(quantity="quality", bound=0.8),))
    numbers = dict.fromkeys(Outcome.__slots__, np.ones(1)) | {"quality": np.array([0.7])}
    outcome = Outcome(**numbers)
    assert reward(outcome, problem)[0] == pytest.approx(0.7 * sense)
    assert shown_totals(reward(outcome, problem), costs(outcome, problem), problem)[0] == pytest.approx([0.7, 0.7])
    assert shown_bounds(problem)[1] == pytest.approx(0.8)
    history: History[RequestMoment] = History(1, 1)
    history.add(moment(0.0, 0.0, 0.0, [0.7, 0.7]), np.zeros(1, dtype=bool))
    (panel,) = panels_of(problem, history.of(0))
    assert panel.is_kept == (metric == "fid")
    assert panel.name == metric


def moment(edge_s: float, link_s: float, device_s: float, totals: list[float]) -> RequestMoment:
    one = np.ones(1)
    return RequestMoment(
        totals=np.array([totals]),
        num_requests=one,
        rows=np.zeros(1, dtype=np.int64),
        snr=one,
        edge_s=edge_s * one,
        link_s=link_s * one,
        device_s=device_s * one,
    )


def test_the_timeline_of_requests_agrees_with_the_latencies() -> None:
    """With pipelining the time between two ends of airtime is the execution time of the model."""
    times = ((2.0, 1.0, 0.5), (3.0, 0.5, 0.5), (0.2, 0.4, 0.5), (0.1, 1.0, 0.5))
    moments = [moment(*t, [1.0]) for t in times]
    past = Past(moments=moments, means=np.ones((4, 1)), num_steps=4, env=0)
    sent = rendering.spans(past, is_pipelined=True)[:, 1, 1]
    assert np.diff(sent) == pytest.approx([3.0 - 1.0 + 0.5, 0.4, 1.0])
    assert rendering.spans(past, is_pipelined=False)[-1, 2, 1] == pytest.approx(9.2 + 0.5 * 4 - 1.0 + 0.0)


@pytest.mark.parametrize("is_pipelined", [True, False])
def test_the_timeline_of_a_cell_agrees_with_the_latencies(is_pipelined: bool) -> None:
    """A request ends on its device as long after it came as its latency says; nothing serves two batches at once."""
    settings = cell_settings() | {"arrivals": ArrivalTrace(num_requests=(1, 0, 1)), "is_pipelined": is_pipelined}
    env = make_cell(3, **settings, render_mode="rgb_array")
    env.reset(seed=0)
    ends = []
    for rows in random_rows(env, 30):
        state = env._begun().state
        arrived_s = 4.0 * (state.channel.slot - state.waiting.waited_slots(state.channel.slot))
        env.step(rows)
        own = env._history.of(0).moments[-1]
        is_some = own.batch_size > 0
        latency_s = own.spans_s[:, :, 2, 1] - arrived_s.reshape(3, 5)
        np.testing.assert_allclose(latency_s, env.outcome().latency_s, rtol=1e-9)
        assert np.all(np.diff(own.spans_s[is_some].reshape(-1, 6), axis=1) >= -1e-9)
        ends.append(own.spans_s)
    spans_s = np.concatenate(ends, axis=1)
    for cell in range(3):
        for lane in (0, 1):
            busy = np.unique(spans_s[cell, :, lane][np.isfinite(spans_s[cell, :, lane, 0])], axis=0)
            begins, stops = busy[:, 0], np.maximum.accumulate(busy[:, 1])
            is_next = np.diff(begins) > 1e-6  # of another batch
            assert np.all((begins[1:] >= stops[:-1] - 1e-9)[is_next])
        for device in range(5):
            of_device = spans_s[cell, device::5, 2]
            of_device = of_device[np.isfinite(of_device[:, 0])]
            assert np.all(of_device[1:, 0] >= of_device[:-1, 1] - 1e-9)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), most=st.integers(2, 10))
def test_ticks_are_few_round_and_inside(low: float, span: float, most: int) -> None:
    scale = Scale(low=low, high=low + span, begin_px=0.0, end_px=100.0)
    ticks = scale.ticks(most)
    assert len(ticks) <= most + 1
    assert all(low - 1e-6 * span <= tick <= low + span * (1.0 + 1e-6) for tick in ticks)
    assert scale.px(low - 1.0) == 0.0
    assert scale.px(low + 2.0 * span) == 100.0


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["megopt/Request-v0", "megopt/Cell-v0"])
def test_video_of_an_episode(env_id: str, tmp_path: Any) -> None:
    """With moviepy a film of the frames; without it, Gymnasium's error says what to install."""
    env = gym.make(env_id, render_mode="rgb_array", episode_length=4)
    if find_spec("moviepy") is None:
        with pytest.raises(DependencyNotInstalled, match="MoviePy is not installed, run `pip install"):
            gym.wrappers.RecordVideo(env, str(tmp_path / "films"))
        return
    film = gym.wrappers.RecordVideo(env, str(tmp_path / "films"))
    film.reset(seed=0)
    film.action_space.seed(0)
    for _ in range(4):
        film.step(film.action_space.sample())
    film.close()
    assert [path.stat().st_size > 1000 for path in (tmp_path / "films").glob("*.mp4")] == [True]
