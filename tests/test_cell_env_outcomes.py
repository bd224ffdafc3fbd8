"""What requests cost in megopt/Cell-v0: one device equals Request-v0, rewards, costs, latency, energy, reports."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

import megopt.envs  # noqa: F401  registers the environments
from megopt.envs.arrivals import ArrivalTrace
from megopt.envs.cell_episode import CellReport
from megopt.envs.request import RequestVectorEnv
from megopt.problem import ceilings, costs, evaluate, reward, violations
from megopt.schemes.conventional import Conventional
from megopt.system.channel import Static
from megopt.system.link import Link
from megopt.system.outcome import COST_QUANTITIES
from tests.environments import PHONE, cell_settings, loaded, make_cell, random_rows

ALLOCATIONS = ("equal", "proportional", "optimal", "chosen")


@pytest.mark.parametrize("allocation", ["equal", "optimal"])
def test_one_device_without_queues_is_request_v0(allocation: str) -> None:
    """One request in every slot, slots longer than any request: the very numbers of Request-v0 and of the problem."""
    shared = {name: cell_settings()[name] for name in ("profile", "schemes", "channel", "link", "problem")}
    request = RequestVectorEnv(6, **shared)
    one: dict[str, Any] = {"num_devices": 1, "slot_s": 1e4, "arrivals": ArrivalTrace(num_requests=(1,))}
    cell = make_cell(6, **shared, **one, allocation=allocation, episode_length=64)
    request.reset(seed=2)
    cell.reset(seed=2)
    for rows in random_rows(cell, 70):
        link, problem = cell.link_state(), cell.params.problem
        expected = evaluate(cell.params.table, rows[:, 0], link, problem.metric)
        observation, rewards, _, truncated, info = request.step(rows[:, 0])
        seen, gained, _, ended, own = cell.step(rows)
        np.testing.assert_allclose(gained, rewards, rtol=0, atol=1e-9)
        np.testing.assert_allclose(own["costs"], info["costs"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(own["cost"], info["cost"], rtol=0, atol=1e-9)
        for field in fields(expected):
            mine, theirs = getattr(cell.outcome(), field.name)[:, 0], getattr(expected, field.name)
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-9, err_msg=field.name)
        assert np.all(cell.waiting_s() == 0.0)
        np.testing.assert_array_equal(truncated, ended)
        np.testing.assert_allclose(seen[:, 0], observation[:, 0], atol=1e-6)


@pytest.mark.parametrize(("allocation", "is_pipelined"), [("optimal", True), ("chosen", True), ("equal", False)])
def test_reward_and_costs_are_those_of_the_problem_and_latency_has_no_gap(allocation: str, is_pipelined: bool) -> None:
    env = make_cell(6, **cell_settings() | {"allocation": allocation, "is_pipelined": is_pipelined})
    problem, work = env.params.problem, env.params.table.work
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    waited = batched = 0.0
    for rows in random_rows(env, 30):
        had_request, link = env.has_request(), env.link_state()
        weights = [rng.integers(0, 8, rows.shape)] if allocation == "chosen" else []
        _, rewards, _, _, info = env.step(np.concatenate([rows, *weights], axis=1))
        result = env.outcome()
        np.testing.assert_array_equal(info["row"], np.where(had_request, rows, -1))
        np.testing.assert_array_equal(info["num_requests"], had_request.sum(axis=1))
        for cell in range(6):
            own = had_request[cell]
            of_cell = type(result)(**{f.name: getattr(result, f.name)[cell][own] for f in fields(result)})
            assert rewards[cell] == pytest.approx(reward(of_cell, problem).sum(), rel=1e-12)
            assert info["costs"][cell] == pytest.approx(costs(of_cell, problem).sum(axis=0), rel=1e-12)
            assert info["cost"][cell] == pytest.approx(violations(of_cell, problem).sum(), rel=1e-12)
        parts = result.edge_s + result.device_s + result.downlink_s + result.uplink_s
        rest = env.waiting_s() + 0.02 * work.num_round_trips[rows]
        np.testing.assert_allclose(result.latency_s, parts + rest, rtol=1e-12)
        assert np.all(env.waiting_s()[had_request] >= 0.0)
        np.testing.assert_allclose(result.energy_j, result.edge_energy_j + result.device_energy_j, rtol=1e-12)
        alone = work.downlink_bits[rows] * link.downlink_s_per_bit.reshape(rows.shape)
        assert np.all(result.downlink_s[had_request] >= alone[had_request] * (1.0 - 1e-12))
        share = env.params.curve.energy_share[env._latest().service.batch_size]
        spent_j = share * work.edge_energy_j[rows] + 4.7 * alone  # shares of the band cost the edge's radio nothing
        np.testing.assert_allclose(result.edge_energy_j[had_request], spent_j[had_request], rtol=1e-12)
        waited += np.nansum(env.waiting_s())
        batched += np.nansum(result.edge_s > work.edge_s[rows] * 1.01)
    assert waited > 0.0
    assert batched > 0


@pytest.mark.parametrize("is_pipelined", [True, False])
def test_waiting_by_hand(is_pipelined: bool) -> None:
    """Two devices, two requests each at first, one at a time at the edge; the band is slower than the edge."""
    schemes = [Conventional(num_steps=(25,), image_codecs=(), prompt_bits=0.0)]
    settings: dict[str, Any] = {"num_devices": 2, "slot_s": 1.0, "arrivals": ArrivalTrace(num_requests=(2, 0, 0, 0))}
    settings |= {"channel": Static(snr_db=0.0), "link": Link(bandwidth_hz=2e5), "profile": PHONE}
    env = make_cell(1, schemes=schemes, **settings, max_batch=1, is_pipelined=is_pipelined)
    model_split = int(np.argmax(env.params.table.work.edge_s))
    edge_s, air_s = (
        float(env.params.table.work.edge_s[model_split]),
        env.params.table.work.downlink_bits[model_split] / 2e5,
    )
    device_s = float(env.params.table.work.device_s[model_split])
    assert air_s > edge_s
    assert device_s < air_s  # so no request waits for its device
    env.reset(seed=0)
    over = [edge_s + (k + 1) * air_s if is_pipelined else (k + 1) * (edge_s + air_s) for k in range(4)]
    for slot in range(2):
        env.step([[model_split, model_split]])
        latency_s = env.outcome().latency_s[0]
        assert latency_s == pytest.approx([over[2 * slot] + device_s, over[2 * slot + 1] + device_s], rel=1e-12)
        assert env.waiting_s()[0] == pytest.approx(latency_s - edge_s - air_s - device_s, abs=1e-9)
    env.step([[model_split, model_split]])
    assert np.isnan(env.outcome().latency_s).all()


def test_a_busy_device_finishes_one_request_after_another() -> None:
    """Device only takes 20.23 s, a slot 10 s: the k-th of one request a slot waits k times the difference."""
    schemes = [Conventional(num_steps=(25,), image_codecs=())]
    env = make_cell(1, profile=loaded(PHONE), schemes=schemes, num_devices=1, slot_s=10.0, arrivals=ArrivalTrace())
    device_only = int(np.argmin(env.params.table.work.edge_s))
    alone_s = float(env.params.table.work.device_s[device_only])
    env.reset(seed=0)
    for k in range(5):
        env.step([[device_only]])
        assert env.waiting_s()[0, 0] == pytest.approx(k * (alone_s - 10.0), rel=1e-12)
        assert env.outcome().latency_s[0, 0] == pytest.approx(alone_s + k * (alone_s - 10.0), rel=1e-12)


def test_the_band_is_emptied_soonest_by_proportional_and_least_summed_by_optimal_shares() -> None:
    """Model split of all devices in one batch, so the airtimes differ by the SNR alone."""
    shared: dict[str, Any] = {"profile": PHONE, "schemes": [Conventional(num_steps=(25,), image_codecs=())]}
    shared |= {"num_devices": 8, "arrivals": ArrivalTrace(), "slot_s": 1e4, "link": Link(bandwidth_hz=1e6)}
    airtime = {}
    for allocation in ALLOCATIONS:
        env = make_cell(40, **shared, allocation=allocation)
        env.reset(seed=1)
        rows = np.full((40, 8), int(np.argmax(env.params.table.work.edge_s)))
        ones = [np.full((40, 8), 3)] if allocation == "chosen" else []
        env.step(np.concatenate([rows, *ones], axis=1))
        airtime[allocation] = env.outcome().downlink_s
        assert np.all(env._latest().service.batch_size == 8)
    np.testing.assert_allclose(airtime["chosen"], airtime["equal"], rtol=1e-12)
    np.testing.assert_allclose(airtime["proportional"], airtime["proportional"][:, :1] * np.ones(8), rtol=1e-12)
    last = {name: values.max(axis=1) for name, values in airtime.items()}
    total = {name: values.sum(axis=1) for name, values in airtime.items()}
    assert np.all(last["proportional"] < last["optimal"])
    assert np.all(last["optimal"] < last["equal"])
    assert np.all(total["optimal"] < total["equal"])
    np.testing.assert_allclose(total["equal"], total["proportional"], rtol=1e-12)


def test_final_observation_and_report_of_an_episode() -> None:
    settings = cell_settings() | {"episode_length": 30, "deadline_s": 15.0}
    env, by_hand = make_cell(3, **settings), make_cell(3, **settings, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=2)
    by_hand.reset(seed=2)
    latency, waited, late, lost, spent = [], [], 0, 0, []
    for step, rows in enumerate(random_rows(env, 30)):
        auto, _, _, truncated, info = env.step(rows)
        kept, *_, own = by_hand.step(rows)
        latency.append(env.outcome().latency_s)
        waited.append(env.waiting_s())
        spent.append(info["costs"])
        np.testing.assert_array_equal(info["num_late"], np.sum(latency[-1] > 15.0, axis=1))
        late, lost = late + info["num_late"], lost + info["num_lost"]
        assert ("final_obs" in info) == (step == 29) == bool(truncated.all())
    np.testing.assert_array_equal(info["final_obs"], kept)
    assert np.all(info["final_obs"][:, -1] == 1.0)
    assert np.all(auto[:, -3:] == 0.0)
    final = info["final_info"]["final"]
    assert set(final) == {field.name for field in fields(CellReport)}
    count = np.isfinite(latency).sum(axis=(0, 2))
    np.testing.assert_array_equal(final["num_requests"], count)
    np.testing.assert_array_equal(final["num_lost"], lost)
    assert lost.sum() > 0
    assert 0 < late.sum() < count.sum()
    np.testing.assert_allclose(final["latency_s"], np.nansum(latency, axis=(0, 2)) / count)
    np.testing.assert_allclose(final["waiting_s"], np.nansum(waited, axis=(0, 2)) / count)
    np.testing.assert_allclose(final["costs"], np.sum(spent, axis=0) / count[:, np.newaxis])
    np.testing.assert_array_equal(final["is_kept"], final["costs"] <= ceilings(env.params.problem))
    np.testing.assert_allclose(final["late_rate"], late / count)
    assert np.all(final["edge_load"] > 0.0)
    assert "final_obs" not in own
    with pytest.raises(ResetNeeded, match="environment 0"):
        by_hand.step(rows)


def test_what_is_seen_of_a_cell() -> None:
    env = make_cell(
        1, **cell_settings(2) | {"channel": Static(snr_db=10.0), "arrivals": ArrivalTrace(num_requests=(2, 0))}
    )
    scale_s = 60.0  # the limit on the latency
    first, _ = env.reset(seed=0)
    assert first.tolist() == [[0.0, 0.0, *np.float32([2 / 3, 2 / 3]), *[0.0] * 6, 0.0, 0.0, 0.0]]
    split = int(np.argmin(np.abs(env.params.table.work.edge_s - 2.6)))
    seen, *_ = env.step([[split, split]])
    assert seen[0, 2:4] == pytest.approx([1 / 3, 1 / 3])
    assert seen[0, 4:6] == pytest.approx([4.0 / 64.0] * 2)  # one slot of 4 s
    latency_s = env.outcome().latency_s[0]
    assert seen[0, 8:10] == pytest.approx(latency_s / (latency_s + scale_s))
    service = env._latest().service
    for place, free_s in ((-3, service.edge_free_s[0]), (-2, service.band_free_s[0])):
        assert seen[0, place] == pytest.approx((free_s - 4.0) / (free_s - 4.0 + scale_s))
    assert seen[0, -1] == pytest.approx(1 / 90)
    assert env.outcome().device_s[0, 0] > 0.0
    busy_s = latency_s - 4.0
    assert seen[0, 6:8] == pytest.approx(busy_s / (busy_s + scale_s))


def test_the_measured_energies_are_all_reported() -> None:
    env = make_cell(2, profile=loaded(PHONE))
    assert set(env.params.terms.measured) >= set(COST_QUANTITIES)
    env.reset(seed=0)
    for rows in random_rows(env, 256):
        *_, info = env.step(rows)
    for name in COST_QUANTITIES:
        assert np.all(info["final"][name] > 0.0)
