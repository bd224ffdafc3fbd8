"""Parts of megopt/Cell-v0: arrivals and waiting, batches at the edge, two queues in a row, shares of the band."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from megopt.envs.arrivals import ArrivalTrace, Poisson, Waiting
from megopt.envs.band import stretch
from megopt.envs.batching import BatchCurve
from megopt.envs.cell import CellVectorEnv
from megopt.envs.queueing import LAST_RANK, Demand, Service, serve
from megopt.errors import ConfigError
from megopt.schemes.conventional import Conventional
from megopt.system.channel import Static
from megopt.system.link import Link
from megopt.tables.profile import load_profile

A100 = "a100__snapdragon8gen3__sdxl"
times = st.floats(1e-3, 1e3)


def demand_of(edge_s: Any, alone_s: Any, reach_s: Any = 0.0) -> Demand:
    """Return the demand of one cell whose devices all join."""
    edge = np.atleast_2d(np.asarray(edge_s, dtype=float))
    return Demand(
        is_joining=np.ones(edge.shape, dtype=bool),
        rank=np.searchsorted(np.unique(edge), edge).astype(np.uint16),
        edge_s=edge,
        reach_s=np.broadcast_to(np.asarray(reach_s, dtype=float), edge.shape),
        alone_s=np.broadcast_to(np.asarray(alone_s, dtype=float), edge.shape),
    )


def served(demand: Demand, busy: tuple[float, float] = (0.0, 0.0), **changes: Any) -> Service:
    how: dict[str, Any] = {"curve": BatchCurve.line(max_batch=2), "allocation": "equal", "is_pipelined": True}
    return serve(demand, edge_busy_s=np.array([busy[0]]), band_busy_s=np.array([busy[1]]), **(how | changes))


@given(alone_s=arrays(float, st.integers(1, 12), elements=times), seed=st.integers(0, 2**31))
def test_the_optimal_shares_have_the_least_sum_of_airtimes(alone_s: np.ndarray, seed: int) -> None:
    sums = {name: float(np.sum(alone_s * stretch(name, alone_s))) for name in ("equal", "proportional", "optimal")}
    assert sums["optimal"] == pytest.approx(np.sum(np.sqrt(alone_s)) ** 2, rel=1e-12)
    assert sums["optimal"] <= min(sums["equal"], sums["proportional"]) * (1 + 1e-12)
    weights = np.random.default_rng(seed).uniform(0.01, 1.0, alone_s.size)
    chosen = float(np.sum(alone_s * stretch("chosen", alone_s, weights)))
    assert sums["optimal"] <= chosen * (1 + 1e-12)


@given(alone_s=arrays(float, st.integers(1, 12), elements=st.one_of(st.just(0.0), times)))
def test_shares_fill_the_band_and_those_who_send_nothing_take_none(alone_s: np.ndarray) -> None:
    is_sent = alone_s > 0.0
    weights = np.arange(1.0, alone_s.size + 1.0)
    for name in ("equal", "proportional", "optimal", "chosen"):
        stretched = stretch(name, alone_s, weights)
        assert np.all(stretched[~is_sent] == 1.0)
        if is_sent.any():
            assert np.sum(1.0 / stretched[is_sent]) == pytest.approx(1.0, rel=1e-12)
    proportional = (alone_s * stretch("proportional", alone_s))[is_sent]
    np.testing.assert_allclose(proportional, alone_s.sum(), rtol=1e-12)  # all end together


def test_one_payload_has_the_whole_band() -> None:
    alone_s = np.array([[0.0, 0.7310585786300049, 0.0]])
    for name in ("equal", "proportional", "optimal", "chosen"):
        assert np.all(stretch(name, alone_s, np.full((1, 3), 3.0)) == 1.0)
    assert stretch("optimal", np.array([4.0, 1.0])).tolist() == [1.5, 3.0]  # shares 2/3 and 1/3
    assert stretch("chosen", np.array([4.0, 1.0]), np.array([1.0, 3.0])).tolist() == [4.0, 4.0 / 3.0]


def test_batches_pass_edge_and_band_one_after_another() -> None:
    """Four requests in two batches of two, batches twice as long as their longest member, airtime 1 s alone."""
    demand = demand_of([4.0, 1.0, 3.0, 2.0], 1.0)
    piped = served(demand)
    assert piped.batch_s.tolist() == [[8.0, 4.0, 8.0, 4.0]]
    assert piped.batch_size.tolist() == [[2, 2, 2, 2]]
    assert piped.edge_wait_s.tolist() == [[4.0, 0.0, 4.0, 0.0]]
    assert piped.over_s.tolist() == [[14.0, 6.0, 14.0, 6.0]]  # the first batch is on the air while the second computes
    assert (piped.edge_free_s[0], piped.band_free_s[0], piped.edge_used_s[0]) == (12.0, 14.0, 12.0)
    plain = served(demand, is_pipelined=False)
    assert plain.edge_wait_s.tolist() == [[6.0, 0.0, 6.0, 0.0]]
    assert plain.over_s.tolist() == [[16.0, 6.0, 16.0, 6.0]]
    assert plain.edge_free_s[0] == plain.band_free_s[0] == 16.0
    late = served(demand, busy=(1.5, 9.0))
    assert late.edge_wait_s.tolist() == [[5.5, 1.5, 5.5, 1.5]]
    assert late.band_wait_s.tolist() == [[0.0, 3.5, 0.0, 3.5]]  # 5.5 s ready, 9 s free; then 13.5 s ready, 11 s free
    assert late.over_s.tolist() == [[15.5, 11.0, 15.5, 11.0]]


def test_a_batch_starts_when_its_last_member_has_reached_the_edge() -> None:
    result = served(demand_of([1.0, 1.0], 0.0, reach_s=[0.25, 2.0]))
    assert result.edge_wait_s.tolist() == [[1.75, 0.0]]
    assert result.over_s.tolist() == [[4.0, 4.0]]
    assert result.band_free_s[0] == 0.0


@settings(max_examples=40)
@given(
    edge_s=arrays(float, 7, elements=times),
    alone_s=arrays(float, 7, elements=st.one_of(st.just(0.0), times)),
    busy=st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 100.0)),
    max_batch=st.integers(1, 9),
    slope=st.floats(0.0, 1.0),
    allocation=st.sampled_from(["equal", "proportional", "optimal"]),
)
def test_queues_lose_no_work_and_help_nobody(
    edge_s: np.ndarray,
    alone_s: np.ndarray,
    busy: tuple[float, float],
    max_batch: int,
    slope: float,
    allocation: str,
) -> None:
    curve = BatchCurve.line(max_batch=max_batch, slope=slope)
    demand = demand_of(edge_s, alone_s)
    piped = served(demand, busy=busy, curve=curve, allocation=allocation)
    plain = served(demand, busy=busy, curve=curve, allocation=allocation, is_pipelined=False)
    assert piped.edge_free_s[0] == pytest.approx(busy[0] + piped.edge_used_s[0], rel=1e-12)  # never idle in between
    assert np.all(piped.over_s <= plain.over_s + 1e-9)
    assert np.all(piped.edge_wait_s >= busy[0] - 1e-12)
    assert np.all(piped.band_wait_s >= 0.0)
    assert np.all(piped.stretch >= 1.0 - 1e-12)
    assert np.all(piped.batch_s[0] >= edge_s)
    alone = busy[0] + edge_s + alone_s
    assert np.all(piped.over_s[0] >= alone - 1e-9)
    order = np.argsort(edge_s, kind="stable")
    assert np.all(np.diff(piped.edge_wait_s[0][order]) >= -1e-9)  # shortest first


def test_devices_that_join_no_batch_change_nothing() -> None:
    full = demand_of([2.0, 1.0], [0.5, 0.25])
    idle = Demand(
        is_joining=np.array([[True, False, True]]),
        rank=np.array([[1, LAST_RANK, 0]], dtype=np.uint16),
        edge_s=np.array([[2.0, 0.0, 1.0]]),
        reach_s=np.zeros((1, 3)),
        alone_s=np.array([[0.5, 0.0, 0.25]]),
    )
    first, second = served(full), served(idle)
    assert second.over_s[0, [0, 2]].tolist() == first.over_s[0].tolist()
    assert (second.over_s[0, 1], second.batch_size[0, 1], second.stretch[0, 1]) == (0.0, 0, 1.0)
    assert second.edge_free_s == first.edge_free_s


def mean_wait(load: float, slots_each: int, num_steps: int) -> tuple[float, float, float]:
    """Return mean wait, its standard error and the expected one [s]; the edge takes one request at a time."""
    profile = load_profile("megsplitting_sdxl")
    edge_s, num_devices = profile.cost("edge", "whole_generation").latency_s, 8
    env = CellVectorEnv(
        256,
        profile=profile,
        schemes=[Conventional(num_steps=(25,), image_codecs=(), prompt_bits=0.0)],
        num_devices=num_devices,
        slot_s=edge_s / slots_each,
        arrivals=Poisson(requests_per_s=load / edge_s / num_devices),
        max_batch=1,
        channel=Static(snr_db=10.0),
        link=Link(bandwidth_hz=1e12),  # no airtime to speak of
        episode_length=10**6,
    )
    assert len(env.params.table) == 1
    rows = np.zeros((256, num_devices), dtype=int)
    env.reset(seed=3)
    waited, decided = np.zeros(256), np.zeros(256)
    for step in range(num_steps):
        *_, info = env.step(rows)
        if step >= num_steps // 5:  # the queue has forgotten that it was empty
            waited += np.nansum(env.waiting_s(), axis=1)
            decided += info["num_requests"]
    mean = float(waited.sum() / decided.sum())
    error = float(np.std(waited - mean * decided) * np.sqrt(256) / decided.sum())  # of a ratio over independent cells
    return mean, error, load * edge_s / (2.0 * (1.0 - load))


@pytest.mark.parametrize(
    ("load", "slots_each", "num_steps", "tolerance"),
    [
        (0.5, 4, 600, 0.2),
        pytest.param(0.8, 4, 5000, 0.08, marks=pytest.mark.slow),
        pytest.param(0.3, 1, 5000, 0.08, marks=pytest.mark.slow),
    ],
)
def test_the_mean_wait_is_that_of_pollaczek_and_khinchine(
    load: float, slots_each: int, num_steps: int, tolerance: float
) -> None:
    """M/D/1: W = rho D / (2 (1 - rho)), with requests counted from the slot's beginning and D a whole number of slots.

    Slots change nothing then. With a requests a slot and m slots of work each, unfinished work V obeys
    V' = max(V + m A - 1, 0), so E[V] = (m rho + rho^2 - rho) / (2 (1 - rho)) slots; others of the same slot add
    m a / 2 = rho / 2; the sum is m rho / (2 (1 - rho)) slots. A device that gets two requests at once decides the
    second a slot later, which moves waiting from the edge to the device as long as a request takes at least a slot.
    """
    mean, error, expected = mean_wait(load, slots_each, num_steps)
    assert 4.0 * error < tolerance * expected
    assert abs(mean - expected) < 4.0 * error


def test_batch_curves_hold_the_measured_batches() -> None:
    profile = load_profile(A100)
    curve = BatchCurve.of(profile)
    assert curve.max_batch == 8
    assert curve.latency_ratio[2] == pytest.approx((0.614819 + 25 * 0.18735) / (0.16269 + 25 * 0.107744))
    assert curve.latency_ratio[8] == pytest.approx(21.5383 / 2.8583, rel=0.02)  # the whole run, as published
    assert curve.energy_share[8] == pytest.approx(8315.6 / 8 / 1104.11, rel=0.02)
    assert BatchCurve.of(profile, max_batch=3).latency_ratio[3] == pytest.approx(curve.latency_ratio[[2, 4]].mean())
    is_lost = (profile.compute["component"] == "pipeline_overhead") & (profile.compute["batch_size"] == 8)
    assert BatchCurve.of(replace(profile, compute=profile.compute[~is_lost])).max_batch == 4
    line = BatchCurve.of(load_profile("megsplitting_sdxl"), max_batch=4, slope=0.5)
    assert line.latency_ratio.tolist() == [0.0, 1.0, 1.5, 2.0, 2.5]
    assert line.kind == "modelled"
    with pytest.raises(ConfigError, match="measured batches of 1 to 8; lower max_batch"):
        BatchCurve.of(profile, max_batch=9)
    with pytest.raises(ConfigError, match=r"slope is 1\.5"):
        BatchCurve.line(max_batch=2, slope=1.5)
    with pytest.raises(ConfigError, match="expected 0, 1 and then no smaller"):
        BatchCurve(latency_ratio=np.array([0.0, 1.0, 0.5]), energy_share=np.ones(3), kind="measured")


@settings(max_examples=50)
@given(counts=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=30))
def test_requests_wait_in_order_and_are_lost_where_there_is_no_place(counts: list[list[int]]) -> None:
    waiting, models = Waiting.nobody(2, 3), [deque[int](), deque[int]()]
    for number, row in enumerate(counts):
        slot = np.full(2, number)
        waiting, lost = waiting.without_oldest().with_arrivals(np.array(row), slot)
        for device, model in enumerate(models):
            if model:
                model.popleft()
            taken = min(row[device], 3 - len(model))
            model.extend([number] * taken)
            assert lost[device] == row[device] - taken
            assert waiting.num_waiting[device] == len(model)
            assert waiting.waited_slots(slot + 5)[device] == (number + 5 - model[0] if model else 0)


def test_arrivals_have_their_rates_and_replay_their_records(tmp_path: Path) -> None:
    rng, slot = np.random.default_rng(0), np.zeros(20_000, dtype=np.int64)
    counts = Poisson(requests_per_s=[0.1, 0.0, 2.0]).counts(rng, slot, 3, 0.5)
    for mean, column in zip((0.05, 0.0, 1.0), counts.T, strict=True):
        assert abs(column.mean() - mean) <= 4.0 * np.sqrt(mean / 20_000)
        assert abs(column.var() - mean) <= 8.0 * np.sqrt((mean + 2.0 * mean**2) / 20_000)
    (tmp_path / "trace.csv").write_text("num_requests\n1\n0\n2\n")
    trace = ArrivalTrace(num_requests=tmp_path / "trace.csv", device_stride=1)
    assert trace.counts(rng, np.array([0, 4]), 3, 1.0).tolist() == [[1, 0, 2], [0, 2, 1]]
    (tmp_path / "other.csv").write_text("requests\n1\n")
    for wrong, message in (
        (lambda: ArrivalTrace(num_requests=tmp_path / "none.csv"), "no such file; expected a csv"),
        (lambda: ArrivalTrace(num_requests=tmp_path / "other.csv"), "columns are requests"),
        (lambda: ArrivalTrace(num_requests=[1, -1]), "num_requests is -1 at index 1"),
        (lambda: ArrivalTrace(num_requests=[0.5]), "0.5 in a row; expected whole numbers"),  # type: ignore[list-item]
        (lambda: ArrivalTrace(num_requests=[]), "no rows"),
        (lambda: Poisson(requests_per_s=-1.0), "requests_per_s is -1"),
        (lambda: Poisson(requests_per_s=[1.0, 2.0]).check(3), "or 3: one per device"),
    ):
        with pytest.raises(ConfigError, match=message):
            wrong()
