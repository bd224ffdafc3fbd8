"""Joint actions of megopt/Cell-v0: masks, samples, weights of the band, bad actions and their messages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

import megopt.envs  # noqa: F401  registers the environments
from megopt.envs.actions import ActionError
from megopt.envs.arrivals import ArrivalTrace
from megopt.envs.cell import CellEnv, CellVectorEnv
from megopt.errors import ConfigError
from megopt.problem import Limit, Problem
from megopt.schemes.conventional import Conventional
from megopt.schemes.step_split import StepSplit
from megopt.system.link import Link
from tests.environments import PHONE, loaded


def make(num_envs: int, **settings: Any) -> CellVectorEnv:
    if "params" not in settings:
        settings["profile"] = loaded(PHONE)
    return CellVectorEnv(num_envs, **settings)


def two_devices() -> dict[str, Any]:
    """Two devices that share the band by their own weights, with a request in every slot."""
    schemes = [Conventional(num_steps=(25,)), StepSplit(num_steps=(25,))]
    return {"schemes": schemes, "num_devices": 2, "allocation": "chosen", "arrivals": ArrivalTrace()}


def test_a_dead_link_masks_what_needs_it_where_a_request_waits() -> None:
    settings = {"schemes": [Conventional(num_steps=(25,))], "link": Link(adaptation="cqi")}
    env = make(100, **settings, num_devices=4, arrivals=ArrivalTrace(num_requests=(1, 0), device_stride=1))
    _, info = env.reset(seed=0)
    is_dead = np.isinf(env.link_state().downlink_s_per_bit).reshape(100, 4)
    has_request = env.has_request()
    assert has_request[:, [0, 2]].all()
    assert not has_request[:, [1, 3]].any()
    np.testing.assert_array_equal(info["action_mask"].sum(axis=2), np.where(is_dead, 1, 6))
    cell, device = np.argwhere(is_dead & has_request)[0]
    rows = np.zeros((100, 4), dtype=int)
    with pytest.raises(ActionError, match=f"device {device} in environment {cell} is row 0, which is masked"):
        env.step(rows)
    clipped = make(100, params=env.params, bad_actions="clip")
    clipped.reset(seed=0)
    _, rewards, _, _, info = clipped.step(rows)
    np.testing.assert_array_equal(info["row"], np.where(has_request, np.where(is_dead, 5, 0), -1))
    assert np.all(np.isfinite(rewards))


def test_masked_samples_are_legal() -> None:
    problem = Problem(objective="quality", metric="ssim", limits=(Limit(quantity="latency_s", bound=9.0),))
    env = CellEnv(profile=loaded(PHONE), problem=problem, arrivals=ArrivalTrace(), num_devices=3)
    _, info = env.reset(seed=0)
    is_known = np.isfinite(env.params.table.metric("ssim"))
    assert 0 < is_known.sum() < len(is_known)
    env.action_space.seed(0)
    for _ in range(20):
        _, gained, *_, info = env.step(env.action_space.sample(tuple(info["action_mask"])))
        assert np.isfinite(gained)


def test_weights_are_powers_of_two() -> None:
    env = make(1, **two_devices())
    _, weights = env.actions.rows(np.array([[0, 0, 0, 7], [1, 1, 3, 4]]), 2)
    assert weights is not None
    assert weights.tolist() == [1.0, 128.0, 8.0, 16.0]
    boxes = make(1, **two_devices(), actions="box")
    points = np.zeros((1, boxes.single_action_space.shape[0]))
    points[0, -2:] = (-1.0, 1.0)
    assert boxes.actions.rows(points, 1)[1].tolist() == [1.0, 128.0]
    points[0, -2:] = (0.0, 1.0 / 7.0)
    assert boxes.actions.rows(points, 1)[1] == pytest.approx([2.0**3.5, 16.0])


BAD: list[tuple[str, Any, str]] = [
    ("discrete", [[0, 0, 0, 0], [0, 99, 0, 0]], "device 1 in environment 1 is 99 .*expected a whole number from 0"),
    (
        "discrete",
        [[0, 0], [0, 0]],
        "shape \\(2, 2\\); expected \\(2, 4\\).* 1 entries for each of 2 devices and their w",
    ),
    ("discrete", [[0, 0, 0, 0], [0, 0, 8, 0]], "device 0 in environment 1 has the weight 8; expected 0 to 7"),
    (
        "box",
        [[0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 2, 0, 0]],
        "device 1 in environment 1 is .*numbers from -1 to 1",
    ),
    ("box", [[0, 0, 0, 0, 0, 0, 0, np.nan], [0] * 8], "device 1 in environment 0 has the weight nan"),
    ("box", [[0] * 8, [0, 0, 0, 0, np.nan, 0, 0, 0]], "device 1 in environment 1 is .*nan.*; look for the NaN"),
    ("discrete", [[0.0, 0.0, 0.0, 0.0], [np.nan] * 4], "device 0 in environment 0 is 0.0 .float64.; expected a whole"),
]


@pytest.mark.parametrize(("kind", "actions", "message"), BAD)
def test_bad_actions_name_device_environment_and_remedy(kind: str, actions: Any, message: str) -> None:
    env = make(2, **two_devices(), actions=kind)
    if kind == "box":
        assert env.single_action_space.shape == (2 * (len(env.actions.of_device.dimensions) + 1),)
    env.reset(seed=0)
    with pytest.raises(ActionError, match=message):
        env.step(np.array(actions))


def test_bad_actions_are_clipped_where_that_is_asked_for() -> None:
    settings = two_devices()
    env, plain = make(1, **settings, bad_actions="clip"), make(1, **settings)
    env.reset(seed=0)
    plain.reset(seed=0)
    last = len(env.params.table) - 1
    _, rewards, _, _, info = env.step([[-3, 999, -1, 9]])
    assert info["row"].tolist() == [[0, last]]
    assert rewards == plain.step([[0, last, 0, 7]])[1]
    boxes = make(1, **settings, actions="box", bad_actions="clip")
    boxes.reset(seed=0)
    with pytest.raises(ActionError, match=r"device 0 in environment 0 is .*nan"):
        boxes.step([[np.nan, 0, 0, 0, 0, 0, 0, 0]])


def test_a_row_that_was_not_measured_is_refused_where_a_request_waits() -> None:
    problem = Problem(objective="quality", metric="ssim", limits=(Limit(quantity="latency_s", bound=9.0),))
    settings: dict[str, Any] = {"problem": problem, "arrivals": ArrivalTrace(), "num_devices": 3}
    env = make(2, **settings)
    env.reset(seed=0)
    lost, known = int(np.argmin(env.params.is_offered)), int(np.argmax(env.params.is_offered))
    rows = np.full((2, 3), known)
    rows[1, 2] = lost
    with pytest.raises(ActionError, match=f"device 2 in environment 1 is row {lost}, which is masked.*action_mask"):
        env.step(rows)
    clipped = make(2, params=env.params, bad_actions="clip")
    clipped.reset(seed=0)
    assert np.all(env.params.is_offered[clipped.step(rows)[4]["row"]])


def test_a_shared_row_is_the_row_of_every_device() -> None:
    settings = two_devices() | {"allocation": "equal", "num_devices": 3}
    shared, joint = make(4, **settings, actions="shared"), make(4, **settings)
    assert shared.single_action_space == spaces.Discrete(len(shared.params.table))
    shared.reset(seed=0)
    joint.reset(seed=0)
    for row in range(6):
        rows = (row + np.arange(4)) % len(shared.params.table)
        seen, rewards, _, _, info = shared.step(rows)
        expected, own_rewards, *_ = joint.step(np.repeat(rows[:, np.newaxis], 3, axis=1))
        np.testing.assert_array_equal(seen, expected)
        np.testing.assert_array_equal(rewards, own_rewards)
        np.testing.assert_array_equal(info["row"], np.repeat(rows[:, np.newaxis], 3, axis=1))
    assert info["action_mask"].shape == (4, len(shared.params.table))
    with pytest.raises(ActionError, match=r"shape \(4, 3\); expected \(4,\), one row per environment"):
        shared.step(np.zeros((4, 3), dtype=int))
    with pytest.raises(ActionError, match="device 0 in environment 2 is 999"):
        shared.step([0, 0, 999, 0])
    with pytest.raises(ConfigError, match="one row says no weights"):
        make(1, **two_devices(), actions="shared")
    with pytest.raises(ConfigError, match="expected one of discrete, multi_discrete, box, shared"):
        make(1, actions="joint")


def test_a_shared_row_is_masked_where_one_device_with_a_request_may_not_take_it() -> None:
    settings = {"schemes": [Conventional(num_steps=(25,))], "link": Link(adaptation="cqi"), "actions": "shared"}
    env = make(200, **settings, num_devices=4, arrivals=ArrivalTrace(num_requests=(1, 0), device_stride=1))
    _, info = env.reset(seed=0)
    is_dead = np.isinf(env.link_state().downlink_s_per_bit).reshape(200, 4)
    is_masked = np.any(is_dead & env.has_request(), axis=1)
    assert 0 < is_masked.sum() < 200
    assert np.any(is_dead.any(axis=1) & ~is_masked)  # a dead link of a device without a request masks nothing
    np.testing.assert_array_equal(info["action_mask"].sum(axis=1), np.where(is_masked, 1, 6))
    env.action_space.seed(0)
    legal = [env.single_action_space.sample(mask) for mask in info["action_mask"]]
    assert np.all(np.isfinite(env.step(np.array(legal))[1]))


def test_a_row_of_cells_masks_shared_rows_as_its_space_samples_them() -> None:
    env = CellEnv(profile=loaded(PHONE), actions="shared", num_devices=3)
    _, info = env.reset(seed=0)
    assert env.action_masks().shape == info["action_mask"].shape == (len(env.params.table),)
    assert env.action_space.contains(env.action_space.sample(info["action_mask"]))
