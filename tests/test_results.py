"""Questions to a dataset of runs: known answers, filters by configuration, and messages that name what there is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from megopt.analysis.records import RECORD
from megopt.application import run_verb
from megopt.errors import ConfigError
from megopt.sweeps.aggregates import Aggregate
from megopt.sweeps.query import open_results
from megopt.sweeps.run import Run, RunStatus
from megopt.sweeps.store import Store

LATENCY_S = (1.0, 3.0, np.inf)


def run_at(snr_db: float, sweep: str = "demo") -> Run:
    config = {"channel": {"snr_db": snr_db}, "seed": 0, "bound": np.inf, "names": ["a"]}
    overrides = [f"channel.snr_db={snr_db}"]
    return Run.of(sweep=sweep, call="a.b", overrides=overrides, config=config, choices={"channel": "rayleigh"})


def records(snr_db: float) -> pd.DataFrame:
    values = {"text": "optimal", "float": 1.0, "int": 0}
    frame = pd.DataFrame({column.name: [values[column.dtype]] * 3 for column in RECORD})
    return frame.assign(latency_s=np.array(LATENCY_S) + snr_db, violation=[0.0, 0.0, 0.5], quality=np.nan)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs of the sweep demo, at 0 and 10 dB, and one without records of the sweep other."""
    store = Store(folder=tmp_path / "results")
    for snr_db in (0, 10):
        run = run_at(snr_db)
        store.write(run, records(snr_db), status=RunStatus.DONE, message="", call_s=0.25)
    store.write(run_at(5.5, "other"), None, status=RunStatus.LEFT_OUT, message="not 'offered'", call_s=0.0)
    return store.folder


def test_means_are_over_served_requests(folder: Path) -> None:
    with open_results(folder) as results:
        answer = results.means(Aggregate(group_by=["config.channel.snr_db"], show=["latency_s", "quality"]))
    assert answer["config.channel.snr_db"].tolist() == [0.0, 10.0]
    assert answer["latency_s"].tolist() == [2.0, 12.0]
    assert answer["quality"].isna().all()
    assert answer["outage_rate"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert answer["violation_rate"].tolist() == pytest.approx([1 / 3, 1 / 3])
    assert answer["num_records"].tolist() == [3, 3]


def test_a_mean_over_a_value_that_was_not_measured_is_not_known(folder: Path) -> None:
    half = records(20).assign(quality=[1.0, np.nan, 2.0])
    Store(folder=folder).write(run_at(20), half, status=RunStatus.DONE, message="", call_s=0.0)
    with open_results(folder) as results:
        answer = results.means(Aggregate(where="config.channel.snr_db = 20", show=["latency_s", "quality"]))
    assert answer["latency_s"].tolist() == [22.0]
    assert answer["quality"].isna().all()


def test_columns_that_are_words_of_sql_need_no_quotes(folder: Path) -> None:
    with open_results(folder) as results:
        group_by = ["limit", "policy || '!'", '"row"']
        answer = results.means(Aggregate(where="latency_s > 0", group_by=group_by, show=["row + 1"]))
    assert list(answer.columns[:4]) == ["limit", "policy || '!'", "row", "row + 1"]


def test_the_same_numbers_as_pandas(folder: Path) -> None:
    with open_results(folder) as results:
        everything = results.ask("SELECT * EXCLUDE (config) FROM records")
        (answer,) = results.means(Aggregate(where="latency_s > 2", show=["latency_s"]))["latency_s"]
    kept = everything[np.isfinite(everything["latency_s"]) & (everything["latency_s"] > 2)]
    assert answer == pytest.approx(kept["latency_s"].mean())


def test_runs_tell_their_configuration_and_what_became_of_them(folder: Path) -> None:
    with open_results(folder) as results:
        runs = results.ask("SELECT *, config.channel.snr_db AS snr, config.bound AS bound FROM runs ORDER BY snr")
    assert runs["status"].tolist() == ["done", "left out", "done"]
    assert runs["message"].tolist() == ["", "not 'offered'", ""]
    assert runs["num_records"].tolist() == [3, 0, 3]
    assert runs["snr"].tolist() == [0.0, 5.5, 10.0]
    assert set(runs["bound"]) == {"inf"}
    assert list(runs["overrides"][0]) == ["channel.snr_db=0"]
    assert runs["sweep"].tolist() == ["demo", "other", "demo"]


def test_runs_that_differ_by_the_choice_of_a_group_can_be_told_apart(folder: Path) -> None:
    """Files of earlier versions, which do not say what was chosen, have no answer."""
    store = Store(folder=folder)
    config = {"channel": {"snr_db": 0}, "seed": 1}
    static = Run.of(
        sweep="demo", call="a.b", overrides=["channel=static"], config=config, choices={"channel": "static"}
    )
    for run in (static, Run.of(sweep="demo", call="a.b", overrides=[], config={"seed": 2})):
        store.write(run, records(0), status=RunStatus.DONE, message="", call_s=0.0)
    with open_results(folder) as results:
        answer = results.means(Aggregate(group_by=["choice.channel"], show=["latency_s"]))
        assert "choice.channel" in results.config_keys()
    assert answer["choice.channel"].tolist()[:2] == ["rayleigh", "static"]
    assert answer["num_runs"].tolist() == [2, 1, 1]


def test_one_sweep_alone(folder: Path) -> None:
    with open_results(folder, "other") as results:
        assert len(results.ask("SELECT * FROM records")) == 0
        assert len(results.ask("SELECT * FROM runs")) == 1


def test_a_file_under_way_is_not_seen(folder: Path) -> None:
    (folder / "sweep=demo" / "half.0.partial").write_bytes(b"PAR1")
    with open_results(folder) as results:
        assert len(results.ask("SELECT * FROM runs")) == 3


def test_a_column_that_only_newer_files_hold_is_null_in_the_others(folder: Path) -> None:
    path = Store(folder=folder).path_of(run_at(0))
    import pyarrow.parquet as pq

    table = pq.read_table(path, partitioning=None)
    pq.write_table(table.drop_columns(["kind"]), path)
    with open_results(folder) as results:
        assert results.ask("SELECT count(*) AS n FROM records WHERE kind IS NULL")["n"].tolist() == [3]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            "SELECT latencys FROM records",
            "there is no column latencys; did you mean latency_s.*; columns are .*energy_j.*keys are .*config.seed",
        ),
        (
            "SELECT config.channel.snr FROM records",
            "did you mean config.channel.snr_db.; expected one of config.channel.snr_db",
        ),
        ("SELECT * FROM record", "Table with name record does not exist"),
        ("SELEC 1", "sql = 'SELEC 1': syntax error .*columns are run, profile, .*keys are config.bound"),
    ],
)
def test_wrong_questions_name_what_there_is(folder: Path, sql: str, message: str) -> None:
    with open_results(folder) as results, pytest.raises(ConfigError, match=message):
        results.ask(sql)


def test_an_empty_dataset_says_how_to_fill_it(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="no runs; make some with `megopt sweep`"), open_results(tmp_path / "none"):
        pass
    with pytest.raises(ConfigError, match="no runs of sweep dem; expected one of demo, other"):  # noqa: SIM117
        with open_results(folder, "dem"):
            pass


def verb(folder: Path, *overrides: str) -> int:
    return run_verb("results", [f"results={folder}", *overrides])


def test_the_verb_answers_json_and_saves(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    target = folder.parent / "answer.parquet"
    assert verb(folder, "group_by=[config.channel.snr_db]", "show=[latency_s]", f"save={target}", "output=json") == 0
    report = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert [row["latency_s"] for row in report["rows"]] == [2.0, 12.0]
    assert pd.read_parquet(target)["latency_s"].tolist() == [2.0, 12.0]
    assert verb(folder, "sql='SELECT status, count(*) AS n FROM runs GROUP BY 1 ORDER BY 1'", "num_rows=1") == 0
    assert "2 rows; 1 are shown" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("save=answer.xls", "expected a file name that ends in .csv or .parquet"),
        ("show=latency_s", "show = 'latency_s'; expected a list, such as show=[latency_s]"),
        ("group_by=[polcy]", "group_by = 'polcy': there is no column polcy; did you mean policy?"),
        ("where=policy=optimal", """are written as 'where="policy='\\''optimal'\\''"'"""),
        ('where="policy=optimal"', """a text needs quotes: in a shell, texts and names in quotes are written as"""),
        ('where="latency_s >"', "where = 'latency_s >': syntax error at "),
        ('where="latency_s > 1 and"', "columns are run, profile, policy"),
        ('where="foo(latency_s) > 1"', "where = 'foo(latency_s) > 1': Scalar Function with name foo does not exist"),
        (
            'where="config.channel.snr > 1"',
            "did you mean config.channel.snr_db?; expected one of config.channel.snr_db",
        ),
        ("show=[latencys]", "results: show = 'latencys': there is no column latencys; did you mean latency_s?"),
        ("num_rows=0", "num_rows is 0; expected a whole number from 1"),
        ("sweep=nope", "no runs of sweep nope; expected one of demo, other"),
        ("shwo=[quality]", "results has no key 'shwo'; did you mean show?"),
    ],
)
def test_bad_input_gets_one_line(folder: Path, override: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert verb(folder, override) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
    assert "SELECT" not in error
