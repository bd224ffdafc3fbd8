"""Searches: known optima, resuming without a trace of the interruption, limits, faults and messages."""

from __future__ import annotations

import json
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from megopt.analysis.pareto import is_non_dominated
from megopt.analysis.records import RECORD
from megopt.application import run_verb
from megopt.errors import ConfigError, NotOfferedError
from megopt.sweeps.grid import Planner
from megopt.sweeps.launchers import Kept, Local
from megopt.sweeps.measured import measured
from megopt.sweeps.search import Found, search
from megopt.sweeps.search_plan import Search
from megopt.sweeps.search_space import Range, space_of
from megopt.sweeps.store import Store

pytest.importorskip("optuna")
CONFIG = {"x": 0.5, "k": 2, "way": "a", "seed": 0}
SPACE = {"x": {"low": 0.0, "high": 1.0}, "k": {"low": 1, "high": 3}, "way": ["a", "b"]}
MEMORY = "sqlite:///:memory:"


def records_of_config(config: Any) -> pd.DataFrame:
    """Latency is least at x = 0.3, energy falls with x; x beyond 0.9 is not offered, way b breaks limits."""
    if config.x > 0.9:
        message = "x beyond 0.9 is not offered"
        raise NotOfferedError(message)
    values = {"text": "p", "float": 1.0, "int": 0}
    frame = pd.DataFrame({column.name: [values[column.dtype]] * 2 for column in RECORD})
    violation = 0.5 if config.way == "b" else 0.0
    return frame.assign(latency_s=1.0 + (config.x - 0.3) ** 2, energy_j=config.k - config.x, violation=violation)


class InProcess:
    """Carries runs out in this process; Ctrl-C comes with the run number `stops_at`."""

    num_workers = 1

    def __init__(self, stops_at: int = -1, runs_per_task: int = 1) -> None:
        self.stops_at, self.runs_per_task, self.num_runs = stops_at, runs_per_task, 0

    @contextmanager
    def start(self) -> Any:
        yield _Here(self)


class _Here(Executor):
    def __init__(self, owner: InProcess) -> None:
        self.owner = owner

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.owner.num_runs == self.owner.stops_at:
            raise KeyboardInterrupt
        self.owner.num_runs += 1
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture(autouse=True)
def _call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megopt.sweeps.worker.function_at", lambda path: records_of_config)


def a_search(num_trials: int = 12, space: dict[str, Any] | None = None, **settings: Any) -> Search:
    config = OmegaConf.create(CONFIG)
    planner = Planner(config=config, compose=lambda groups: config.copy(), name="s", call="json.dumps", tree="space")
    given = {"objectives": {"latency_s": "minimize"}, "limits": {}, "batch": 4, **settings}
    return Search(planner=planner, space=space_of(OmegaConf.create(space or SPACE)), num_trials=num_trials, **given)


def found_by(plan: Search, folder: Path, launcher: Any = None, storage: str = MEMORY) -> Found:
    return search(plan, Store(folder=folder), launcher or InProcess(), storage)


def chosen(found: Found) -> list[dict[str, Any]]:
    return [trial.params for trial in found.trials]


def values(found: Found) -> list[list[float] | None]:
    return [trial.values for trial in found.trials]  # noqa: PD011  # Optuna's


@pytest.mark.slow
def test_one_objective_is_brought_near_its_least_value(tmp_path: Path) -> None:
    found = found_by(a_search(24, {"x": SPACE["x"]}), tmp_path)
    (best,) = found.best
    assert len(found.trials) == 24
    assert abs(found.trials[best].params["x"] - 0.3) < 0.05
    assert values(found)[best] == [pytest.approx(1.0, abs=0.0025)]


@pytest.mark.slow
def test_a_search_that_is_interrupted_and_resumed_has_the_trials_of_an_unbroken_one(tmp_path: Path) -> None:
    unbroken = found_by(a_search(), tmp_path / "unbroken", InProcess(runs_per_task=3))
    storage = f"sqlite:///{tmp_path}/studies.sqlite3"
    stopped = found_by(a_search(), tmp_path / "broken", InProcess(stops_at=6), storage)
    assert stopped.is_interrupted
    assert sum(trial.state.is_finished() for trial in stopped.trials) == 4
    launcher = InProcess()
    again = found_by(a_search(), tmp_path / "broken", launcher, storage)
    assert (again.num_before, again.is_interrupted) == (4, False)
    assert launcher.num_runs == 6  # of the eight that were left, two had their records
    assert chosen(again) == chosen(unbroken)
    assert values(again) == values(unbroken)
    more = found_by(a_search(16), tmp_path / "broken", launcher, storage)
    assert chosen(more)[:12] == chosen(again)


@pytest.mark.slow
def test_the_front_is_what_no_trial_within_the_limits_dominates(tmp_path: Path) -> None:
    objectives = {"latency_s": "minimize", "energy_j": "maximize"}
    found = found_by(a_search(16, objectives=objectives, limits={"violation_rate": 0.0}), tmp_path)
    told = {number: value for number, value in enumerate(values(found)) if value}
    inside = [number for number in told if found.trials[number].params["way"] == "a"]
    is_best = is_non_dominated(np.array([told[number] for number in inside]) * [1.0, -1.0])
    expected = {number for number, is_kept in zip(inside, is_best, strict=True) if is_kept}
    assert set(found.best) == expected
    assert 0 < len(inside) < len(told)


def test_what_is_not_offered_is_a_trial_without_values(tmp_path: Path) -> None:
    found = found_by(a_search(4, {"x": [0.95, 0.99]}, sampler="random"), tmp_path)
    assert found.best == []
    assert {trial.user_attrs["message"] for trial in found.trials} == {"x beyond 0.9 is not offered"}
    assert found.faults == []


@pytest.mark.parametrize(
    "sampler", ["nsga2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("nsga3", "gp"))]
)
def test_every_sampler_does_its_trials(sampler: str, tmp_path: Path) -> None:
    objectives = {"latency_s": "minimize", "energy_j": "minimize"}
    found = found_by(a_search(12, objectives=objectives, sampler=sampler), tmp_path)
    assert len(found.trials) == 12
    assert found.best


def test_another_search_of_the_same_name_is_refused(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/studies.sqlite3"
    found_by(a_search(1), tmp_path, storage=storage)
    with pytest.raises(
        ConfigError, match=r"search s was begun with seed = 0, now it is 1; set it back, or begin anoth"
    ):
        found_by(a_search(1, seed=1), tmp_path, storage=storage)
    with pytest.raises(ConfigError, match=r"begun with space\.k = \[1,3,false,null\], now it is null"):
        found_by(a_search(1, {"x": SPACE["x"]}), tmp_path, storage=storage)
    with pytest.raises(ConfigError, match=r"storage = 'nowhere'.*expected an address such as sqlite"):
        found_by(a_search(1), tmp_path, storage="nowhere")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "expected keys with ranges or choices"),
        ({"x": 3}, r"space.x is 3; expected choices, space.x=\[3\], or a range, {low: 0, high: 1}"),
        ({"x": {"low": 1, "high": 1}}, "expected low < high; to keep a value fixed, set the key itself"),
        ({"x": {"low": 1, "hihg": 2}}, "space.x has hihg; expected low and high"),
        ({"x": {"high": 2}}, "space.x lacks low"),
        ({"x": {"low": 0.0, "high": 1.0, "log": True}}, "log: true needs low > 0"),
        ({"x": {"low": 0.0, "high": "a"}}, "expected finite numbers"),
        ({"x": {"low": 0.0, "high": 1.0, "step": 2.0}}, "expected a step from above 0 to high - low"),
        ({"batch": [1, 2]}, "batch belongs to the sweep as a whole; set it outside of space"),
        ({"x": []}, "expected at least one value"),
    ],
)
def test_spaces_that_make_no_sense_are_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(OmegaConf.create(space))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "tpee"}, "sampler: 'tpee'; expected one of tpe, gp, nsga2"),
        ({"objectives": {"latency": "minimize"}}, "objectives: 'latency'; expected one of .*latency_s"),
        ({"objectives": {"latency_s": "min"}}, "objectives.latency_s: 'min'; expected one of minimize, maximize"),
        ({"objectives": {}}, "objectives is empty"),
        ({"limits": {"outage_rate": "low"}}, "limits.outage_rate is 'low'; expected a number"),
        ({"batch": 0}, "batch is 0; expected a whole number from 1"),
    ],
)
def test_searches_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        a_search(**settings)


def test_whole_ends_make_whole_numbers() -> None:
    assert Range(key="k", low=1, high=3).is_whole
    assert not Range(key="k", low=1, high=3, step=0.5).is_whole
    assert not Range(key="k", low=1.0, high=3.0).is_whole


def test_means_of_several_policies_are_not_mixed() -> None:
    records = records_of_config(OmegaConf.create(CONFIG))
    assert measured(records, ["latency_s", "outage_rate"]) == {"latency_s": pytest.approx(1.04), "outage_rate": 0.0}
    lost = records.assign(latency_s=[np.inf, 2.0])
    assert measured(lost, ["latency_s", "outage_rate"]) == {"latency_s": 2.0, "outage_rate": 0.5}
    assert np.isnan(measured(records.assign(quality=[1.0, np.nan]), ["quality"])["quality"])
    with pytest.raises(ConfigError, match=r"several values of policy \(p, q\); expected one"):
        measured(records.assign(policy=["p", "q"]), ["latency_s"])


def test_a_kept_executor_stays_and_one_that_broke_is_replaced() -> None:
    from concurrent.futures import BrokenExecutor

    with Kept(Local(num_workers=1)) as kept:
        with kept.start() as first:
            pass
        with kept.start() as second:
            assert second is first
        with pytest.raises(BrokenExecutor), kept.start():
            raise BrokenExecutor
        with kept.start() as third:
            assert third is not first


BAD_INPUT = [
    ("num_trials=0", "num_trials is 0; expected a whole number from 1"),
    ("sampler=best", "sampler: 'best'; expected one of"),
    ("latency_limit_s=1", "latency_limit_s is set and is an axis of the sweep as well; narrow the axis, space."),
    ("+space.channel.snr=[1,2]", "space.channel.snr: the configuration has no key 'channel.snr' (did you mean"),
    ("objectives.latency_s=less", "expected one of minimize, maximize"),
    ("space.policy=[optimal,optimall]", "Could not find 'policy/optimall'"),
    ("num_trial=3", "search has no key 'num_trial'; did you mean num_trials?"),
]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param(*pair, id=pair[0], marks=[] if number % 3 == 0 else pytest.mark.slow)
        for number, pair in enumerate(BAD_INPUT)
    ],
)
def test_bad_input_gets_one_line(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_verb("search", [override, "launcher.num_workers=1"]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
    assert not list(tmp_path.glob("outputs/results/*"))  # no study was begun with it


@pytest.mark.slow
def test_the_verb_searches_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = ["num_traces=2", "num_requests=4", "batch=3", "output=json", "launcher.num_workers=1"]
    reports = []
    for num_trials in (3, 6):
        assert run_verb("search", [*overrides, f"num_trials={num_trials}"]) in {0, 2}
        reports.append(json.loads(capfd.readouterr().out.strip().splitlines()[-1]))
    assert [(each["num_before"], each["num_trials"]) for each in reports] == [(0, 3), (3, 6)]
    assert len(list(tmp_path.glob("outputs/results/sweep=design/*.parquet"))) >= 4
    assert (tmp_path / "outputs" / "results" / "studies.sqlite3").is_file()
