"""Figures of a dataset: the means behind them, what they leave out, and the same files from the same records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from megopt.analysis import plots
from megopt.analysis.records import RECORD
from megopt.application import run_verb
from megopt.sweeps.figure_choices import save_choices
from megopt.sweeps.figure_curves import alike, save_curves
from megopt.sweeps.figure_data import Means, means_of, with_common_limits
from megopt.sweeps.figure_front import attained, save_front
from megopt.sweeps.figure_learning import learned_in, save_learned
from megopt.sweeps.figure_lines import save_lines
from megopt.sweeps.figure_timelines import save_timelines
from megopt.sweeps.figure_words import finish_page, title_of_all
from megopt.sweeps.query import open_results
from megopt.sweeps.run import Run, RunStatus
from megopt.sweeps.store import Store

LIMITS = (1.0, 2.0, 4.0)
SNRS_DB = (0, 10, 20)


def records(policy: str, snr_db: float, *, has_quality: bool = True) -> pd.DataFrame:
    """Two traces of two requests per limit; optimal spends its limit, the fixed policy knows none."""
    values = {"text": "measured", "float": 0.0, "int": 0}
    limits = LIMITS if policy == "optimal" else (np.inf,)
    parts = []
    for limit in limits:
        frame = pd.DataFrame({column.name: [values[column.dtype]] * 4 for column in RECORD})
        spent = limit if np.isfinite(limit) else 3.0
        latency = 10.0 / spent + np.array([0.0, 0.0, 1.0, 1.0]) + (20.0 - snr_db) / 10.0
        quality = 20.0 + 3.0 * spent + snr_db / 10.0
        given = {"profile": "p", "policy": policy, "limit_quantity": "energy_j", "limit": limit, "trace": [0, 0, 1, 1]}
        parts.append(frame.assign(**given, snr_db=[snr_db - 2.0, snr_db, snr_db + 1, snr_db + 3], latency_s=latency))
        parts[-1] = parts[-1].assign(energy_j=spent, objective=latency, edge_s=latency - 1.0, device_s=1.0)
        parts[-1] = parts[-1].assign(quality=quality if has_quality else np.nan, label=f"row {limit}")
        parts[-1] = parts[-1].assign(split_step=spent, merge_ratio=0.5 * (snr_db > 5), sr_scale=1.0)
    return pd.concat(parts, ignore_index=True)


def dataset(folder: Path, *, has_quality: bool = True) -> Path:
    store = Store(folder=folder / "results")
    for policy in ("optimal", "edge_only"):
        for snr_db in SNRS_DB:
            config = {"channel": {"snr_db": snr_db}, "problem": {"metric": "psnr_db"}}
            overrides = [f"channel.snr_db={snr_db}", f"policy={policy}"]
            run = Run.of(sweep="demo", call="a.b", overrides=overrides, config={**config, "policy": policy})
            frame = records(policy, snr_db, has_quality=has_quality)
            store.write(run, frame, status=RunStatus.DONE, message="", call_s=0.1)
    return store.folder


def means(folder: Path) -> Means:
    with open_results(folder) as results:
        (found,) = means_of(results, "demo")
    return found


@pytest.mark.slow
def test_means_are_over_requests_and_intervals_over_traces(tmp_path: Path) -> None:
    found = means(dataset(tmp_path))
    assert list(found.settings) == [f"channel.snr_db={snr_db}" for snr_db in SNRS_DB]
    assert (found.objective, found.metric, found.kinds) == ("latency_s", "psnr_db", ["measured"])
    points = found.of_setting("channel.snr_db=20")
    assert points["policy"].tolist() == ["optimal", "optimal", "optimal", "edge_only"]
    assert points["limit"].tolist() == [1.0, 2.0, 4.0, np.inf]
    assert points["latency_s"].tolist() == pytest.approx([10.5, 5.5, 3.0, 10 / 3 + 0.5])
    half = 12.7062 * np.sqrt(0.5) / np.sqrt(2)  # Student's t with one degree of freedom
    assert points["latency_ci95_s"].to_numpy() == pytest.approx(np.full(4, half), rel=1e-4)
    assert points["outage_rate"].tolist() == [0.0] * 4


@pytest.mark.slow
def test_the_same_records_give_the_same_files(tmp_path: Path) -> None:
    folder = dataset(tmp_path)
    found = means(folder)
    with open_results(folder) as results:
        makers: dict[str, Any] = {
            "curves": save_curves,
            "lines": save_lines,
            "front": save_front,
            "timelines": save_timelines,
            "choices": lambda of, path: save_choices(results, of, path),
        }
        for name, make in makers.items():
            first, second = (make(found, tmp_path / turn / name) for turn in "ab")
            assert [path.suffix for path in first] == [".pdf", ".png"], name
            for one, other in zip(first, second, strict=True):
                assert one.read_bytes() == other.read_bytes(), name


def test_what_has_nothing_to_show_is_left_out(tmp_path: Path) -> None:
    folder = dataset(tmp_path, has_quality=False)
    found = means(folder)
    assert "quality not measured" in found.note
    assert len(save_front(found, tmp_path / "front")) == 2  # latency and energy are left
    single = Store(folder=tmp_path / "one")
    run = Run.of(sweep="demo", call="a.b", overrides=[], config={"problem": {"metric": "auto"}})
    single.write(run, records("edge_only", 0), status=RunStatus.DONE, message="", call_s=0.0)
    alone = means(single.folder)
    assert (save_curves(alone, tmp_path / "x"), save_lines(alone, tmp_path / "x")) == ([], [])
    assert save_front(alone, tmp_path / "x") == []
    assert not list(tmp_path.glob("x*"))


def trial(folder: Path, number: int, kind: str) -> None:
    """One trial of a search: a limit of its own, chosen from a range, and one more key of its own."""
    limit = 0.5 + 0.3 * number
    frame = records("optimal", 10.0).head(4).assign(limit=limit, energy_j=limit, latency_s=10.0 / limit)
    frame = frame.assign(objective=frame["latency_s"])
    overrides = [f"way={kind}", f"bound={limit}", f"other={number * 0.7}"]
    run = Run.of(sweep="demo", call="a.b", overrides=overrides, config={"number": number})
    Store(folder=folder).write(run, frame, status=RunStatus.DONE, message="", call_s=0.0)


@pytest.mark.slow
def test_the_trials_of_a_search_are_points_of_one_curve(tmp_path: Path) -> None:
    for number in range(16):
        trial(tmp_path / "results", number, "ab"[number % 2])
    found = means(tmp_path / "results")
    assert {key for setting in found.settings.values() for key in setting} == {"way", "other"}  # bound is the limit
    assert len(found.settings) == 16
    files = save_curves(found, tmp_path / "curves")
    assert [path.suffix for path in files] == [".pdf", ".png"]
    with open_results(tmp_path / "results") as results:
        assert save_choices(results, found, tmp_path / "choices") == []  # what is chosen depends on more than the limit


def test_settings_whose_curves_look_the_same_share_a_panel(tmp_path: Path) -> None:
    far = means(dataset(tmp_path))
    assert alike(far, "energy_j", "latency_s") == [[text] for text in far.settings]
    near = replace(far, points=far.points.assign(latency_s=np.where(far.points["limit"] == 1.0, 9.0, 3.0)))
    assert alike(near, "energy_j", "latency_s") == [list(far.settings)]
    assert title_of_all(list(near.settings.values())) == "Mean SNR 0 to 20 dB"


@pytest.mark.slow
def test_a_quantity_that_was_measured_of_one_policy_alone_has_no_panel(tmp_path: Path) -> None:
    found = means(dataset(tmp_path))
    points = found.points.assign(quality=found.points["quality"].where(found.points["policy"] == "edge_only"))
    drawn: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        panels = plots.new_panels
        patch.setattr(plots, "new_panels", lambda num, **size: drawn.append(num) or panels(num, **size))
        save_lines(replace(found, points=points), tmp_path / "lines")
        save_lines(found, tmp_path / "lines")
    assert drawn == [2, 3]


def test_runs_that_find_their_limits_themselves_are_pooled_limit_by_limit() -> None:
    """The first limits of both seeds are one point, and the second ones; the policy without limits stays as it is."""
    shared = {"setting": "", "num": 2}
    rows = [
        {"policy": policy, "run": run, "limit": limit, **shared}
        for policy, run, limits in (
            ("optimal", "a", (1.0, 4.0)),
            ("optimal", "b", (2.0, 6.0)),
            ("edge_only", "a", (np.inf,)),
        )
        for limit in limits
    ]
    pooled = with_common_limits(pd.DataFrame(rows))
    assert pooled["limit"].tolist() == [1.5, 5.0, 1.5, 5.0, np.inf]


def test_a_note_is_as_broad_as_its_figure_and_the_legend_is_whole() -> None:
    (ax,) = plots.new_panels(1, width_in=4.6)
    for number in range(7):
        ax.plot([0, 1], [0, number], label=f"policy number {number}")
    finish_page([ax], "a note of many words " * 12)
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    note = figure._suptitle
    for box in (figure.legends[0].get_window_extent(), note.get_window_extent(), ax.get_tightbbox()):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    assert not figure.legends[0].get_window_extent().overlaps(ax.get_tightbbox())


def test_the_surface_is_the_best_point_within_both_limits() -> None:
    rng = np.random.default_rng(0)
    first, second, gain = rng.uniform(size=(3, 50))
    x, y = np.linspace(0.0, 1.0, 7), np.linspace(0.0, 1.0, 5)
    found = attained(first, second, gain, x, y)
    for i, j in np.ndindex(5, 7):
        inside = gain[(first <= x[j]) & (second <= y[i])]
        assert np.isnan(found[i, j]) if not len(inside) else found[i, j] == inside.max()


def test_learning_curves_of_one_problem_share_a_figure(tmp_path: Path) -> None:
    asked = {"scenario": "request", "profile": "p", "objective": "psnr_db", "channel": "c", "link": "l"}
    asked |= {"quantities": ["latency_s"], "limits": [1.5]}
    for algorithm, seed in (("cvpo", 0), ("cvpo", 1), ("sac_lag", 0)):
        folder = tmp_path / "train" / algorithm / f"seed_{seed}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({**asked, "algorithm": algorithm}))
        steps = np.arange(1, 5) * 1000
        curve = {"num_steps": steps, "sampled_reward": steps / 1e3 + seed, "sampled_latency_s": 2.0 - steps / 1e4}
        pd.DataFrame(curve).to_parquet(folder / "curve.parquet")
    (learned,) = learned_in([tmp_path / "train", tmp_path / "nowhere"])
    assert {name: len(curves) for name, curves in learned.curves.items()} == {"cvpo": 2, "sac_lag": 1}
    assert learned.name == "request__latency_s_1p5"
    assert [path.suffix for path in save_learned(learned, tmp_path / learned.name)] == [".pdf", ".png"]


@pytest.mark.slow
def test_the_verb_draws_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_verb("figures", [f"results={folder}", "kinds=[curves,front,learning]", "output=json"]) == 0
    report = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert [figure["kind"] for figure in report["figures"]] == ["curves", "front"]
    assert all((tmp_path / path).is_file() for path in report["files"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("kinds=[curve]", "kinds: 'curve'; expected some of curves, lines"),
        ("kinds=[]", "kinds is []; expected some of"),
        ("kinds=curves", "kinds = 'curves'; expected a list, such as kinds=[curves]"),
        ("sweep=nope", "no runs of sweep nope; expected one of demo"),
        ("results=nowhere", "nothing to draw in results=nowhere; make records with `megopt sweep`"),
    ],
)
def test_bad_input_gets_one_line(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_verb("figures", [f"results={folder}", override]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error
