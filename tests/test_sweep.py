"""Grids, the store, and what becomes of runs: known numbers, failure messages, workers that die."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from megopt.analysis.records import RECORD
from megopt.errors import ConfigError, NotOfferedError, ProblemError
from megopt.sweeps.axes import axes_of, require_apart
from megopt.sweeps.chosen_knobs import CHOSEN
from megopt.sweeps.clusters import Submitit
from megopt.sweeps.execution import execute
from megopt.sweeps.grid import runs_of
from megopt.sweeps.launchers import Joblib, Local, for_workers, require_engine
from megopt.sweeps.run import Run, RunStatus, function_at, json_text
from megopt.sweeps.store import Store, require_sweep_name

CONFIG = {"channel": {"snr_db": 10.0}, "seed": 0, "problem": {"limits": [1.0]}, "axes": {}, "output": "table"}


def records_of_config(config: Any) -> pd.DataFrame:
    """A library call with known records, and with known faults for some seeds."""
    if config.seed == 97:
        message = "seed is 97; expected another"
        raise ConfigError(message)
    if config.seed == 98:
        message = "the profile has no such row"
        raise NotOfferedError(message)
    if config.seed == 99:
        message = "bug"
        raise ZeroDivisionError(message)
    values = {"text": "x", "float": float(config.seed), "int": config.seed}
    return pd.DataFrame({column.name: [values[column.dtype]] * 3 for column in RECORD})


def a_run(seed: int = 0, call: str = "tests.records") -> Run:
    return Run.of(sweep="test", call=call, overrides=[f"seed={seed}"], config={**CONFIG, "seed": seed})


class Here(Executor):
    """Runs in this process; the worker dies where `dies` says so."""

    def __init__(self, dies: Any) -> None:
        self.dies = dies

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self.dies(args[0]):
            future.set_exception(RuntimeError("worker was killed"))
        else:
            future.set_result(fn(*args, **kwargs))
        return future


class InProcess:
    num_workers = 1
    runs_per_task = 2

    def __init__(self, dies: Any = lambda task: False) -> None:
        self.dies = dies
        self.num_starts = 0

    @contextmanager
    def start(self) -> Any:
        self.num_starts += 1
        yield Here(self.dies)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Five runs whose call is in this file, which importlib mode keeps out of sys.modules."""
    monkeypatch.setattr("megopt.sweeps.worker.function_at", lambda path: records_of_config)
    return [a_run(seed) for seed in range(5)]


# ---- grid


def planned(axes: dict[str, Any], config: dict[str, Any] | None = None) -> list[Run]:
    node = OmegaConf.create({**(config or CONFIG), "axes": axes})
    return runs_of(node, axes_of(node.axes), lambda groups: node, name="test", call="json.dumps")


def test_the_grid_is_the_product_of_the_axes_with_the_last_fastest() -> None:
    found = planned({"seed": [0, 1], "channel": {"snr_db": [0, 10, 20]}})
    assert [(run.config["seed"], run.config["channel"]["snr_db"]) for run in found] == [
        (seed, snr_db) for seed in (0, 1) for snr_db in (0, 10, 20)
    ]
    assert found[1].overrides == ("seed=0", "channel.snr_db=10")
    assert "axes" not in found[0].config
    assert "output" not in found[0].config


def test_interpolations_follow_the_axis() -> None:
    config = {"seed": 0, "child": {"seed": "${seed}"}}
    assert [run.config["child"]["seed"] for run in planned({"seed": [3, 4]}, config)] == [3, 4]


def test_without_axes_there_is_one_run() -> None:
    assert [run.overrides for run in planned({})] == [()]


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True), min_size=1, max_size=3))
def test_names_of_runs_are_distinct_and_repeat(values: list[list[int]]) -> None:
    config = {f"k{i}": 0 for i in range(len(values))}
    axes = {f"k{i}": each for i, each in enumerate(values)}
    names = [run.run_id for run in planned(axes, config)]
    assert len(set(names)) == np.prod([len(each) for each in values])
    assert names == [run.run_id for run in planned(axes, config)]


def test_the_name_of_a_run_does_not_depend_on_the_order_of_keys_nor_on_its_sweep() -> None:
    one = Run.of(sweep="a", call="c", overrides=[], config={"x": 1, "y": np.inf})
    other = Run.of(sweep="b", call="c", overrides=["x=1"], config={"y": np.inf, "x": 1})
    assert one.run_id == other.run_id
    assert one.run_id != Run.of(sweep="a", call="d", overrides=[], config={"x": 1, "y": np.inf}).run_id
    assert json_text({"y": [np.inf, np.nan]}) == '{"y":["inf","nan"]}'


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"channel": {"snr": [1]}}, r"no key 'channel.snr' \(did you mean channel.snr_db\?\); expected one of snr_db"),
        ({"sede": [1]}, "expected one of channel, problem, seed"),
        ({"seed": 1}, r"axes.seed is 1; expected a list of values, such as axes.seed=\[1\]"),
        ({"seed": []}, "expected at least one value; take an axis out with ~axes.seed"),
        ({"seed": [1, 2, 1]}, "axes.seed names 1 twice; expected distinct values"),
        ({"output": ["json"]}, "output belongs to the sweep as a whole"),
        ({"seed": list(range(400)), "problem": {"limits": list(range(400))}}, "160,000 runs; expected at most 100,000"),
    ],
)
def test_axes_that_make_no_sense_are_refused(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(axes)


def test_a_key_is_set_or_varied_but_not_both() -> None:
    axes = axes_of(OmegaConf.create({"channel": {"choice": ["static"], "snr_db": [1, 2]}}))
    assert [(axis.key, axis.is_group) for axis in axes] == [("channel", True), ("channel.snr_db", False)]
    require_apart(axes, ["seed=1", "axes.channel.snr_db=[3]"])
    with pytest.raises(ConfigError, match=r"channel.snr_db is set and is an axis of the sweep as well"):
        require_apart(axes, ["channel.snr_db=3"])
    with pytest.raises(ConfigError, match="channel is set and is an axis"):
        require_apart(axes, ["channel=umi"])


# ---- store


def test_a_file_holds_records_and_configuration(tmp_path: Path) -> None:
    store, run = Store(folder=tmp_path), a_run(7)
    config = OmegaConf.create({"seed": 7})
    path = store.write(run, records_of_config(config), status=RunStatus.DONE, message="", call_s=0.5)
    assert path == tmp_path / "sweep=test" / f"{run.run_id}.parquet"
    back = pd.read_parquet(path, partitioning=None)
    knobs = [column.name for column in CHOSEN]
    pd.testing.assert_frame_equal(back.drop(columns=["run", *knobs]), records_of_config(config), check_dtype=False)
    assert back[knobs].isna().all(axis=None)  # this call does not say what was chosen
    facts = store.facts(run)
    assert facts["config"] == run.config
    assert (facts["status"], facts["call_s"], facts["overrides"]) == ("done", 0.5, ["seed=7"])
    assert store.done([run, a_run(8)]) == {run.run_id}


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(folder=tmp_path)
    with pytest.raises(ProblemError, match=r"expected the columns of `megopt.analysis.records.RECORD`"):
        store.write(a_run(), pd.DataFrame({"x": [1]}), status=RunStatus.DONE, message="", call_s=0.0)
    bad = records_of_config(OmegaConf.create({"seed": 1})).assign(trace="one")
    with pytest.raises(ProblemError, match="trace"):
        store.write(a_run(), bad, status=RunStatus.DONE, message="", call_s=0.0)
    assert not list(tmp_path.rglob("*.p*"))


def test_half_written_files_are_no_runs_and_go_when_they_are_old(tmp_path: Path) -> None:
    store, run = Store(folder=tmp_path), a_run()
    half = store.path_of(run).with_suffix(".0.partial")
    half.parent.mkdir(parents=True)
    half.write_bytes(b"PAR1")
    assert store.done([run]) == set()
    assert store.remove_stale() == 0
    os.utime(half, (0, 0))
    assert store.remove_stale() == 1
    assert not half.exists()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", None, 3, ".x"])
def test_names_of_sweeps_are_names_of_folders(name: object) -> None:
    with pytest.raises(ConfigError, match="expected letters, digits"):
        require_sweep_name(name)
    assert require_sweep_name("snr_sweep-2.b") == "snr_sweep-2.b"


# ---- execution


def test_what_is_done_is_skipped(tmp_path: Path, runs: list[Run]) -> None:
    store, seen = Store(folder=tmp_path), []
    first = execute(runs[:3], store, InProcess())
    second = execute(runs, store, InProcess(), seen.append)
    assert (first.num_skipped, second.num_skipped) == (0, 3)
    assert [outcome.run_id for outcome in seen] == [run.run_id for run in runs[3:]]
    assert len(execute(runs, store, InProcess(), redo=True).with_status(RunStatus.DONE)) == 5
    third, launcher = execute(runs, store, InProcess()), InProcess()
    assert third.num_skipped == 5
    assert execute(runs, store, launcher).outcomes == {}
    assert launcher.num_starts == 0


def test_a_fault_of_one_run_does_not_stop_the_others(tmp_path: Path, runs: list[Run]) -> None:
    store, faulty = Store(folder=tmp_path), [a_run(97), a_run(98), a_run(99)]
    done = execute([*faulty, *runs], store, InProcess())
    assert len(done.with_status(RunStatus.DONE)) == 5
    messages = [done.outcomes[run.run_id].message for run in faulty]
    assert messages[:2] == ["seed is 97; expected another", "the profile has no such row"]
    assert messages[2].startswith("ZeroDivisionError: bug (test_sweep.py:")
    again = execute([*faulty, *runs], store, InProcess())
    assert again.num_skipped == 6  # what the profile does not hold it will not hold the next time; faults are retried
    assert {outcome.status for outcome in again.outcomes.values()} == {RunStatus.REFUSED, RunStatus.FAILED}


def test_a_task_whose_worker_always_dies_fails_alone(tmp_path: Path, runs: list[Run]) -> None:
    poison = runs[2].run_id
    launcher = InProcess(lambda task: any(run.run_id == poison for run in task.runs))
    done = execute(runs, Store(folder=tmp_path), launcher)
    assert len(done.with_status(RunStatus.DONE)) == 3
    failed = done.with_status(RunStatus.FAILED)
    assert {outcome.run_id for outcome in failed} == {runs[2].run_id, runs[3].run_id}  # they were one task
    assert failed[0].message == "its worker died 3 times: worker was killed"


def test_a_task_whose_worker_dies_once_is_sent_again(tmp_path: Path, runs: list[Run]) -> None:
    deaths = [True]
    launcher = InProcess(lambda task: bool(deaths) and task.runs[0].run_id == runs[2].run_id and deaths.pop())
    done = execute(runs, Store(folder=tmp_path), launcher)
    assert len(done.with_status(RunStatus.DONE)) == 5
    assert launcher.num_starts == 1


def test_an_interrupt_keeps_what_came_back(tmp_path: Path, runs: list[Run]) -> None:
    store = Store(folder=tmp_path)

    def stop(outcome: object) -> None:
        if len(store.done(runs)) >= 2:
            raise KeyboardInterrupt

    class Slow(InProcess):
        runs_per_task = 1

    done = execute(runs, store, Slow(), stop)
    assert done.is_interrupted
    again = execute(runs, store, Slow())
    assert again.num_skipped + len(again.outcomes) == 5


def test_workers_hold_ctrl_c_back_and_use_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with for_workers():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
        assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("1", "3")
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
    assert "OMP_NUM_THREADS" not in os.environ


# ---- what cannot be


@pytest.mark.parametrize("path", ["nowhere.call", "megopt.sweeps.nothing", "nodots", ""])
def test_a_call_that_does_not_exist(path: str) -> None:
    with pytest.raises(ConfigError, match="expected the dotted path of a function"):
        function_at(path)


def test_launchers_refuse_what_they_cannot_be() -> None:
    with pytest.raises(ConfigError, match="num_workers is 0; expected a whole number from 1"):
        Local(num_workers=0)
    with pytest.raises(ConfigError, match=r"runs_per_task is 1\.5"):
        Joblib(runs_per_task=1.5)
    with pytest.raises(ConfigError, match=r"launcher.cluster = 'pbs'; expected one of slurm, local"):
        Submitit(cluster="pbs")
    with (
        pytest.raises(ConfigError, match=r"launcher=ray needs ray_x, which is not installed; pip install 'megopt\["),
        require_engine("ray", "ray_x"),
    ):
        import ray_x  # noqa: F401
