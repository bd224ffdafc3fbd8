"""Actions of megopt/Request-v0: rows, knobs and points; masks; bad actions and their messages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import megopt.envs  # noqa: F401  registers the environments
from megopt.envs import scenarios
from megopt.envs.actions import ActionError, ActionMap, dimensions_of
from megopt.envs.request import RequestEnv, RequestVectorEnv
from megopt.errors import ConfigError
from megopt.problem import Problem
from megopt.schemes.action_table import concat
from megopt.schemes.conventional import Conventional
from megopt.schemes.step_split import StepSplit
from megopt.system.link import Link
from tests.environments import PHONE, loaded
from tests.plain_tables import limits_of


def make(num_envs: int, **settings: Any) -> RequestVectorEnv:
    return RequestVectorEnv(num_envs, **settings)


def test_rows_that_were_not_measured_are_masked() -> None:
    problem = Problem(objective="quality", metric="fid", limits=limits_of(latency_s=9.0))
    env = RequestEnv(problem=problem)
    _, info = env.reset(seed=0)
    is_known = np.isfinite(env.params.table.metric("fid"))
    assert 0 < is_known.sum() < len(is_known)
    np.testing.assert_array_equal(info["action_mask"], is_known)
    env.action_space.seed(0)
    for _ in range(20):
        _, gained, *_, info = env.step(env.action_space.sample(info["action_mask"]))
        assert np.isfinite(gained)
    lost = int(np.argmin(is_known))
    with pytest.raises(ActionError, match=f"environment 0 is row {lost}, which is masked"):
        env.step(lost)
    clipped = make(2, problem=problem, bad_actions="clip")
    clipped.reset(seed=0)
    assert np.all(is_known[clipped.step([lost, lost])[4]["row"]])
    for kind in ("multi_discrete", "box"):
        named = ActionMap.of(env.params.table, is_known, kind, "raise")
        assert np.all(is_known[named.lookup])


def test_a_dead_link_masks_what_needs_it() -> None:
    settings = {"profile": loaded(PHONE), "schemes": [Conventional(num_steps=(25,))], "link": Link(adaptation="cqi")}
    env = make(400, **settings)
    _, info = env.reset(seed=0)
    is_dead = np.isinf(env.link_state().downlink_s_per_bit)
    assert 0 < is_dead.sum() < 400
    np.testing.assert_array_equal(info["action_mask"].sum(axis=1), np.where(is_dead, 1, 6))
    with pytest.raises(ActionError, match=f"environment {np.argmax(is_dead)} is row 0"):
        env.step(np.zeros(400, dtype=int))
    clipped = make(400, **settings, bad_actions="clip")
    clipped.reset(seed=0)
    _, rewards, _, _, info = clipped.step(np.zeros(400, dtype=int))
    np.testing.assert_array_equal(info["row"], np.where(is_dead, 5, 0))
    assert np.all(np.isfinite(rewards))
    with pytest.raises(ConfigError, match="add a scheme that can do without"):
        make(1, link=Link(adaptation="cqi"))


BAD: list[tuple[str, Any, str]] = [
    ("discrete", [0, 161], "environment 1 is 161"),
    ("discrete", [-1, 0], "environment 0 is -1"),
    ("discrete", [0.0, np.nan], "environment 0 is 0.0 \\(float64\\); expected a whole number from 0 to 160"),
    ("discrete", [0, 1, 2], "shape \\(3,\\); expected \\(2,\\)"),
    ("multi_discrete", [[0, 0, 0, 0], [0, 13, 0, 0]], "environment 1 is \\[ 0 13  0  0\\]"),
    ("box", [[0, 0, 0, 0], [0, np.nan, 0, 0]], "environment 1 is .*nan.*expected numbers from -1 to 1: scheme"),
    ("box", [[0, 1.1, 0, 0], [0, 0, 0, 0]], "environment 0 .*bad_actions=.clip"),
]


@pytest.mark.parametrize(("kind", "actions", "message"), BAD)
def test_bad_actions_name_environment_and_remedy(kind: str, actions: Any, message: str) -> None:
    env = make(2, actions=kind)
    env.reset(seed=0)
    with pytest.raises(ActionError, match=message):
        env.step(actions)


def test_bad_actions_are_clipped_where_that_is_asked_for() -> None:
    for kind, actions, rows in (
        ("discrete", [-3, 999], [0, 160]),
        ("multi_discrete", [[1, -1, 0, 0], [9, 99, 99, 0]], [5, 160]),
        ("box", [[1, -9, -1, -1], [1, 5, 5, 0]], [5, 160]),
    ):
        env = make(2, actions=kind, bad_actions="clip")
        env.reset(seed=0)
        assert env.step(actions)[4]["row"].tolist() == rows
    with pytest.raises(ActionError, match="nan"):
        env.step([[0, 0, 0, np.nan], [0, 0, 0, 0]])


@pytest.mark.parametrize("settings", [{}, {"profile": PHONE}])
def test_every_row_can_be_named_by_knobs_and_by_points(settings: dict[str, Any]) -> None:
    params = scenarios.request(**settings)
    dimensions, rows = dimensions_of(params.table), np.arange(len(params.table))
    index = np.stack([np.maximum(d.index, 0) for d in dimensions], axis=-1)
    points = np.stack([d.coordinates[i] for d, i in zip(dimensions, index.T, strict=True)], axis=-1)
    by_knob = ActionMap.of(params.table, params.is_offered, "multi_discrete", "raise")
    by_point = ActionMap.of(params.table, params.is_offered, "box", "raise")
    np.testing.assert_array_equal(by_knob.rows(index, len(rows)), rows)
    np.testing.assert_array_equal(by_point.rows(points.astype(np.float32), len(rows)), rows)


def test_combinations_without_a_row_stand_for_the_nearest_of_their_scheme() -> None:
    profile = loaded(PHONE)
    table = concat([StepSplit(num_steps=(25,), split_steps=k).compile(profile) for k in ((1, 2), (3,))])
    table = replace(table, settings=np.array([[5.0, 4.0], [5.0, 2.0], [12.0, 10.0]]), knobs=table.knobs[:2])
    named = ActionMap.of(table, np.ones(len(table), dtype=bool), "multi_discrete", "raise")
    steps, split = (d.values for d in dimensions_of(table))
    row = int(named.rows([[int(np.argmax(steps == 5)), int(np.argmax(split == 10))]], 1)[0])
    assert table.settings[row].tolist() == [5.0, 4.0]  # 9/16 of the range away; the other is 2 steps of range off
