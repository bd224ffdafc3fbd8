"""MEG-CVPO (arXiv 2407.07245): learned and fixed ways over transmit power and over limits, on measured tables.

CVPO, PPO-Lag, DDPG-Lag and PPO without limits learn at each point; the best fixed row, conventional generation and the
optimum of the long-run limits for a known channel need no learning. The paper claims over 40 % less latency than
conventional generation; here the saving is computed for these tables and stated beside that claim, against two readings
of "conventional": all steps and nothing merged, with the latent sent, and all steps at the edge with the image sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megopt.analysis.comparison import TOLERANCE, Comparison, Entry, compare
from megopt.analysis.evaluation import evaluate_policy, limits_of
from megopt.analysis.plots import paper_style, save_figure
from megopt.analysis.records import write_tables
from megopt.analysis.report import Report, rich_table, shown_path
from megopt.analysis.training_plan import TrainingPlan
from megopt.analysis.training_report import share_of
from megopt.envs.limit_shares import limit_bounds
from megopt.envs.parameters import EnvParams
from megopt.envs.scenarios import CVPO_STEPS
from megopt.errors import ConfigError
from megopt.policies.fixed import Fixed
from megopt.reproductions.meg_cvpo_figure import draw
from megopt.schemes.conventional import Conventional
from megopt.system.channel import LogDistance
from megopt.tables.profile import load_profile
from megopt.torch_devices import set_threads

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

BASELINES = ("average_optimal", "fixed", "conventional")
IMAGE_SENT = "conventional, image sent"
PUBLISHED_REDUCTION = 0.4
"""The paper's "over 40 %" less latency than conventional generation [1]."""
SAVINGS = ("latency_saved", "latency_saved_image")
"""Columns with the latency saved against conventional generation, latent sent and image sent."""
TEST_SEED = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is varied, and how each point is learned and judged.

    Attributes:
        powers_dbm: transmit powers, at the scenario's limits [dBm].
        limit_shares: shares of the way from the cheapest row's costs to the best row's, at the scenario's power [1].
        num_steps: requests that each run learns from [1].
        num_seeds: runs per point and algorithm [1].
        num_episodes: fresh episodes on which all are judged [1].
        seed: first seed.
    """

    powers_dbm: Sequence[float]
    limit_shares: Sequence[float]
    num_steps: int
    num_seeds: int
    num_episodes: int
    seed: int


def run(
    output_dir: Path,
    scenario: EnvParams,
    algorithms: Mapping[str, Mapping[str, Any]],
    powers_dbm: Sequence[float],
    limit_shares: Sequence[float],
    num_steps: int = 40_000,
    num_seeds: int = 1,
    num_episodes: int = 256,
    image_codec: str = "png",
    folder: str | Path | None = None,
    num_threads: int = 1,
    seed: int = 0,
) -> Report:
    """Return the report for `megopt reproduce figure=meg_cvpo`; runs that are finished are not learned again.

    Args:
        output_dir: where tables and figure go.
        scenario: environment with both limits.
        algorithms: actions, number of devices and settings of each algorithm, as in conf/algorithm.
        powers_dbm: see `Sweep`.
        limit_shares: see `Sweep`.
        num_steps: see `Sweep`.
        num_seeds: see `Sweep`.
        num_episodes: see `Sweep`.
        image_codec: payload of conventional generation with the image sent.
        folder: where runs are kept; None for `runs` in the output folder.
        num_threads: threads of the networks [1].
        seed: see `Sweep`.

    Raises:
        ConfigError: for a scenario whose channel has no transmit power or that lacks conventional rows, or no points.
    """
    if not (*powers_dbm, *limit_shares):
        message = "reproduce meg_cvpo: powers_dbm [] and limit_shares []; expected values of at least one of them"
        raise ConfigError(message)
    if "conventional" not in scenario.table.scheme:
        message = "reproduce meg_cvpo: scenario without conventional rows; expected some; add them to its schemes"
        raise ConfigError(message)
    set_threads("reproduce meg_cvpo", num_threads)
    sweep = Sweep(
        powers_dbm=tuple(powers_dbm),
        limit_shares=tuple(limit_shares),
        num_steps=num_steps,
        num_seeds=num_seeds,
        num_episodes=num_episodes,
        seed=seed,
    )
    table = sweep_table(scenario, algorithms, sweep, image_codec, Path(folder or output_dir / "runs"))
    paths = write_tables({"meg_cvpo": table}, output_dir)
    with paper_style():
        paths += save_figure(draw(table, scenario.table, scenario.problem.metric), output_dir / "meg_cvpo", dpi=300)
    return _report(table, paths)


def sweep_table(
    scenario: EnvParams, algorithms: Mapping[str, Mapping[str, Any]], sweep: Sweep, image_codec: str, folder: Path
) -> pd.DataFrame:
    """Return one row per point and way; see `_row` for the columns."""
    import pandas as pd
    from tqdm import tqdm

    rows: list[dict[str, Any]] = []
    judged: dict[str, tuple[Comparison, list[Entry]]] = {}
    for axis, value, place, params in tqdm(list(points_of(scenario, sweep)), desc="points", unit="point", disable=None):
        if place not in judged:  # the scenario itself is a point of both axes
            judged[place] = _judged(params, algorithms, sweep, image_codec, folder / place)
        found, entries = judged[place]
        rows += [{"axis": axis, "value": value, **_row(found, entries, entry)} for entry in entries]
    return pd.DataFrame(rows)


def _judged(
    params: EnvParams, algorithms: Mapping[str, Mapping[str, Any]], sweep: Sweep, image_codec: str, folder: Path
) -> tuple[Comparison, list[Entry]]:
    """Return all ways at one point, learned where they are not yet."""
    found = compare(
        {name: _plan(params, entry, sweep) for name, entry in algorithms.items()},
        BASELINES,
        folder,
        num_seeds=sweep.num_seeds,
        num_episodes=sweep.num_episodes,
        test_seed=TEST_SEED,
    )
    if not found.is_finished:
        message = f"reproduce meg_cvpo: stopped at {folder.name}; expected all runs; the same command goes on"
        raise ConfigError(message)
    return found, [*found.entries, _image_sent(params, image_codec, sweep.num_episodes)]


def points_of(scenario: EnvParams, sweep: Sweep) -> Iterator[tuple[str, float, str, EnvParams]]:
    """Yield axis, value, folder and environment of each point; a power moves no limit, and a share no power."""
    channel = scenario.channel
    if not isinstance(channel, LogDistance):
        message = (
            f"reproduce meg_cvpo: channel {type(channel).__name__}; expected LogDistance, which has a transmit power; "
            "choose scenario meg_cvpo"
        )
        raise ConfigError(message)
    for power in sweep.powers_dbm:
        is_default = power == channel.tx_power_dbm
        params = replace(scenario, channel=replace(channel, tx_power_dbm=float(power)))
        yield "power_dbm", float(power), "default" if is_default else f"power_dbm_{power:g}", params
    for share in sweep.limit_shares:
        problem, bounds = scenario.problem, limit_bounds(scenario, float(share))
        for limit, bound in zip(problem.limits, bounds, strict=True):
            problem = problem.with_limit(limit.quantity, bound)
        is_default = problem == scenario.problem
        params = replace(scenario, problem=problem)
        yield "limit_share", float(share), "default" if is_default else f"limit_share_{share:g}", params


def _plan(params: EnvParams, entry: Mapping[str, Any], sweep: Sweep) -> TrainingPlan:
    return TrainingPlan(
        scenario="meg_cvpo",
        params=params,
        num_steps=sweep.num_steps,
        eval_every=max(1, sweep.num_steps // 10),
        eval_episodes=16,
        seed=sweep.seed,
        **entry,
    )


def _image_sent(params: EnvParams, codec: str, num_episodes: int) -> Entry:
    """Return conventional generation with the image sent: all steps at the edge, on the same fading."""
    profile = load_profile(params.table.profile)
    scheme = Conventional(num_steps=(CVPO_STEPS[-1],), image_codecs=(codec,), prompt_bits=0.0, ways=("edge_only",))
    table = scheme.compile(profile)
    other = replace(params, table=table)
    policy = Fixed(table=table, problem=params.problem, scheme="conventional", label=str(table.label[0]))
    found = evaluate_policy(policy, other, num_episodes=num_episodes, seed=TEST_SEED)
    return Entry(name=IMAGE_SENT, is_learned=False, sampled=[found.summary(limits_of(params))])


def _row(found: Comparison, entries: Sequence[Entry], entry: Entry) -> dict[str, Any]:
    """Return means over the seeds of the sampled policy, and the latency saved against both conventional ways."""

    def mean_of(one: Entry, key: str) -> float:
        return float(np.mean([run[key] for run in one.sampled]))

    named = {one.name: mean_of(one, "latency_s") for one in entries}
    limits = {limit.quantity: limit.bound for limit in found.plan.params.problem.limits}
    latency_s = named[entry.name]
    return {
        "who": entry.name,
        "num_seeds": len(entry.sampled),
        "quality": mean_of(entry, "quality"),
        "latency_s": latency_s,
        "energy_j": mean_of(entry, "energy_j"),
        "worst_excess": max(float(run["excess"]) for run in entry.sampled),
        "is_kept": entry.kept_rate == 1.0,
        "violation_rate": mean_of(entry, "violation_rate"),
        "share_of_bound": share_of(entry.score().value, found.best_reward),
        "bound": found.best_reward,
        "latency_saved": 1.0 - latency_s / named["conventional"],
        "latency_saved_image": 1.0 - latency_s / named[IMAGE_SENT],
        **{f"limit_{name}": bound for name, bound in limits.items()},
    }


def _report(table: pd.DataFrame, paths: Sequence[Path]) -> Report:
    is_cvpo = table["who"] == "cvpo"
    kept = table[is_cvpo & table["is_kept"]]
    saved = {} if kept.empty else {name: kept[name].agg(["min", "max"]).tolist() for name in SAVINGS}
    claim = _claim(saved, is_learned=bool(is_cvpo.any()))
    return Report(
        summary={
            "published_latency_saved": PUBLISHED_REDUCTION,
            **saved,
            "tolerance": TOLERANCE,
            "points": table.to_dict("records"),
            "paths": [str(path) for path in paths],
        },
        headline=claim,
        tables=[_table(table, axis) for axis in dict.fromkeys(table["axis"])],
        lines=[
            claim,
            "the published saving belongs to other models, devices and limits; no table of the paper was published.",
            *(f"wrote {shown_path(path)}" for path in paths),
        ],
    )


def _claim(saved: Mapping[str, Sequence[float]], *, is_learned: bool) -> str:
    published = f"published: over {PUBLISHED_REDUCTION:.0%}"
    if not saved:
        why = "CVPO kept its limits at no point" if is_learned else "CVPO is not among the algorithms"
        return f"{why}; {published} of the latency saved"
    latent, image = (f"{saved[name][0]:.0%} to {saved[name][1]:.0%}" for name in SAVINGS)
    return (
        f"CVPO within its limits saves {latent} of the latency of conventional generation with the latent sent, "
        f"{image} with the image sent; {published}"
    )


def _table(table: pd.DataFrame, axis: str) -> Table:
    rows = [
        [
            f"{row['value']:g}",
            str(row["who"]),
            f"{row['quality']:.4g}",
            f"{row['share_of_bound']:.1%}",
            f"{row['latency_s']:.4g} ({row['limit_latency_s']:.4g})",
            f"{row['energy_j']:.4g} ({row['limit_energy_j']:.4g})",
            f"{row['worst_excess']:+.1%}",
            f"{row['violation_rate']:.0%}",
            f"{row['latency_saved']:.0%}, {row['latency_saved_image']:.0%}",
        ]
        for row in table[table["axis"] == axis].to_dict("records")
    ]
    header = [axis, "who", "quality", "of bound", "latency [s] (limit)", "energy [J] (limit)", "worst limit"]
    return rich_table(f"over {axis}", [*header, "episodes over", "latency saved: latent, image"], rows)
