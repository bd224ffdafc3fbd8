"""`megopt tradeoff`: from a profile to an energy-delay trade-off curve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from megopt.analysis import plots
from megopt.analysis.continuous_region_split import with_closed_form
from megopt.analysis.records import write_atomically, write_records
from megopt.analysis.report import Report, shown_path
from megopt.analysis.tradeoff import Sweep, Tradeoff, tradeoff
from megopt.analysis.tradeoff_report import (
    closed_form_tables,
    complaints,
    curve_table,
    headline,
    solver_table,
    summary,
)
from megopt.errors import ConfigError
from megopt.problem import Limit, Problem
from megopt.schemes.action_table import ActionTable
from megopt.schemes.scheme import compile_all
from megopt.solvers import exhaustive
from megopt.system.link import LinkState
from megopt.tables.profile import Profile


def run(config: DictConfig, output_dir: Path) -> Report:
    """Return the report of one trade-off; writes records.parquet, curve.csv, actions.csv and the figure."""
    profile: Profile = instantiate(config.profile)
    schemes = list(instantiate(config.scheme, _convert_="all").values())
    table, notes = compile_all(schemes, profile)
    link = fading_trace(config)
    problem, sweep = problem_of(config.problem, profile, table)
    found = tradeoff(table, link, problem, sweep, dict(instantiate(config.policy)))
    found, closed_form = with_closed_form(found, profile, schemes, link)
    files = write(found, table, profile, sweep, output_dir)
    nearest = exhaustive.nearest_feasible_limit(table, link, problem.with_limit(sweep.quantity, float(found.limits[0])))
    return Report(
        summary={**summary(found, profile, sweep, nearest, files), "closed_form": closed_form},
        headline=headline(found, sweep),
        tables=[curve_table(found, sweep), solver_table(found, sweep), *closed_form_tables(closed_form)],
        lines=[*(f"note: {note}" for note in [*notes, *found.notes]), *(f"wrote {shown_path(path)}" for path in files)],
        complaints=complaints(found, nearest),
        exit_code=2 if complaints(found, nearest) else 0,
    )


def fading_trace(config: DictConfig) -> LinkState:
    """Return the link that each request meets; the seed fixes it."""
    if not (isinstance(config.num_requests, int) and config.num_requests >= 1):
        message = f"num_requests = {config.num_requests}; expected a whole number of at least 1"
        raise ConfigError(message)
    rng = np.random.default_rng(np.random.SeedSequence(config.seed))
    snr = instantiate(config.channel, _convert_="all").sample_snr(rng, config.num_requests)[:, 0]
    state: LinkState = instantiate(config.link).state(snr)
    return state


def problem_of(config: DictConfig, profile: Profile, table: ActionTable) -> tuple[Problem, Sweep]:
    """Return problem and sweep of a configuration."""
    limits = tuple(Limit(quantity=str(q), bound=float(b)) for q, b in config.limits.items() if b is not None)
    metric = (table.metrics or ("",))[0] if config.metric == "auto" else config.metric
    problem = Problem(objective=config.objective, metric=metric, limits=limits)
    quantity = profile.provenance.energy if config.sweep.quantity == "auto" else config.sweep.quantity
    return problem, Sweep(quantity=quantity, values=tuple(config.sweep.limits), num_points=config.sweep.num_points)


def write(found: Tradeoff, table: ActionTable, profile: Profile, sweep: Sweep, output_dir: Path) -> list[Path]:
    """Write records, curve, action table and figure; return the files."""
    energy = sweep.quantity if sweep.quantity.endswith("_j") else profile.provenance.energy
    with plots.paper_style():
        left, right = plots.new_panels(2)
        plots.plot_energy_delay(found.curve, energy, left)
        plots.plot_time_parts(found.records, str(found.records["policy"].iloc[0]), right)
        plots.legend_below(left)
        plots.stamp(left, plots.profile_note(profile, found.records))
        figures = plots.save_figure(left, output_dir / "energy_delay")
    return [
        write_records(found.records, output_dir / "records.parquet"),
        write_atomically(output_dir / "curve.csv", lambda path: found.curve.to_csv(path, index=False)),
        write_atomically(output_dir / "actions.csv", lambda path: table.frame().to_csv(path, index=False)),
        *figures,
    ]
