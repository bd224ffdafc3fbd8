"""MEG-CVPO's figure: points of the sweep, what is saved against conventional generation, and its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megopt.envs.parameters import EnvParams
from megopt.envs.scenarios import meg_cvpo
from megopt.errors import ConfigError
from megopt.reproductions import meg_cvpo as figure
from megopt.system.channel import Rayleigh

SETTINGS = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 8, "learning_starts": 8}
ALGORITHMS: dict[str, Any] = {
    "cvpo": {"algorithm": "cvpo", "actions": "discrete", "num_envs": 2, "settings": SETTINGS},
}


def scenario() -> EnvParams:
    return meg_cvpo(k_factor_db=10.0, bandwidth_hz=0.25e6, limit_share=0.5, episode_length=8)


def test_a_power_moves_no_limit_and_a_share_no_power() -> None:
    sweep = figure.Sweep(
        powers_dbm=(20, 30), limit_shares=(0.5, 0.75), num_steps=16, num_seeds=1, num_episodes=2, seed=0
    )
    params = scenario()
    points = list(figure.points_of(params, sweep))
    assert [(axis, value, place) for axis, value, place, _ in points] == [
        ("power_dbm", 20.0, "power_dbm_20"),
        ("power_dbm", 30.0, "default"),
        ("limit_share", 0.5, "default"),
        ("limit_share", 0.75, "limit_share_0.75"),
    ]
    weak, same, default, loose = (point[3] for point in points)
    assert weak.problem == params.problem == same.problem == default.problem
    assert loose.channel == params.channel
    assert loose.problem.limits[0].bound > params.problem.limits[0].bound
    with pytest.raises(ConfigError, match="expected LogDistance"):
        next(figure.points_of(replace(params, channel=Rayleigh(snr_db=10.0)), sweep))


@pytest.mark.slow
def test_the_figure_names_what_is_saved_beside_the_claim(tmp_path: Path) -> None:
    common = {"powers_dbm": [30], "limit_shares": [0.5], "num_steps": 16, "num_episodes": 4}
    report = figure.run(tmp_path, scenario(), ALGORITHMS, **common, folder=tmp_path / "runs")  # type: ignore[arg-type]
    assert report.summary["published_latency_saved"] == 0.4
    rows = {row["who"]: row for row in report.summary["points"] if row["axis"] == "power_dbm"}
    assert list(rows) == ["cvpo", *figure.BASELINES, figure.IMAGE_SENT]
    assert rows["conventional"]["latency_saved"] == 0.0
    assert rows[figure.IMAGE_SENT]["latency_saved_image"] == 0.0
    saved = 1.0 - rows["cvpo"]["latency_s"] / rows["conventional"]["latency_s"]
    assert rows["cvpo"]["latency_saved"] == pytest.approx(saved)
    assert rows[figure.IMAGE_SENT]["quality"] == pytest.approx(rows["conventional"]["quality"])
    assert {path.name for path in tmp_path.iterdir()} == {"meg_cvpo.csv", "meg_cvpo.pdf", "meg_cvpo.png", "runs"}
